import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from rle_tf import geometry
from rle_tf.data.confidence import Confidence
from rle_tf.data.crops import CropFormat
from rle_tf.data.lifting import KeypointFormat
from rle_tf.data.source import Records
from rle_tf.errors import DataError, ModelError
from rle_tf.export.formats import Precision
from rle_tf.export.litert import calibration_crops, export_litert, operators
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17, H36M18, Skeleton

SIZE = 64
MEAN = (0.406, 0.457, 0.48)
OF_CROPS = {"mean": MEAN, "std": (1.0, 1.0, 1.0), "box_margin": 1.25}
README = Path(__file__).parents[2] / "saved_models" / "README.md"


def tflite(version: Path, precision: str = "float32") -> Path:
    return version.with_name(f"{version.name}-{precision}.tflite")


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
@pytest.fixture(scope="module", params=["pooled", "soft_argmax"])
def exported(request, tmp_path_factory):
    """A version's folder, saved_models/demo/1 of a new folder, with float32 and int8 beside it.

    The outputs of Keras for `crops(3)` lie beside that as keras.npz.
    """
    regressor = build(request.param, "block_4_add")
    root = tmp_path_factory.mktemp(request.param)
    version = export_savedmodel(
        regressor, root / "saved_models" / "demo", skeleton=COCO17, **OF_CROPS
    )
    assert export_litert(version, tflite(version), flip_test=True) == tflite(version)
    export_litert(version, tflite(version, "int8"), Precision.int8, crops(16), flip_test=True)
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


def test_flip_test(exported, saved_model):
    runner = Interpreter(str(tflite(exported))).get_signature_runner("serving_default_flip_test")
    for batch in (1, 3, 2):
        found = runner(image=crops(batch))
        assert_same(found, serve(saved_model, "serving_default_flip_test", image=crops(batch)))
        plain = serve(saved_model, image=crops(batch))
        assert np.abs(found["keypoints_px"] - plain["keypoints_px"]).max() > 0.1


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
    """The folder of a 3D image regressor, with float32 and int8 beside."""
    regressor = build("pooled", "block_4_add", H36M18, 3)
    version = export_savedmodel(
        regressor, tmp_path_factory.mktemp("3d"), skeleton=H36M18, spread=(0.8, 0.5, 0.25),
        **OF_CROPS,
    )  # fmt: skip
    export_litert(version, tflite(version))
    export_litert(version, tflite(version, "int8"), "int8", crops(16), flip_test=True)
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
        assert interpreter.get_signature_list().keys() <= model.signatures.keys()
        runner = interpreter.get_signature_runner(signature)
        for batch in (1, 3):
            wanted = serve(model, signature, **inputs(batch))
            assert np.ptp(wanted.get("keypoints_mm", wanted.get("depth_mm"))) > 100
            assert_same(runner(**inputs(batch)), wanted)


def test_bare_interpreter_takes_the_first_signature_of_the_alphabet(exported_3d):
    """Which is `serving_default`, as every program for one signature expects."""
    for precision in ("float32", "int8"):
        (detail,) = Interpreter(str(tflite(exported_3d, precision))).get_input_details()
        assert detail["name"].removesuffix(":0") == "serving_default_image"


def test_what_looks_at_photographs_stays_behind(exported, exported_3d, exported_lifter):
    for version, signatures in (
        (exported, {"serving_default", "serving_default_flip_test"}),
        (exported_3d, {"serving_default", "to_camera"}),
        (exported_lifter, {"serving_default"}),
    ):
        assert Interpreter(str(tflite(version))).get_signature_list().keys() == signatures


def model_of(path: Path) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_signatures_share_the_weights(exported_3d, precision):
    model = model_of(tflite(exported_3d, precision))

    def weights(graph: schema.SubGraphT) -> set[int]:
        data = {tensor.buffer: model.buffers[tensor.buffer].data for tensor in graph.tensors}
        return {i for i, values in data.items() if values is not None and len(values) > 1000}

    first, *others = (weights(graph) for graph in model.subgraphs)
    assert others == [first] * (2 if precision == "int8" else 1) and len(first) > 10


