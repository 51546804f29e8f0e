import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf.data.confidence import Confidence, logit_sigma
from rle_tf.data.crops import CropFormat
from rle_tf.errors import ModelError
from rle_tf.evaluation import forward_function
from rle_tf.export import savedmodel
from rle_tf.export.savedmodel import export_savedmodel, metadata_confidence, read_metadata
from rle_tf.flow import RealNVP
from rle_tf.geometry import screen_coordinates
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import LSP14, Skeleton

TRIO = Skeleton("trio", ("head", "left_hand", "right_hand"), ((1, 2),), ((0, 1), (0, 2)), (0, 1, 2))
# In 3D the root is neither the first joint nor the last.
ROOTED = Skeleton("rooted", ("head", "pelvis", "foot"), (), ((0, 1), (1, 2)), (0,))
MEAN, STD = (0.406, 0.457, 0.48), (0.9, 1.0, 1.1)
SPREAD = (0.8, 0.5, 0.25)
HEIGHT, WIDTH = 16, 12
OF_CROPS = {"serving_default", "serving_default_flip_test"}
ON_IMAGES = OF_CROPS | {"predict_image", "predict_image_flip_test", "raw"}
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


def tiny_lifter(joints: int = 3, dims: int = 3, outputs: int | None = None) -> keras.Model:
    layers = keras.layers
    keypoints = keras.Input((joints, 2))
    hidden = layers.Dense(16, "relu")(layers.BatchNormalization()(layers.Flatten()(keypoints)))
    shape = (outputs or joints, dims)
    mu, deviation = (layers.Reshape(shape)(layers.Dense(math.prod(shape))(hidden)) for _ in "ab")
    return keras.Model(
        keypoints, {"mu": mu, "log_sigma": keras.ops.log_sigmoid(deviation)}, name="lifter"
    )


