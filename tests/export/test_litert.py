import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from rle_tf.errors import ModelError
from rle_tf.export.litert import export_litert
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17, H36M18, Skeleton

SIZE = 64
MEAN = (0.406, 0.457, 0.48)
OF_CROPS = {"mean": MEAN, "std": (1, 1, 1), "box_margin": 1.25}
README = Path(__file__).parents[2] / "saved_models" / "README.md"


def tflite(version: Path) -> Path:
    return version.with_suffix(".tflite")


def crops(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


def serve(model, signature: str = "serving_default", **inputs) -> dict[str, np.ndarray]:
    output = model.signatures[signature](**{name: tf.constant(x) for name, x in inputs.items()})
    return {name: value.numpy() for name, value in output.items()}


def assert_same(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted) and wanted
    for name in wanted:
        assert found[name].dtype == np.float32
        # In unit coordinates 0.01 pixel is 2e-4 of a crop here, 0.05 mm is 3e-5.
        atol = {"px": 1e-2, "mm": 5e-2}.get(name[-2:], 1e-4)
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=atol, err_msg=name)


def build(
    head: str, output_layer: str | None = None, skeleton: Skeleton = COCO17, dims: int = 2
) -> keras.Model:
    """A regressor whose joints differ, which they do not at its initial weights."""
    keras.utils.set_random_seed(0)
    regressor = build_regressor(
        "mobilenet_v2", skeleton, dims, (SIZE, SIZE), head=head, output_layer=output_layer
    )
    # With the statistics of a batch, features do not fade from layer to layer.
    for layer in regressor.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    regressor(np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)), training=True)
    for layer in regressor.layers:
        if layer.name.endswith("_dense"):
            layer.kernel.assign(layer.kernel * 100)
    return regressor


def build_lifter() -> keras.Model:
    layers = keras.layers
    keras.utils.set_random_seed(0)
    joints = len(H36M18.joints)
    keypoints = keras.Input((joints, 2))
    x = layers.Dense(64, "relu")(layers.BatchNormalization()(layers.Flatten()(keypoints)))
    mu, deviation = (layers.Reshape((joints, 3))(layers.Dense(joints * 3)(x)) for _ in "ab")
    return keras.Model(keypoints, {"mu": mu, "log_sigma": keras.ops.log_sigmoid(deviation)})


# The last map, 2x2, is too coarse for a soft-argmax.
@pytest.fixture(
    scope="module", params=[("pooled", None), ("soft_argmax", "block_4_add")], ids=lambda p: p[0]
)
def exported(request, tmp_path_factory):
    """A version's folder, saved_models/demo/1 of a new folder, with the `.tflite` beside it.

    The outputs of Keras for `crops(3)` lie beside that as keras.npz.
    """
    regressor = build(*request.param)
    root = tmp_path_factory.mktemp(request.param[0])
    version = export_savedmodel(
        regressor, root / "saved_models" / "demo", skeleton=COCO17, **OF_CROPS
    )
    assert export_litert(version, tflite(version)) == tflite(version)
    normalised = (crops(3) / 255 - np.array(MEAN)).astype(np.float32)
    np.savez(root / "keras.npz", **regressor(normalised, training=False))
    return version


@pytest.fixture(scope="module")
def saved_model(exported):
    return tf.saved_model.load(str(exported))


def test_saved_model_equals_keras(exported, saved_model):
    keras_output = np.load(exported.parents[2] / "keras.npz")
    for batch in (3, 1):
        found = serve(saved_model, image=crops(3)[:batch])
        mu, log_sigma = keras_output["mu"][:batch], keras_output["log_sigma"][:batch]
        assert np.ptp(mu) > 0.05
        np.testing.assert_allclose(found["mu"], mu, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["sigma"], np.exp(log_sigma), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["keypoints_px"], (mu + 0.5) * SIZE, rtol=0, atol=1e-3)


def test_equals_saved_model_at_any_batch(exported, saved_model):
    runner = Interpreter(str(tflite(exported))).get_signature_runner("serving_default")
    (detail,) = runner.get_input_details().values()
    assert detail["dtype"] == np.uint8
    assert list(detail["shape_signature"]) == [-1, SIZE, SIZE, 3]
    for batch in (1, 3, 2):
        assert_same(runner(image=crops(batch)), serve(saved_model, image=crops(batch)))