def test_builtin_ops_alone(exported, exported_3d, exported_lifter):
    for version in (exported, exported_3d):
        assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"} <= operators(
            tflite(version)
        ).keys()
        assert {"QUANTIZE", "DEQUANTIZE"} <= operators(tflite(version, "int8")).keys()
        Interpreter(str(tflite(version, "int8"))).allocate_tensors()
    assert "CONV_2D" not in operators(tflite(exported_lifter))


def test_a_custom_operator_is_named(exported, tmp_path):
    model = model_of(tflite(exported))
    model.operatorCodes[0].customCode = b"FlexDecodeJpeg"
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "flex.tflite").write_bytes(builder.Output())
    with pytest.raises(ModelError, match=r"flex\.tflite: found the operators FlexDecodeJpeg; exp"):
        operators(tmp_path / "flex.tflite")


# Of keypoints in pixels on average, of a crop of 64 in which they move by 3 to 8 pixels.
DEVIATION_PX = {"float32": 1e-3, "float16": 0.1, "dynamic_int8": 0.6, "int8": 0.8}


def assert_close(path: Path, version: Path, batch: int, signature: str = "serving_default") -> None:
    precision = json.loads(path.with_suffix(".json").read_text())["precision"]
    wanted = serve(tf.saved_model.load(str(version)), signature, image=crops(batch))
    found = Interpreter(str(path)).get_signature_runner(signature)(image=crops(batch))
    assert set(found) == set(wanted)
    for name, value in found.items():
        assert value.dtype == np.float32 and value.shape == wanted[name].shape
    deviation = np.abs(found["keypoints_px"] - wanted["keypoints_px"]).mean()
    # Something was rounded, and no more than that.
    assert (0 if precision == "float32" else 1e-4) <= deviation < DEVIATION_PX[precision]
    # Of the logarithm, which weights of the head are multiplied into.
    log_sigma, wanted_log = (np.log(output["sigma"]) for output in (found, wanted))
    assert np.abs(log_sigma - wanted_log).mean() < 0.3 * DEVIATION_PX[precision] + 1e-5
    np.testing.assert_allclose(found["score"], 1 - found["sigma"].mean(axis=-1), rtol=0, atol=1e-6)


def test_int8_deviates_little(exported, exported_3d):
    for version in (exported, exported_3d):
        for signature in ("serving_default", "serving_default_flip_test"):
            for batch in (1, 5):
                assert_close(tflite(version, "int8"), version, batch, signature)


def test_int8_keeps_the_root_at_zero(exported_3d):
    """What is known by definition is no matter of rounding where the heads are float."""
    runner = Interpreter(str(tflite(exported_3d, "int8"))).get_signature_runner("serving_default")
    output = runner(image=crops(4))
    assert np.all(output["depth_mm"][:, H36M18.root] == 0)
    np.testing.assert_allclose(output["sigma"][:, H36M18.root, 2], 1e-9, rtol=1e-3)


def test_int8_to_camera(exported_3d, views):
    inputs = {"image": crops(3), **views(3)}
    wanted = serve(tf.saved_model.load(str(exported_3d)), "to_camera", **inputs)
    found = Interpreter(str(tflite(exported_3d, "int8"))).get_signature_runner("to_camera")(
        **inputs
    )
    assert set(found) == set(wanted)
    # 0.8 pixels of the crop's 64 are up to 5 of a crop box of 400.
    assert 0 < np.abs(found["keypoints_px"] - wanted["keypoints_px"]).mean() < 5
    assert 0 < np.abs(found["keypoints_mm"] - wanted["keypoints_mm"]).mean() < 50


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float16", "dynamic_int8"])
def test_smaller_weights(exported, exported_3d, exported_lifter, precision, detections, tmp_path):
    def weights(path: Path) -> int:
        data = [buffer.data for buffer in model_of(path).buffers if buffer.data is not None]
        # Fewer than 1024 numbers are not worth the conversion to 8 bits.
        return sum(len(values) for values in data if len(values) > 1024)

    sizes = {"float16": (0.4, 0.51), "dynamic_int8": (0.2, 0.4)}
    for version in (exported, exported_3d):
        path = export_litert(version, tmp_path / f"{version.parent.name}.tflite", precision)
        assert_close(path, version, 1)
        assert_close(path, version, 3)
        low, high = sizes[precision]
        assert low < weights(path) / weights(tflite(version)) < high
        if precision == "dynamic_int8":
            assert_a_scale_for_each_channel(path, 5)
        assert not [name for name in operators(path) if name == "QUANTIZE"]
    path = export_litert(exported_lifter, tmp_path / "lifter.tflite", precision)
    inputs = detections(3, len(H36M18.joints))
    wanted = serve(tf.saved_model.load(str(exported_lifter)), **inputs)
    found = Interpreter(str(path)).get_signature_runner("serving_default")(**inputs)
    off_mm = np.abs(found["keypoints_mm"] - wanted["keypoints_mm"]).mean()
    assert 0 < off_mm < 0.02 * np.ptp(wanted["keypoints_mm"])


