import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from rle_tf.errors import ModelError
from rle_tf.export.litert import export_litert
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17

SIZE = 64
UNITS = {"mu": 1e-4, "sigma": 1e-4, "score": 1e-4, "keypoints_px": 1e-2, "sigma_px": 1e-2}
README = Path(__file__).parents[2] / "saved_models" / "README.md"


def crops(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)


def serve(version: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    return {name: value.numpy() for name, value in signature(image=tf.constant(image)).items()}


def assert_same(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted) == set(UNITS)
    for name, atol in UNITS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module", params=["pooled", "soft_argmax"])
def exported(request, tmp_path_factory):
    """A version's folder with `model.tflite` in it, under saved_models/demo/ of a new folder."""
    tf.keras.utils.set_random_seed(0)
    regressor = build_regressor("mobilenet_v2", COCO17, 2, (SIZE, SIZE), head=request.param)
    # The heads start so small that every joint is at the centre: agreement would mean little.
    for layer in regressor.layers:
        if layer.name.endswith("_dense") or layer.name == "score_maps":
            layer.kernel.assign(layer.kernel * 100)
    directory = tmp_path_factory.mktemp(request.param) / "saved_models" / "demo"
    version = export_savedmodel(
        regressor, directory, skeleton=COCO17, mean=(0.406, 0.457, 0.48), std=(1, 1, 1)
    )
    assert export_litert(version, version / "model.tflite") == version / "model.tflite"
    return version


def test_equals_saved_model_at_any_batch(exported):
    runner = Interpreter(str(exported / "model.tflite")).get_signature_runner("serving_default")
    (detail,) = runner.get_input_details().values()
    assert detail["dtype"] == np.uint8
    assert list(detail["shape_signature"]) == [-1, SIZE, SIZE, 3]
    for batch in (1, 3, 2):
        wanted = serve(exported, crops(batch))
        assert np.ptp(wanted["keypoints_px"]) > 1
        assert_same(runner(image=crops(batch)), wanted)


def test_resized_input(exported):
    interpreter = Interpreter(str(exported / "model.tflite"))
    (image,) = interpreter.get_input_details()
    assert list(image["shape"]) == [1, SIZE, SIZE, 3]
    interpreter.resize_tensor_input(image["index"], [3, SIZE, SIZE, 3])
    interpreter.allocate_tensors()
    interpreter.set_tensor(image["index"], crops(3))
    interpreter.invoke()
    outputs = interpreter.get_signature_runner("serving_default").get_output_details()
    found = {name: interpreter.get_tensor(detail["index"]) for name, detail in outputs.items()}
    assert_same(found, serve(exported, crops(3)))


def test_builtin_ops_alone(exported):
    # Custom ops, which TensorFlow's "Flex" ones are, are named in the file.
    assert b"Flex" not in (exported / "model.tflite").read_bytes()
    Interpreter(str(exported / "model.tflite")).allocate_tensors()


def test_readme_example_needs_no_tensorflow(exported):
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
    assert_same(dict(np.load(root / "result.npz")), serve(exported, crops(1)))


def test_nothing_but_the_file_is_left(exported):
    names = {entry.name for entry in exported.iterdir()}
    assert not any(name.startswith(".") for name in names)
    # Readable by whoever reads the model beside it.
    modes = {(exported / name).stat().st_mode for name in ("model.tflite", "fingerprint.pb")}
    assert len(modes) == 1


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