def test_resized_input(exported, saved_model):
    interpreter = Interpreter(str(tflite(exported)))
    (image,) = interpreter.get_input_details()
    assert list(image["shape"]) == [1, SIZE, SIZE, 3]
    interpreter.resize_tensor_input(image["index"], [3, SIZE, SIZE, 3])
    interpreter.allocate_tensors()
    interpreter.set_tensor(image["index"], crops(3))
    interpreter.invoke()
    outputs = interpreter.get_signature_runner("serving_default").get_output_details()
    found = {name: interpreter.get_tensor(detail["index"]) for name, detail in outputs.items()}
    assert_same(found, serve(saved_model, image=crops(3)))


@pytest.fixture(scope="module")
def exported_3d(tmp_path_factory):
    """The folder of a 3D image regressor, whose weights are 8.8 MB, with the `.tflite` beside."""
    regressor = build("pooled", None, H36M18, 3)
    version = export_savedmodel(
        regressor, tmp_path_factory.mktemp("3d"), skeleton=H36M18, spread=(0.8, 0.5, 0.25),
        **OF_CROPS,
    )  # fmt: skip
    export_litert(version, tflite(version))
    return version


@pytest.fixture(scope="module")
def exported_lifter(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lifter")
    version = export_savedmodel(build_lifter(), directory, skeleton=H36M18, spread=(0.8, 0.5, 0.25))
    export_litert(version, tflite(version))
    return version


def test_every_signature_in_three_dimensions(exported_3d, exported_lifter, views, detections):
    for version, signature, inputs in (
        (exported_3d, "serving_default", lambda batch: {"image": crops(batch)}),
        (exported_3d, "to_camera", lambda batch: {"image": crops(batch), **views(batch)}),
        (exported_lifter, "serving_default", lambda batch: detections(batch, len(H36M18.joints))),
    ):
        model = tf.saved_model.load(str(version))
        interpreter = Interpreter(str(tflite(version)))
        assert interpreter.get_signature_list().keys() == model.signatures.keys()
        runner = interpreter.get_signature_runner(signature)
        for batch in (1, 3):
            wanted = serve(model, signature, **inputs(batch))
            assert np.ptp(wanted.get("keypoints_mm", wanted.get("depth_mm"))) > 100
            assert_same(runner(**inputs(batch)), wanted)


def test_bare_interpreter_takes_the_first_signature_of_the_alphabet(exported_3d):
    """Which is `serving_default`, as every program for one signature expects."""
    (detail,) = Interpreter(str(tflite(exported_3d))).get_input_details()
    assert detail["name"].removesuffix(":0") == "serving_default_image"


def test_signatures_share_the_weights(exported_3d):
    variables = (exported_3d / "variables" / "variables.data-00000-of-00001").stat().st_size
    assert variables > 8e6
    assert tflite(exported_3d).stat().st_size < 1.1 * variables


def test_builtin_ops_alone(exported, exported_3d, exported_lifter):
    for version in (exported, exported_3d, exported_lifter):
        # Custom ops, which TensorFlow's "Flex" ones are, are named in the file.
        assert b"Flex" not in tflite(version).read_bytes()
        Interpreter(str(tflite(version))).allocate_tensors()


def test_readme_example_needs_no_tensorflow(exported, saved_model):
    root = exported.parents[2]
    Image.fromarray(crops(1)[0]).save(root / "crop.jpg", "png")
    example = re.search(r"## LiteRT.*?```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    code = (
        "import sys\nfor name in ['tensorflow', 'keras', 'rle_tf']: sys.modules[name] = None\n"
        f"{example}\nnp.savez('result.npz', **result)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert [line.split()[0] for line in process.stdout.splitlines()] == list(COCO17.joints)
    assert_same(dict(np.load(root / "result.npz")), serve(saved_model, image=crops(1)))


def test_nothing_but_the_file_is_left(exported):
    assert {entry.name for entry in exported.parent.iterdir()} == {"1", "1.tflite"}
    # Readable by whoever reads the model beside it.
    assert tflite(exported).stat().st_mode == (exported / "saved_model.pb").stat().st_mode


def test_graph_that_cannot_be_converted(tmp_path, capfd):
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": tf.linalg.det(x)}, [tf.TensorSpec((None, 3, 3), name="x")]
    )
    tf.saved_model.save(module, str(tmp_path / "det"), {"serving_default": module.call})
    path = tmp_path / "out" / "model.tflite"
    path.parent.mkdir()
    path.write_bytes(b"earlier")
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"det: the conversion ended .*\n.*MatrixDeterminant"):
        export_litert(tmp_path / "det", path)
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == b"earlier"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_saved_model_or_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"nothing: found no saved_model\.pb"):
        export_litert(tmp_path / "nothing", tmp_path / "model.tflite")
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError, match="is a folder; expected a file"):
        export_litert(tmp_path, tmp_path)
