"""ONNX files and OpenVINO's representation say what the SavedModel says."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.export.onnx import export_onnx
from rle_tf.export.openvino import export_openvino
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17, H36M18

SIZE = (64, 32)


def crops(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)


def build(head: str, dims: int) -> keras.Model:
    """A small regressor whose joints differ and whose sigma is neither 0 nor 1."""
    keras.utils.set_random_seed(0)
    image = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(16, 3, 2, "same", use_bias=False)(image)
    x = keras.layers.ReLU(6)(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, 2, "same", activation="relu")(x)
    backbone = keras.Model(image, x + keras.layers.Conv2D(16, 1)(x))
    skeleton = {2: COCO17, 3: H36M18}[dims]
    regressor = build_regressor(backbone, skeleton, dims, SIZE, head=head)
    for layer in regressor.layers:
        if layer.name.endswith(("_dense", "score_maps")):
            layer.kernel.assign(keras.random.normal(layer.kernel.shape, seed=1))
    return regressor


@pytest.fixture(
    scope="module",
    params=[
        ("pooled", 2),
        ("soft_argmax", 3),
        pytest.param(("soft_argmax", 2), marks=pytest.mark.slow),
        pytest.param(("pooled", 3), marks=pytest.mark.slow),
    ],
    ids=lambda p: f"{p[0]}-{p[1]}d",
)
def exported(request, tmp_path_factory):
    """A version's folder, with the `.onnx` beside it."""
    head, dims = request.param
    version = export_savedmodel(
        build(head, dims),
        tmp_path_factory.mktemp(head),
        skeleton={2: COCO17, 3: H36M18}[dims],
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        box_margin=1.25,
    )
    assert export_onnx(version, version.with_suffix(".onnx")) == version.with_suffix(".onnx")
    return version


@pytest.fixture(scope="module")
def session(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(
        str(exported.with_suffix(".onnx")), providers=["CPUExecutionProvider"]
    )


def equals_the_saved_model(exported, found: dict[str, np.ndarray], batch: int) -> None:
    signature = tf.saved_model.load(str(exported))  # kept: a signature does not hold it
    wanted = signature.signatures["serving_default"](image=tf.constant(crops(batch)))
    assert set(found) == set(wanted)
    assert np.ptp(found["keypoints_px"], axis=1).min() > 0.5
    for name, value in found.items():
        assert value.dtype == np.float32 and value.shape == wanted[name].shape
        atol = {"px": 1e-2, "mm": 5e-2}.get(name[-2:], 1e-4)
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_equals_the_saved_model_at_any_batch(exported, session, batch):
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {"image": crops(batch)})
    equals_the_saved_model(exported, dict(zip(names, found, strict=True)), batch)


@pytest.mark.slow
def test_openvino_equals_the_saved_model_at_any_batch(exported, tmp_path):
    openvino = pytest.importorskip("openvino")
    path = export_openvino(exported, tmp_path / "1.xml")
    # One model in two files, and no other is left.
    assert {entry.name for entry in tmp_path.iterdir()} == {"1.xml", "1.bin"}
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (image,) = compiled.inputs
    assert image.any_name == "image" and image.element_type == openvino.Type.u8
    for batch in (1, 5):
        output = compiled({"image": crops(batch)})
        found = {port.any_name: value for port, value in output.items()}
        equals_the_saved_model(exported, found, batch)


def test_takes_uint8_and_a_free_batch(exported, session):
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert not isinstance(image.shape[0], int) and image.shape[1:] == [*SIZE, 3]
    # One file, readable by whoever reads the model, and no other is left.
    (path,) = [path for path in exported.parent.iterdir() if path != exported]
    assert path.stat().st_mode == (exported / "saved_model.pb").stat().st_mode


@pytest.mark.parametrize(
    ("export", "name", "message"),
    [
        (export_onnx, "model.onnx", r"eigh: cannot be conv.*\n.*SelfAdjointEigV2"),
        pytest.param(
            export_openvino,
            "model.xml",
            r"eigh: the conversion ended with status 1; expected a graph that OpenVINO's",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_graph_that_cannot_be_expressed(tmp_path, export, name, message):
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": tf.linalg.eigh(x)[0]}, [tf.TensorSpec((None, 3, 3), name="x")]
    )
    tf.saved_model.save(module, str(tmp_path / "eigh"), {"serving_default": module.call})
    path = tmp_path / name
    path.write_bytes(b"earlier")
    with pytest.raises(ModelError, match=message):
        export(tmp_path / "eigh", path)
    assert path.read_bytes() == b"earlier"
    assert {entry.name for entry in tmp_path.iterdir()} == {"eigh", name}


@pytest.mark.parametrize(
    ("export", "package", "extra"),
    [(export_onnx, "tf2onnx", "onnx"), (export_openvino, "openvino", "openvino")],
)
def test_without_the_extra(tmp_path, monkeypatch, export, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"no package {package}; .*pip install 'rle-tf\[{extra}\]'"
    with pytest.raises(ModelError, match=message):
        export(tmp_path, tmp_path / "model")


def test_what_is_no_saved_model_or_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"nothing: found no saved_model\.pb"):
        export_onnx(tmp_path / "nothing", tmp_path / "model.onnx")
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError, match="is a folder; expected a file"):
        export_onnx(tmp_path, tmp_path)
    with pytest.raises(ModelError, match=r"nothing: found no saved_model\.pb"):
        export_openvino(tmp_path / "nothing", tmp_path / "model.xml")
    with pytest.raises(ModelError, match=r"found the suffix '\.onnx'; expected \.xml"):
        export_openvino(tmp_path, tmp_path / "model.onnx")