def constant_regressor(mu: np.ndarray, sigma: np.ndarray) -> keras.Model:
    """An image regressor that says the same (K, D) of every crop."""
    image = keras.Input((HEIGHT, WIDTH, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)

    def constant(value):
        dense = keras.layers.Dense(value.size, kernel_initializer="zeros")
        output = keras.layers.Reshape(value.shape)(dense(pooled))
        dense.bias.assign(value.ravel())
        return output

    return keras.Model(image, {"mu": constant(mu), "log_sigma": constant(np.log(sigma))})


def crops(batch: int) -> np.ndarray:
    rng = np.random.default_rng(batch)
    return rng.integers(0, 256, (batch, HEIGHT, WIDTH, 3), dtype=np.uint8)


def export(
    regressor: keras.Model,
    directory: Path,
    skeleton: Skeleton = TRIO,
    version: int | None = None,
    spread: list[float] | np.ndarray | None = None,
    confidence: Confidence | None = None,
) -> Path:
    of_crops = {"mean": MEAN, "std": STD, "box_margin": 1.25}
    return export_savedmodel(
        regressor,
        directory,
        skeleton=skeleton,
        **(of_crops if len(regressor.inputs[0].shape) == 4 else {}),
        spread=spread,
        confidence=confidence,
        version=version,
    )


def serve(version: Path, signature: str = "serving_default", **inputs) -> dict[str, np.ndarray]:
    model = tf.saved_model.load(str(version))
    output = model.signatures[signature](**{name: tf.constant(x) for name, x in inputs.items()})
    return {name: value.numpy() for name, value in output.items()}


def expected(
    regressor: keras.Model, image: np.ndarray, spread: Sequence[float] = (1, 1, 1)
) -> dict[str, np.ndarray]:
    """The outputs of `serving_default` by their definitions, from Keras and NumPy."""
    normalised = (image / 255 - np.array(MEAN)) / np.array(STD)
    output = regressor.predict(normalised.astype(np.float32), verbose=0)
    mu, sigma = output["mu"], np.exp(output["log_sigma"])
    error = sigma * np.array(spread)[: mu.shape[2]]
    wanted = {
        "mu": mu,
        "sigma": sigma,
        "score": 1 - sigma.mean(axis=-1),
        "keypoints_px": (mu[..., :2] + 0.5) * (image.shape[2], image.shape[1]),
        "sigma_px": error[..., :2] * (image.shape[2], image.shape[1]),
    }
    if mu.shape[2] == 3:
        wanted |= {"depth_mm": mu[..., 2] * 2000, "depth_sigma_mm": error[..., 2] * 2000}
    return wanted


def expected_of_camera(
    mu: np.ndarray, sigma: np.ndarray, spread: Sequence[float], view: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The outputs of `to_camera` joint by joint, from unit coordinates and float64 arithmetic."""
    people, joints, _ = mu.shape
    px, mm, sigma_mm = np.zeros((people, joints, 2)), np.zeros(mu.shape), np.zeros(mu.shape)
    for b in range(people):
        left, top, right, bottom = view["crop_box_xyxy"][b].astype(float)
        size, focal = (right - left, bottom - top), view["focal_px"][b].astype(float)
        for k in range(joints):
            px[b, k] = left + (mu[b, k, 0] + 0.5) * size[0], top + (mu[b, k, 1] + 0.5) * size[1]
            z = float(mu[b, k, 2]) * 2000 + view["root_depth_mm"][b]
            mm[b, k] = *((px[b, k] - view["centre_px"][b]) / focal * z), z
            error = sigma[b, k].astype(float) * spread
            sigma_mm[b, k] = *(error[:2] * size / focal * z), error[2] * 2000
    return {
        "keypoints_mm": mm - mm[:, [1]],
        "keypoints_px": px,
        "sigma_mm": sigma_mm,
        "score": 1 - sigma.mean(axis=-1),
    }


def assert_same(found: dict, wanted: dict, atol: float = 1e-5) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=atol, err_msg=name)


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
    assert_same(serve(exported, image=image), wanted)


@pytest.fixture(scope="module")
def rooted():
    """A 3D image regressor whose joints lie where bodies are: within a metre of the root."""
    model = tiny_regressor(dims=3)
    model.set_weights([0.05 * w if w.shape[-1:] == (9,) else w for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def exported_3d(rooted, tmp_path_factory):
    return export(rooted, tmp_path_factory.mktemp("models"), ROOTED, spread=SPREAD)


@pytest.fixture(scope="module")
def lifter():
    keras.utils.set_random_seed(0)
    return tiny_lifter()


@pytest.fixture(scope="module")
def exported_lifter(lifter, tmp_path_factory):
    return export(lifter, tmp_path_factory.mktemp("models"), ROOTED, spread=SPREAD)


def test_raw_is_the_regressor_itself(regressor, exported, lifter, exported_lifter):
    for model, version in ((regressor, exported), (lifter, exported_lifter)):
        shape = (2, *model.input_shape[1:])
        given = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        assert_same(serve(version, "raw", input=given), model.predict(given, verbose=0))


@pytest.mark.parametrize("batch", [1, 3])
def test_three_dimensions(rooted, exported_3d, batch):
    wanted = expected(rooted, crops(batch), SPREAD)
    assert_same(serve(exported_3d, image=crops(batch)), wanted, atol=5e-3)
    assert 50 < np.ptp(wanted["depth_mm"]) and np.abs(wanted["depth_mm"]).max() < 2000


@pytest.mark.parametrize("batch", [1, 3])
def test_camera_coordinates(exported_3d, views, batch):
    unit, view = serve(exported_3d, image=crops(batch)), views(batch)
    found = serve(exported_3d, "to_camera", image=crops(batch), **view)
    wanted = expected_of_camera(unit["mu"], unit["sigma"], SPREAD, view)
    assert np.ptp(wanted["keypoints_mm"]) > 100
    np.testing.assert_array_equal(found["keypoints_mm"][:, 1], 0)
    # A float32 near a depth of 6 m is right to 0.0003 mm.
    assert_same(found, wanted, atol=2e-3)


def test_camera_undoes_the_projection_of_a_body(tmp_path):
    """Joints in front of a camera, seen in a crop, come back where they were."""
    joints_mm = np.array([[120.0, -650, 4350], [80, 40, 4500], [-60, 900, 4620]])
    focal_px, centre_px = np.array([1145.0, 1143.0]), np.array([512.5, 515.5])
    px = joints_mm[:, :2] / joints_mm[:, 2:] * focal_px + centre_px
    box = np.array([310.0, 240.0, 790.0, 880.0])
    mu = np.column_stack(
        [(px - box[:2]) / (box[2:] - box[:2]) - 0.5, (joints_mm[:, 2] - 4500) / 2000]
    )
    sigma = np.full((3, 3), 0.1)
    version = export(constant_regressor(mu, sigma), tmp_path, ROOTED)
    found = serve(
        version,
        "to_camera",
        image=crops(1),
        crop_box_xyxy=box[None].astype(np.float32),
        focal_px=focal_px[None].astype(np.float32),
        centre_px=centre_px[None].astype(np.float32),
        root_depth_mm=np.float32([4500]),
    )
    np.testing.assert_allclose(found["keypoints_px"][0], px, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["keypoints_mm"][0], joints_mm - joints_mm[1], atol=5e-3)
    # 48 and 64 pixels at the depth of the joint; 0.1 of two metres.
    at_root_mm = (48 / 1145 * 4500, 64 / 1143 * 4500, 200)
    np.testing.assert_allclose(found["sigma_mm"][0, 1], at_root_mm, rtol=1e-5)


def test_screen_coordinates(detections):
    given = detections(4, 3)
    width, height = given["image_wh"].astype(float)[:, :, None].transpose(1, 0, 2)
    x, y = given["keypoints_px"].astype(float).transpose(2, 0, 1)
    wanted = np.stack([2 * x / width - 1, 2 * y / width - height / width], axis=-1)
    assert len(np.unique(height / width)) == 4
    np.testing.assert_allclose(screen_coordinates(**given), wanted, atol=1e-6)
    np.testing.assert_allclose(
        screen_coordinates(given["keypoints_px"][2], given["image_wh"][2]), wanted[2], atol=1e-6
    )
    tensors = {name: tf.constant(value) for name, value in given.items()}
    np.testing.assert_allclose(screen_coordinates(**tensors), wanted, atol=1e-6)
    corners = screen_coordinates(np.array([[0, 0], [1000, 500]]), np.array([1000, 500]))
    np.testing.assert_allclose(corners, [[-1, -0.5], [1, 0.5]])


@pytest.mark.parametrize("batch", [1, 3])
def test_lifter_equals_keras(lifter, exported_lifter, detections, batch):
    given = detections(batch, 3)
    output = lifter.predict(screen_coordinates(**given), verbose=0)
    mu, sigma = output["mu"], np.exp(output["log_sigma"])
    wanted = {
        "mu": mu,
        "sigma": sigma,
        "score": 1 - sigma.mean(axis=-1),
        "keypoints_mm": mu * 2000,
        "sigma_mm": sigma * SPREAD * 2000,
    }
    assert np.ptp(wanted["keypoints_mm"]) > 100
    assert_same(serve(exported_lifter, **given), wanted, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "value"),
    [("keypoints_px", np.nan), ("image_wh", 0.0), ("image_wh", np.inf), ("focal_px", 0.0)],
)
def test_no_nan_comes_of_bad_numbers(exported_lifter, exported_3d, detections, views, name, value):
    if name == "focal_px":
        version, signature, given = exported_3d, "to_camera", {"image": crops(2), **views(2)}
    else:
        version, signature, given = exported_lifter, "serving_default", detections(2, 3)
    serve(version, signature, **given)
    given[name].flat[1] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"rle_tf: {name}: found a "):
        serve(version, signature, **given)


def test_signatures_in_three_dimensions(exported_3d, exported_lifter):
    def interface(version, name):
        signature = tf.saved_model.load(str(version)).signatures[name]
        inputs = signature.structured_input_signature[1]
        assert all(name == spec.name for name, spec in inputs.items())
        outputs = signature.structured_outputs
        return (
            {name: (spec.dtype.name, *spec.shape) for name, spec in inputs.items()},
            {name: tuple(spec.shape) for name, spec in outputs.items()},
        )

    image = {"image": ("uint8", None, HEIGHT, WIDTH, 3)}
    joints, planar, spatial = (None, 3), (None, 3, 2), (None, 3, 3)
    assert interface(exported_3d, "serving_default") == (
        image,
        {
            "mu": spatial, "sigma": spatial, "score": joints, "keypoints_px": planar,
            "sigma_px": planar, "depth_mm": joints, "depth_sigma_mm": joints,
        },
    )  # fmt: skip
    assert interface(exported_3d, "to_camera") == (
        image
        | {
            "crop_box_xyxy": ("float32", None, 4),
            "focal_px": ("float32", None, 2),
            "centre_px": ("float32", None, 2),
            "root_depth_mm": ("float32", None),
        },
        {"keypoints_mm": spatial, "keypoints_px": planar, "sigma_mm": spatial, "score": joints},
    )
    assert interface(exported_lifter, "serving_default") == (
        {"keypoints_px": ("float32", None, 3, 2), "image_wh": ("float32", None, 2)},
        {
            "mu": spatial, "sigma": spatial, "score": joints, "keypoints_mm": spatial,
            "sigma_mm": spatial,
        },
    )  # fmt: skip
    assert interface(exported_3d, "raw") == (
        {"input": ("float32", None, HEIGHT, WIDTH, 3)},
        {"mu": spatial, "log_sigma": spatial},
    )
    assert interface(exported_lifter, "raw") == (
        {"input": ("float32", None, 3, 2)},
        {"mu": spatial, "log_sigma": spatial},
    )
    several = {name: (None, *shape) for name, shape in {"joints": joints, "planar": planar}.items()}
    for name in ("predict_image", "predict_image_flip_test"):
        assert interface(exported_3d, name) == (
            {"image_bytes": ("string", None), "boxes_xyxy": ("float32", None, None, 4)},
            {
                "present": (None, None), "person_score": (None, None),
                "score": several["joints"], "keypoints_px": several["planar"],
                "sigma_px": several["planar"], "depth_mm": several["joints"],
                "depth_sigma_mm": several["joints"],
            },
        )  # fmt: skip


def test_signature(exported):
    signatures = tf.saved_model.load(str(exported)).signatures
    assert set(signatures) == ON_IMAGES
    signature = signatures["serving_default"]
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
    assert_same(serve(version, image=crops(2)), expected(regressor, crops(2)))


def test_regressor_built_under_mirrored_strategy(regressor, tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        mirrored = tiny_regressor()
    assert_same(serve(export(mirrored, tmp_path), image=crops(2)), expected(regressor, crops(2)))


def test_compiled_regressor(regressor, tmp_path):
    class Unknown(keras.losses.Loss):
        def __init__(self, needed):
            super().__init__()

    compiled = tiny_regressor()
    compiled.compile("sgd", {"mu": Unknown(1), "log_sigma": Unknown(1)})
    assert_same(serve(export(compiled, tmp_path), image=crops(1)), expected(regressor, crops(1)))


@pytest.mark.parametrize(
    ("build", "dims", "skeleton", "names"),
    [
        (tiny_regressor, 2, TRIO, ON_IMAGES),
        (lambda: tiny_regressor(3), 3, ROOTED, ON_IMAGES | {"to_camera"}),
        (tiny_lifter, 3, ROOTED, {"serving_default", "raw"}),
    ],
    ids=["2d", "3d", "lifter"],
)
def test_only_variables_of_the_regressor(tmp_path, build, dims, skeleton, names):
    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.regressor, self.flow = build(), RealNVP(dims, layers=2, hidden=4)

    holder = Holder()
    regressor = holder.regressor
    assert len(holder.variables) > len(regressor.variables)
    version = export(regressor, tmp_path, skeleton)

    model = tf.saved_model.load(str(version))
    assert set(model.signatures) == names
    flow_names = re.compile("flow|coupling|nvp|scale_|shift_|conditioner", re.IGNORECASE)
    assert any(flow_names.search(variable.path) for variable in holder.variables)
    # `weights`: `variables` also counts the state of Dropout's random numbers.
    shapes = sorted(tuple(variable.shape) for variable in regressor.weights)
    for name in names:
        loaded = model.signatures[name].variables
        assert not any(flow_names.search(variable.name) for variable in loaded)
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


def test_readme_example_in_millimetres(exported_3d, tmp_path):
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "demo3d").symlink_to(exported_3d.parent)
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (800, 1000, 3), np.uint8))
    photo.save(tmp_path / "photo.jpg", "png")
    blocked = ["rle_tf", "keras", "tf_keras", "tensorflow_probability"]
    printed, result = run_clean(readme_example("Millimetres"), blocked, tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == list(ROOTED.joints)
    box = (300, 100, 700, 500)
    image = np.asarray(photo.crop(box).resize((WIDTH, HEIGHT)))[None]
    unit = serve(exported_3d, image=image)
    view = {
        "crop_box_xyxy": np.float32([box]),
        "focal_px": np.float32([[1145, 1144]]),
        "centre_px": np.float32([[512, 515]]),
        "root_depth_mm": np.float32([4500]),
    }
    assert_same(result, expected_of_camera(unit["mu"], unit["sigma"], SPREAD, view), atol=2e-3)


def test_readme_example_of_lifting(lifter, exported_lifter, detections, tmp_path):
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models" / "lifter").symlink_to(exported_lifter.parent)
    keypoints_px = detections(1, 3)["keypoints_px"][0]
    np.save(tmp_path / "keypoints_px.npy", keypoints_px)
    blocked = ["rle_tf", "keras", "tf_keras", "tensorflow_probability"]
    printed, result = run_clean(readme_example("Lifting"), blocked, tmp_path)
    assert [line.split()[0] for line in printed.splitlines()] == list(ROOTED.joints)
    given = screen_coordinates(keypoints_px, np.float32([1000, 1002]))
    wanted = lifter.predict(given[None], verbose=0)["mu"] * 2000
    np.testing.assert_allclose(result["keypoints_mm"], wanted, rtol=1e-5, atol=2e-3)


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


def test_metadata(exported, exported_3d, exported_lifter):
    metadata = read_metadata(exported)
    assert metadata.pop("versions").keys() == {"rle_tf", "keras", "tensorflow"}
    assert metadata == {
        "input": "image",
        "skeleton": "trio",
        "joints": ["head", "left_hand", "right_hand"],
        "bones": [[0, 1], [0, 2]],
        "flip_pairs": [[1, 2]],
        "root": None,
        "image_size": [HEIGHT, WIDTH],
        "dims": 2,
        "mean": list(MEAN),
        "std": list(STD),
        "box_margin": 1.25,
        "spread": [1.0, 1.0],
        "confidence": None,
    }
    in_3d, lifting = read_metadata(exported_3d), read_metadata(exported_lifter)
    assert in_3d["dims"] == 3 and in_3d["root"] == 1 and in_3d["spread"] == list(SPREAD)
    of_images = {"image_size", "mean", "std", "box_margin"}
    assert lifting == in_3d | {"input": "keypoints"} | dict.fromkeys(of_images)


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
    with pytest.raises(
        ModelError, match=r"found the keys .*'skeleton'.*expected also \['input', 'bones'"
    ):
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
            export_savedmodel(
                regressor, directory, skeleton=TRIO, mean=MEAN, std=std, box_margin=1.25
            )
    vector = keras.Input((3,))
    with pytest.raises(
        ModelError, match=r"found inputs \[\(None, 3\)\]; .* or keypoints \(B, K, 2"
    ):
        export(keras.Model(vector, {"mu": vector, "log_sigma": vector}), directory)
    with pytest.raises(ModelError, match=r"'trio': found the joints head, .*; expected a 'pelvis'"):
        export(tiny_regressor(dims=3), directory)
    with pytest.raises(ModelError, match=r"'trio': found the joints head, .*; expected a 'pelvis'"):
        export(tiny_lifter(), directory)
    with pytest.raises(ModelError, match=r"\(None, 3, 2\); expected \(B, 3, 3\) .*'keypoints'"):
        export(tiny_lifter(dims=2), directory, ROOTED)
    with pytest.raises(ModelError, match=r"found input \(None, 4, 2\); expected \(B, 3, 2\)"):
        export(tiny_lifter(joints=4, outputs=3), directory, ROOTED)
    assert not directory.exists()
    directory.write_text("")
    with pytest.raises(ModelError, match="model: is a file; expected a folder"):
        export(regressor, directory)


@pytest.mark.parametrize("absent", ["mean", "std", "box_margin"])
def test_an_image_regressor_needs_what_makes_its_crops(regressor, tmp_path, absent):
    given = {"mean": MEAN, "std": STD, "box_margin": 1.25}
    del given[absent]
    with pytest.raises(ModelError, match=f"found {', '.join(given)}; expected all of .*'image'"):
        export_savedmodel(regressor, tmp_path / "model", skeleton=TRIO, **given)
    with pytest.raises(ModelError, match="found no mean, std, box_margin; expected all of"):
        export_savedmodel(regressor, tmp_path / "model", skeleton=TRIO)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("given", [{"mean": MEAN}, {"std": STD}, {"box_margin": 1.25}])
def test_a_lifter_takes_nothing_about_crops(lifter, tmp_path, given):
    with pytest.raises(ModelError, match=f"found {[*given][0]}; expected none of .*'keypoints'"):
        export_savedmodel(lifter, tmp_path / "model", skeleton=ROOTED, **given)
    assert not (tmp_path / "model").exists()


def test_expected_errors_are_sigma_times_the_spread(regressor, tmp_path):
    output = serve(export(regressor, tmp_path, spread=[0.5, 0.25]), image=crops(2))
    expected_px = output["sigma"] * (0.5 * WIDTH, 0.25 * HEIGHT)
    np.testing.assert_allclose(output["sigma_px"], expected_px, rtol=1e-5)


def test_an_unknown_spread_is_null_in_the_metadata_and_nan_in_pixels(regressor, tmp_path):
    version = export(regressor, tmp_path, spread=[math.nan, math.nan])
    assert read_metadata(version)["spread"] == [None, None]
    output = serve(version, image=crops(1))
    assert np.isnan(output["sigma_px"]).all() and np.isfinite(output["keypoints_px"]).all()


def test_a_spread_of_other_dimensions_is_refused(regressor, tmp_path):
    for spread in ([1.0], np.ones((2, 2)), np.ones((3, 3))):
        with pytest.raises(
            ModelError, match=r"spread: found .* expected 2 numbers, .* or \(3, 2\)"
        ):
            export(regressor, tmp_path, spread=spread)


SURE = Confidence(
    np.linspace(-3, -1, 5),
    np.array([[0.9, 0.8, 0.6, 0.3, 0.1], [0.7, 0.7, 0.5, 0.5, 0.2], [1, 0.5, 0.4, 0.2, 0]]),
)


def test_a_calibrated_model_says_how_sure_it_is(regressor, tmp_path):
    spread = np.array([[0.5, 0.25], [1, 2], [3, 4]])
    version = export(regressor, tmp_path, spread=spread, confidence=SURE)
    output = serve(version, image=crops(2))
    np.testing.assert_allclose(
        output["sigma_px"], output["sigma"] * spread * (WIDTH, HEIGHT), rtol=1e-5
    )
    places = logit_sigma(np.log(output["sigma"]).mean(axis=-1))
    for joint in range(3):
        wanted = np.interp(places[:, joint], SURE.logit_sigma, SURE.values[joint])
        np.testing.assert_allclose(output["confidence"][:, joint], wanted, atol=1e-5)
    metadata = read_metadata(version)
    assert metadata["spread"] == spread.tolist()
    again = metadata_confidence(metadata)
    np.testing.assert_array_equal(again.values, SURE.values)
    np.testing.assert_array_equal(again.logit_sigma, SURE.logit_sigma)


def test_of_photographs_a_calibrated_model_says_it_too(regressor, tmp_path):
    version = export(regressor, tmp_path, confidence=SURE)
    image = tf.io.encode_png(crops(1)[0]).numpy()
    boxes = np.array([[[0, 0, 5, 9], [0, 0, 0, 0]]], np.float32)
    for signature in ("predict_image", "predict_image_flip_test"):
        output = serve(version, signature, image_bytes=[image], boxes_xyxy=boxes)
        assert output["confidence"].shape == (1, 2, 3)
        assert (output["confidence"][0, 0] > 0).any() and (output["confidence"][0, 1] == 0).all()


def test_a_confidence_of_other_joints_or_of_a_lifter_is_refused(regressor, lifter, tmp_path):
    two = Confidence(SURE.logit_sigma, SURE.values[:2])
    with pytest.raises(ModelError, match="confidence: found that of 2 joints for 3 joints"):
        export(regressor, tmp_path, confidence=two)
    with pytest.raises(ModelError, match="confidence: found .*; expected an image regressor's"):
        export(lifter, tmp_path, ROOTED, confidence=SURE)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "none"])
def test_half_weights_halve_the_folder_and_leave_the_poses(tmp_path, trained):
    regressor = build_regressor("mobilenet_v3_small", LSP14, 2, (64, 64), trained=trained)
    of_crops = {"mean": MEAN, "std": STD, "box_margin": 1.25}
    full, half = (
        export_savedmodel(
            regressor, tmp_path / name, skeleton=LSP14, half_weights=half, **of_crops
        )
        for name, half in (("full", False), ("half", True))
    )  # fmt: skip
    sizes = [
        sum(file.stat().st_size for file in version.glob("variables/*")) for version in (full, half)
    ]
    assert sizes[1] < 0.55 * sizes[0]
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    outputs = [serve(version, image=image) for version in (full, half)]
    np.testing.assert_allclose(outputs[1]["mu"], outputs[0]["mu"], atol=2e-3)
    np.testing.assert_allclose(outputs[1]["sigma"], outputs[0]["sigma"], rtol=0.02)
    assert not (outputs[1]["mu"] == outputs[0]["mu"]).all()


@pytest.mark.parametrize("half_weights", [False, True])
@pytest.mark.parametrize("head", ["pooled", "soft_argmax", "heatmap"])
def test_the_flip_test_is_that_of_evaluation(tmp_path, head, half_weights):
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    backbone = keras.Model(image, keras.layers.Conv2D(8, 3, 4, "same", activation="relu")(image))
    maps = {
        "pooled": {},
        "soft_argmax": {"map_sigma": True, "map_window": 1.0},
        "heatmap": {"deconvolutions": 1},
    }[head]
    regressor = build_regressor(backbone, LSP14, 2, (32, 32), head=head, **maps)
    if head == "heatmap":
        # Or its maps would be flat, as at its initial weights.
        deconvolution = regressor.get_layer("deconv_0")
        deconvolution.kernel.assign(deconvolution.kernel * 1000)
    if head == "soft_argmax":
        # As after training: other statistics than the first, and a sigma that follows what it sees.
        for name in ("sigma_pool_bn", "sigma_seen_bn"):
            layer = regressor.get_layer(name)
            layer.moving_mean.assign(layer.moving_mean + 0.3)
            layer.moving_variance.assign(layer.moving_variance * 0.25)
        for name in ("sigma_dense", "sigma_of_joints"):
            kernel = regressor.get_layer(name).kernel
            kernel.assign(kernel * 30)
    version = export_savedmodel(
        regressor, tmp_path / "m", skeleton=LSP14, mean=MEAN, std=STD, box_margin=1.25,
        half_weights=half_weights,
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    crops = CropFormat((32, 32), MEAN, STD)
    wanted = forward_function(regressor, LSP14, crops, flip_test=True)(
        crops.normalise(tf.cast(image, tf.float32))
    )
    found = serve(version, "serving_default_flip_test", image=image)
    assert found.keys() == serve(version, image=image).keys()
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=5e-3 if half_weights else 1e-5)


def test_an_export_without_a_calibration_has_no_confidence(regressor, tmp_path):
    version = export(regressor, tmp_path)
    assert "confidence" not in serve(version, image=crops(1))
    assert metadata_confidence(read_metadata(version)) is None
