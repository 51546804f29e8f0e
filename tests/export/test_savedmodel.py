import json
import math
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf.errors import ModelError
from rle_tf.export import savedmodel
from rle_tf.export.savedmodel import export_savedmodel, read_metadata
from rle_tf.flow import RealNVP
from rle_tf.skeletons import LSP14, Skeleton

TRIO = Skeleton("trio", ("head", "left_hand", "right_hand"), ((1, 2),), ((0, 1), (0, 2)), (0, 1, 2))
MEAN, STD = (0.406, 0.457, 0.48), (0.9, 1.0, 1.1)
HEIGHT, WIDTH = 16, 12
README = Path(__file__).parents[2] / "saved_models" / "README.md"


def tiny_regressor(dims: int = 2, joints: int = 3) -> keras.Model:
    """A nested backbone with batch statistics off their initial values, and two branches."""
    layers = keras.layers
    backbone = keras.Sequential(
        [
            keras.Input((HEIGHT, WIDTH, 3)),
            layers.Conv2D(8, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Flatten(),
        ]
    )
    image = keras.Input((HEIGHT, WIDTH, 3))
    features = backbone(image)
    mu = layers.Dense(joints * dims)(features)
    # The float32 names what the contract asks for under mixed precision; `mu` forgets to.
    deviation = layers.Dense(joints * dims, dtype="float32")(features)
    log_sigma = keras.ops.log_sigmoid(layers.Reshape((joints, dims), dtype="float32")(deviation))
    model = keras.Model(
        image, {"mu": layers.Reshape((joints, dims))(mu), "log_sigma": log_sigma}, name="tiny"
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.05, 0.5, w.shape) - 0.2 * (w.ndim > 1) for w in model.weights])
    return model


def crops(batch: int) -> np.ndarray:
    rng = np.random.default_rng(batch)
    return rng.integers(0, 256, (batch, HEIGHT, WIDTH, 3), dtype=np.uint8)


def export(
    regressor: keras.Model,
    directory: Path,
    skeleton: Skeleton = TRIO,
    version: int | None = None,
    spread: list[float] | None = None,
) -> Path:
    return export_savedmodel(
        regressor,
        directory,
        skeleton=skeleton,
        mean=MEAN,
        std=STD,
        spread=spread,
        version=version,
    )