@pytest.mark.slow
def test_soft_argmax_in_three_dimensions(tmp_path):
    regressor = build("soft_argmax", "block_4_add", H36M18, 3)
    version = export_savedmodel(regressor, tmp_path, skeleton=H36M18, **OF_CROPS)
    path = export_litert(version, tflite(version, "int8"), "int8", crops(16))
    assert_close(path, version, 3)
    assert set(_float_convolutions(path, "serving_default")) == {"stem", "heads"}


def test_int8_weights_have_a_scale_for_each_channel(exported):
    assert_a_scale_for_each_channel(tflite(exported, "int8"), 10)


def assert_a_scale_for_each_channel(path: Path, convolutions: int) -> None:
    model = model_of(path)
    graph = model.subgraphs[0]
    checked = 0
    for kind, node in _nodes(model, graph):
        weights = graph.tensors[node.inputs[1]] if "CONV" in kind else None
        if weights is None or weights.type != schema.TensorType.INT8:
            continue
        axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
        assert weights.quantization.quantizedDimension == axis
        scales = weights.quantization.scale
        assert len(scales) == weights.shape[axis] and len(np.unique(scales)) > len(scales) / 2
        # Symmetric, and each channel fills its range.
        assert not weights.quantization.zeroPoint.any()
        values = model.buffers[weights.buffer].data.view(np.int8).reshape(weights.shape)
        assert np.abs(values.astype(int)).max(axis=tuple({0, 1, 2, 3} - {axis})).min() == 127
        checked += 1
    assert checked > convolutions


def _nodes(model: schema.ModelT, graph: schema.SubGraphT) -> list[tuple[str, schema.OperatorT]]:
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    return [(names[model.operatorCodes[n.opcodeIndex].builtinCode], n) for n in graph.operators]


def _float_convolutions(path: Path, signature: str) -> dict[str, list[str]]:
    """Kinds of the nodes with float weights, before and behind the int8 part of a model."""
    model = model_of(path)
    (definition,) = [d for d in model.signatureDefs if d.signatureKey.decode() == signature]
    graph = model.subgraphs[definition.subgraphIndex]
    nodes = _nodes(model, graph)
    kinds = [kind for kind, _ in nodes]
    start, end = kinds.index("QUANTIZE"), kinds.index("DEQUANTIZE")
    # Once in, once out: the int8 part is in one piece.
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1 and start < end
    float32, int8 = schema.TensorType.FLOAT32, schema.TensorType.INT8

    def types(node) -> set[int]:
        tensors = [graph.tensors[i] for i in [*node.inputs, *node.outputs]]
        return {t.type for t in tensors if t.type in (float32, int8)}

    for place, (_, node) in enumerate(nodes):
        if place not in (start, end):
            assert types(node) <= ({int8} if start < place < end else {float32})
    assert list(graph.tensors[nodes[end][1].inputs[0]].shape)[1:3] != [1, 1]  # the map itself

    def weighted(part) -> list[str]:
        kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        return sorted(kind for kind, _ in part if kind in kinds)

    return {"stem": weighted(nodes[:start]), "heads": weighted(nodes[end:])}


def test_stem_and_heads_are_float_and_all_between_is_int8(exported, exported_3d):
    soft_argmax = exported.parents[2].name.startswith("soft_argmax")
    for path, signature, heads in (
        *(
            (
                tflite(exported, "int8"),
                signature,
                # Sigma's layer and the maps'; a mean over the grid is a product with its places.
                ["CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED"] if soft_argmax
                else ["FULLY_CONNECTED"] * 2,
            )
            for signature in ("serving_default", "serving_default_flip_test")
        ),
        (tflite(exported_3d, "int8"), "serving_default", ["FULLY_CONNECTED"] * 2),
        (tflite(exported_3d, "int8"), "serving_default_flip_test", ["FULLY_CONNECTED"] * 2),
        (tflite(exported_3d, "int8"), "to_camera", ["FULLY_CONNECTED"] * 2),
    ):  # fmt: skip
        assert _float_convolutions(path, signature) == {
            "stem": ["CONV_2D", "DEPTHWISE_CONV_2D"],
            "heads": heads,
        }


def test_a_network_without_depthwise_convolutions_is_int8_from_its_first_layer(tmp_path):
    image = keras.Input((32, 32, 3))
    x = image
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, 2, "same", activation="relu")(x)
    # Two branches that meet again are no bottleneck.
    x = x + keras.layers.Conv2D(16, 1, activation="relu")(x)
    regressor = build_regressor(keras.Model(image, x), COCO17, 2, (32, 32))
    version = export_savedmodel(regressor, tmp_path, skeleton=COCO17, **OF_CROPS)
    calibration = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    path = export_litert(version, tflite(version, "int8"), "int8", calibration)
    found = _float_convolutions(path, "serving_default")
    assert found == {"stem": [], "heads": ["FULLY_CONNECTED"] * 2}


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 1.2])
def test_with_a_pyramid_all_but_stem_and_heads_is_int8(tmp_path, window):
    """The features are two maps there, of which one is made of the other and a finer one."""
    keras.utils.set_random_seed(0)
    regressor = build_regressor(
        "mobilenet", COCO17, 2, (SIZE, SIZE), head="soft_argmax", output_layer="conv_pw_7_relu",
        pyramid=["conv_pw_3_relu"], pyramid_channels=16, map_sigma=True, map_window=window,
    )  # fmt: skip
    confidence = Confidence(np.linspace(-3, -1, 5), np.tile(np.linspace(1, 0, 5), (17, 1)))
    version = export_savedmodel(
        regressor, tmp_path, skeleton=COCO17, confidence=confidence, **OF_CROPS
    )
    path = export_litert(version, tflite(version, "int8"), "int8", crops(16), flip_test=True)
    model = model_of(path)
    assert len(model.subgraphs) == 2
    for graph in model.subgraphs:
        weighted = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
        in_float = [
            kind
            for kind, node in _nodes(model, graph)
            if kind in weighted and graph.tensors[node.outputs[0]].type == schema.TensorType.FLOAT32
        ]
        # First convolution, first depthwise; the cells' scores, sigma, the grid's product or two.
        assert in_float[:2] == ["CONV_2D", "DEPTHWISE_CONV_2D"]
        assert sorted(set(in_float[2:])) == ["CONV_2D", "FULLY_CONNECTED"]
        assert in_float[2:].count("CONV_2D") == 1
    found = Interpreter(str(path)).get_signature_runner("serving_default")(image=crops(3))
    wanted = serve(tf.saved_model.load(str(version)), image=crops(3))
    assert set(found) == set(wanted) and "confidence" in found
    off = np.abs(found["keypoints_px"] - wanted["keypoints_px"])
    # Of maps that learned nothing another cell may be the highest after rounding.
    assert (off.max() if window is None else np.quantile(off, 0.7)) < 1
    np.testing.assert_allclose(found["confidence"], wanted["confidence"], atol=0.05)