def serve(version: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    model = tf.saved_model.load(str(version))
    output = model.signatures["serving_default"](image=tf.constant(image))
    return {name: value.numpy() for name, value in output.items()}


def expected(regressor: keras.Model, image: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by their definitions, from Keras and NumPy."""
    normalised = (image / 255 - np.array(MEAN)) / np.array(STD)
    output = regressor.predict(normalised.astype(np.float32), verbose=0)
    mu, sigma = output["mu"], np.exp(output["log_sigma"])
    unit = np.array([image.shape[2], image.shape[1], 2000.0])[: mu.shape[2]]
    origin = np.array([0.5, 0.5, 0.0])[: mu.shape[2]]
    return {
        "mu": mu,
        "sigma": sigma,
        "score": 1 - sigma.mean(axis=-1),
        "keypoints_px": (mu + origin) * unit,
        "sigma_px": sigma * unit,
    }


def assert_same(found: dict, wanted: dict) -> None:
    assert set(found) == {"mu", "sigma", "score", "keypoints_px", "sigma_px"}
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def regressor():
    return tiny_regressor()


@pytest.fixture(scope="module")
def exported(regressor, tmp_path_factory):
    return export(regressor, tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_equal_keras(regressor, exported, batch):
    image = crops(batch)
    wanted = expected(regressor, image)
    assert np.ptp(wanted["mu"]) > 0.01
    assert_same(serve(exported, image), wanted)


def test_three_dimensions(tmp_path):
    regressor = tiny_regressor(dims=3)
    image = crops(2)
    assert_same(serve(export(regressor, tmp_path), image), expected(regressor, image))


def test_signature(exported):
    signature = tf.saved_model.load(str(exported)).signatures["serving_default"]
    assert signature.structured_input_signature == (
        (),
        {"image": tf.TensorSpec((None, HEIGHT, WIDTH, 3), tf.uint8, name="image")},
    )
    shapes = {name: spec.shape.as_list() for name, spec in signature.structured_outputs.items()}
    assert shapes["mu"] == shapes["keypoints_px"] == [None, 3, 2]
    assert shapes["score"] == [None, 3]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_exported_in_float32(regressor, tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        mixed = tiny_regressor()
        version = export(mixed, tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert mixed.output["mu"].dtype == policy.removeprefix("mixed_")
    assert_same(serve(version, crops(2)), expected(regressor, crops(2)))


def test_regressor_built_under_mirrored_strategy(regressor, tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = tiny_regressor()
    assert_same(serve(export(mirrored, tmp_path), crops(2)), expected(regressor, crops(2)))


def test_compiled_regressor(regressor, tmp_path):
    class Unknown(keras.losses.Loss):
        def __init__(self, needed):
            super().__init__()

    compiled = tiny_regressor()
    compiled.compile("sgd", {"mu": Unknown(1), "log_sigma": Unknown(1)})
    assert_same(serve(export(compiled, tmp_path), crops(1)), expected(regressor, crops(1)))


def test_only_variables_of_the_regressor(regressor, tmp_path):
    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.regressor, self.flow = regressor, RealNVP(2, layers=2, hidden=4)

    holder = Holder()
    assert len(holder.variables) > len(regressor.variables)
    version = export(holder.regressor, tmp_path)

    model = tf.saved_model.load(str(version))
    loaded = model.signatures["serving_default"].variables
    flow_names = re.compile("flow|coupling|nvp|scale_|shift_|conditioner", re.IGNORECASE)
    assert any(flow_names.search(variable.path) for variable in holder.variables)
    assert not any(flow_names.search(variable.name) for variable in loaded)
    # `weights`: `variables` also counts the state of Dropout's random numbers.
    shapes = sorted(tuple(variable.shape) for variable in regressor.weights)
    assert sorted(tuple(variable.shape) for variable in loaded) == shapes
    on_disk = dict(tf.train.list_variables(str(version / "variables" / "variables")))
    del on_disk["_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert sorted(tuple(shape) for shape in on_disk.values()) == shapes


CLEAN = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
{code}
import numpy
numpy.savez("result.npz", **result)
"""


def readme_example(title: str) -> str:
    return re.search(rf"## {title}.*?```python\n(.*?)```", README.read_text(), re.DOTALL)[1]


def run_clean(code: str, blocked: list[str], folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Runs code in a process that cannot import the blocked modules; its output and `result`."""
    code = CLEAN.format(blocked=blocked, code=code)
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout, dict(np.load(folder / "result.npz"))


def test_readme_example_loads_without_rle_tf(regressor, tmp_path):
    export(regressor, tmp_path / "saved_models" / "demo")
    # A PNG under the example's name: the pixels must arrive as they are.
    Image.fromarray(crops(1)[0]).save(tmp_path / "crop.jpg", "png")
    blocked = ["rle_tf", "keras", "tf_keras", "tensorflow_probability"]
    printed, result = run_clean(readme_example("Python"), blocked, tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == list(TRIO.joints)
    assert_same(result, expected(regressor, crops(1)))


def test_prints_nothing(regressor, tmp_path, capfd):
    export(regressor, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_versions_count_up_and_are_not_overwritten(regressor, tmp_path):
    directory = tmp_path / "new" / "model"
    first = export(regressor, directory)
    assert first == directory / "1"
    assert export(regressor, directory, version=9) == directory / "9"
    (directory / "notes").mkdir()
    assert export(regressor, directory) == directory / "10"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    with pytest.raises(ModelError, match=r"model/1: this version exists"):
        export(regressor, directory, version=1)
    assert before == {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert {entry.name for entry in directory.iterdir()} == {"1", "9", "10", "notes"}
    with pytest.raises(ModelError, match="found version 0; expected 1 or more"):
        export(regressor, directory, version=0)


def test_version_folder_is_as_readable_as_any(exported, tmp_path):
    (tmp_path / "plain").mkdir()
    assert exported.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_interruption_leaves_nothing(regressor, tmp_path, monkeypatch):
    def interrupted(regressor, path, *_):
        path.mkdir()
        (path / "saved_model.pb").write_bytes(b"half")
        assert not any(entry.name.isdecimal() for entry in tmp_path.iterdir())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(savedmodel, "_write_graph", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(regressor, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert export(regressor, tmp_path) == tmp_path / "1"


def test_version_written_meanwhile_is_kept(regressor, tmp_path, monkeypatch):
    def overtaken(regressor, path, *_):
        path.mkdir()
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_bytes(b"theirs")

    monkeypatch.setattr(savedmodel, "_write_graph", overtaken)
    with pytest.raises(ModelError, match="another export wrote this version meanwhile"):
        export(regressor, tmp_path)
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == b"theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_metadata(exported):
    metadata = read_metadata(exported)
    assert metadata.pop("versions").keys() == {"rle_tf", "keras", "tensorflow"}
    assert metadata == {
        "skeleton": "trio",
        "joints": ["head", "left_hand", "right_hand"],
        "bones": [[0, 1], [0, 2]],
        "flip_pairs": [[1, 2]],
        "image_size": [HEIGHT, WIDTH],
        "dims": 2,
        "mean": list(MEAN),
        "std": list(STD),
        "box_margin": 1.25,
        "spread": [1.0, 1.0],
    }


def test_metadata_absent_or_broken(exported, tmp_path):
    with pytest.raises(ModelError, match="nowhere: found no such folder"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"found no assets\.extra/rle_tf\.json; .* exported$"):
        read_metadata(tmp_path)
    with pytest.raises(ModelError, match=r"rle_tf exported, such as .*tiny/1$"):
        read_metadata(exported.parent)
    path = tmp_path / "assets.extra" / "rle_tf.json"
    path.parent.mkdir()
    path.write_text('{"skeleton": ')
    with pytest.raises(ModelError, match=r"rle_tf\.json: is not JSON"):
        read_metadata(tmp_path)
    path.write_text(json.dumps({"skeleton": "coco17", "joints": []}))
    with pytest.raises(ModelError, match=r"found the keys .*'skeleton'.*expected also \['bones'"):
        read_metadata(tmp_path)


def test_refused_regressors_leave_no_folder(regressor, tmp_path):
    directory = tmp_path / "model"
    with pytest.raises(ModelError, match=r"\(None, 3, 2\); expected \(B, 14, .*'lsp14'"):
        export(regressor, directory, LSP14)
    free = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(free)
    with pytest.raises(ModelError, match="with a fixed H and W"):
        export(keras.Model(free, {"mu": pooled, "log_sigma": pooled}), directory)
    fixed = keras.Input((HEIGHT, WIDTH, 3))
    with pytest.raises(ModelError, match="expected 'mu' and 'log_sigma'"):
        export(keras.Model(fixed, keras.layers.Flatten()(fixed)), directory)
    grey = keras.Input((HEIGHT, WIDTH, 1))
    with pytest.raises(ModelError, match=r"found inputs \[\(None, 16, 12, 1\)\]; expected"):
        export(keras.Model(grey, {"mu": grey, "log_sigma": grey}), directory)
    for std in [(1, 1), (1, 0, 1)]:
        with pytest.raises(ModelError, match="expected three numbers each"):
            export_savedmodel(regressor, directory, skeleton=TRIO, mean=MEAN, std=std)
    assert not directory.exists()
    directory.write_text("")
    with pytest.raises(ModelError, match="model: is a file; expected a folder"):
        export(regressor, directory)


def test_expected_errors_are_sigma_times_the_spread(regressor, tmp_path):
    output = serve(export(regressor, tmp_path, spread=[0.5, 0.25]), crops(2))
    expected_px = output["sigma"] * (0.5 * WIDTH, 0.25 * HEIGHT)
    np.testing.assert_allclose(output["sigma_px"], expected_px, rtol=1e-5)


def test_an_unknown_spread_is_null_in_the_metadata_and_nan_in_pixels(regressor, tmp_path):
    version = export(regressor, tmp_path, spread=[math.nan, math.nan])
    assert read_metadata(version)["spread"] == [None, None]
    output = serve(version, crops(1))
    assert np.isnan(output["sigma_px"]).all() and np.isfinite(output["keypoints_px"]).all()


def test_a_spread_of_other_dimensions_is_refused(regressor, tmp_path):
    with pytest.raises(ModelError, match="spread: found .* expected 2 numbers"):
        export(regressor, tmp_path, spread=[1.0])