def test_sidecar_says_what_a_device_has_to_know(exported, exported_3d, exported_lifter):
    for version, precision in ((exported, "int8"), (exported_3d, "int8"), (exported_lifter, None)):
        path = tflite(version, precision or "float32")
        about = json.loads(path.with_suffix(".json").read_text())
        assert about["file"] == path.name
        assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["precision"] == (precision or "float32")
        metadata = json.loads((version / "assets.extra" / "rle_tf.json").read_text())
        versions = about.pop("versions")
        assert versions == {**metadata.pop("versions"), "converter": tf.__version__}
        # What is inside already must not be done again.
        assert "mean" not in about and "std" not in about
        del metadata["mean"], metadata["std"]
        assert about.items() >= metadata.items()

        interpreter = Interpreter(str(path))
        assert about["signatures"].keys() == interpreter.get_signature_list().keys()
        for name, signature in about["signatures"].items():
            runner = interpreter.get_signature_runner(name)
            for side, details in (
                ("inputs", runner.get_input_details()),
                ("outputs", runner.get_output_details()),
            ):
                assert signature[side].keys() == details.keys()
                positions = [tensor["position"] for tensor in signature[side].values()]
                assert sorted(positions) == list(range(len(details)))
                for tensor, detail in details.items():
                    entry = signature[side][tensor]
                    assert entry["shape"] == list(detail["shape_signature"])
                    assert entry["shape"][0] == -1
                    assert np.dtype(entry["dtype"]) == detail["dtype"]
                    assert tensor[-2:] not in ("px", "mm") or (
                        {"px": "pixels", "mm": "mm"}[tensor[-2:]] in entry["unit"]
                    )
    image = about_of(exported, "int8")["signatures"]["serving_default"]["inputs"]["image"]
    assert image["dtype"] == "uint8" and image["shape"] == [-1, SIZE, SIZE, 3]


def about_of(version: Path, precision: str) -> dict:
    return json.loads(tflite(version, precision).with_suffix(".json").read_text())


def test_positions_are_those_of_a_bare_interpreter(exported):
    path = tflite(exported, "int8")
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], crops(1))
    interpreter.invoke()
    outputs = about_of(exported, "int8")["signatures"]["serving_default"]["outputs"]
    details = interpreter.get_output_details()
    found = {
        name: interpreter.get_tensor(details[entry["position"]]["index"])
        for name, entry in outputs.items()
    }
    assert_same(
        found, Interpreter(str(path)).get_signature_runner("serving_default")(image=crops(1))
    )


class PhotographsSource:
    """Five people in two photographs, one of them at an edge."""

    skeleton = COCO17

    def __init__(self, folder: Path):
        rng = np.random.default_rng(4)
        for i in range(2):
            noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            noise.resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        low = rng.uniform(10, 50, (5, 2))
        low[0] = 0
        self.records = Records(
            image_paths=np.array([str(folder / f"{i % 2}.png") for i in range(5)], dtype=object),
            image_wh=np.full((5, 2), [120, 90], np.int32),
            boxes_xyxy=np.concatenate([low, low + rng.uniform(20, 38, (5, 2))], axis=1),
            keypoints=np.zeros((5, 17, 2), np.float32),
            labelled=np.ones((5, 17), bool),
            cameras=np.full((5, 5), np.nan),
            areas=np.ones(5),
            image_ids=np.arange(5) % 2,
            person_ids=np.arange(5),
            box_scores=np.zeros(5),
        )


def test_calibration_crops_are_what_a_deployment_sends(tmp_path):
    source = PhotographsSource(tmp_path)
    input_format = CropFormat((64, 32), MEAN, (0.2, 0.3, 0.4))
    found = calibration_crops(source, input_format)
    assert found.shape == (5, 64, 32, 3) and found.dtype == np.uint8
    boxes = input_format.crop_boxes(source.records)
    for crop, path, box in zip(found, source.records.image_paths, boxes, strict=True):
        matrix = geometry.crop_affine(
            tf.constant((box[:2] + box[2:]) / 2), tf.constant(box[2:] - box[:2]),
            tf.constant(0.0), (64, 32),
        )  # fmt: skip
        photo = tf.constant(np.asarray(Image.open(path)))
        wanted = tf.round(geometry.warp(photo, matrix, (64, 32))).numpy()
        # A place halfway between two levels may be rounded to either.
        assert np.abs(crop - wanted).max() <= 1 and (crop != wanted).mean() < 0.01
        assert np.ptp(crop) > 100
    spread = calibration_crops(source, input_format, 3)
    np.testing.assert_array_equal(spread, found[[0, 2, 4]])


def test_calibration_crops_of_a_lifter_or_nobody(tmp_path):
    source = PhotographsSource(tmp_path)
    with pytest.raises(ModelError, match="calibration: found a lifter, .*; expected images"):
        calibration_crops(source, KeypointFormat(0))
    source.records = source.records.take(slice(0))
    with pytest.raises(DataError, match="no people to look at"):
        calibration_crops(source, CropFormat((64, 32), MEAN, (1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("precision", "calibration", "message"),
    [
        ("int8", None, r"calibration: found none; expected 16 or more crops \(N, 64, 64, 3\) of u"),
        ("int8", crops(15), r"calibration: found \(15, 64, 64, 3\) of uint8; expected 16 or more"),
        ("int8", crops(16)[:, :32], r"found \(16, 32, 64, 3\) of uint8; expected"),
        ("int8", crops(16)[..., :1], r"found \(16, 64, 64, 1\) of uint8; expected"),
        ("int8", crops(16)[0], r"found \(64, 64, 3\) of uint8; expected"),
        ("int8", crops(16) / np.float32(255), r"found \(16, 64, 64, 3\) of float32; expected"),
        ("float16", crops(16), "calibration: found crops; expected none for precision float16"),
        (
            "int4",
            None,
            "precision: found 'int4'; expected one of float32, float16, dyn",
        ),
    ],
)
def test_bad_precision_or_calibration(exported, tmp_path, precision, calibration, message):
    with pytest.raises(ModelError, match=message):
        export_litert(exported, tmp_path / "model.tflite", precision, calibration)
    assert not list(tmp_path.iterdir())


def test_a_lifter_has_no_int8(exported_lifter, tmp_path):
    with pytest.raises(ModelError, match="a lifter, .* for precision int8, or float32, float16 or"):
        export_litert(exported_lifter, tmp_path / "model.tflite", "int8", crops(16))


def test_precisions_are_known_without_tensorflow():
    code = (
        "import sys; from rle_tf.export.formats import Precision\n"
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)\nprint(*Precision)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["float32", "float16", "dynamic_int8", "int8"]


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


def test_nothing_but_the_files_is_left(exported):
    names = {entry.name for entry in exported.parent.iterdir()}
    assert names == {
        "1", "1-float32.tflite", "1-float32.json", "1-int8.tflite", "1-int8.json",
    }  # fmt: skip
    # Readable by whoever reads the model beside it.
    for path in (tflite(exported, "int8"), tflite(exported, "int8").with_suffix(".json")):
        assert path.stat().st_mode == (exported / "saved_model.pb").stat().st_mode


def test_a_lifter_has_no_flip_test(exported_lifter, tmp_path):
    with pytest.raises(ModelError, match="a lifter, which is exported without flip test; expected"):
        export_litert(exported_lifter, tmp_path / "m.tflite", flip_test=True)
    assert not list(tmp_path.iterdir())


def test_graph_that_cannot_be_converted(exported, tmp_path, capfd):
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": tf.linalg.det(x)}, [tf.TensorSpec((None, 3, 3), name="x")]
    )
    tf.saved_model.save(module, str(tmp_path / "det"), {"serving_default": module.call})
    (tmp_path / "det" / "assets.extra").mkdir()
    shutil.copy(exported / "assets.extra" / "rle_tf.json", tmp_path / "det" / "assets.extra")
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
    with pytest.raises(ModelError, match=r"model\.json: is the name of the JSON beside the file"):
        export_litert(tmp_path, tmp_path / "model.json")
    with pytest.raises(ModelError, match=r"found no assets\.extra/rle_tf\.json"):
        export_litert(tmp_path, tmp_path / "model.tflite")
