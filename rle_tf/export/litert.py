"""An exported SavedModel as a `.tflite` file for LiteRT (TensorFlow Lite), and what it says of it.

`docs/litert.md` has sizes, errors and latencies of each precision.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from rle_tf.data.pipeline import evaluation_batches, named_image_errors
from rle_tf.data.source import InputFormat, Source
from rle_tf.errors import ModelError
from rle_tf.evaluation import pixel_format
from rle_tf.export.converter_process import check_paths, run_converter
from rle_tf.export.formats import Precision, crops_signature
from rle_tf.export.savedmodel import read_metadata

# Fewer crops than these do not show what activations come to.
MIN_CALIBRATION_CROPS = 16

# What the numbers are, by the model's kind of input, the signature and the tensor's name.
_XY_OF_CROP = "pixels of the crop, x and y"
_XY_OF_PHOTO = "pixels of the photograph, x and y"
_CONFIDENCE = "probability of being off by less than a tenth of the person's size, 0 to 1"
_MM = "mm from the root joint: x right, y down, z away from the camera"
_OF_CROPS = {
    "image": "crops of one person each, RGB, 0 to 255",
    "mu": "x and y: pixel / (W, H) - 0.5 of the crop; z: mm / 2000 from the root joint",
    "sigma": "as mu",
    "score": "1 - mean of sigma, 0 to 1",
    "confidence": _CONFIDENCE,
    "keypoints_px": _XY_OF_CROP,
    "sigma_px": _XY_OF_CROP,
    "depth_mm": "mm from the root joint, positive is farther from the camera",
    "depth_sigma_mm": "mm",
}
_UNITS = {
    ("image", "serving_default"): _OF_CROPS,
    ("image", "serving_default_flip_test"): _OF_CROPS,
    ("image", "to_camera"): {
        "image": "crops of one person each, RGB, 0 to 255",
        "crop_box_xyxy": "pixels of the photograph: left, top, right, bottom",
        "focal_px": _XY_OF_PHOTO,
        "centre_px": _XY_OF_PHOTO,
        "root_depth_mm": "mm from the camera",
        "keypoints_mm": _MM,
        "keypoints_px": _XY_OF_PHOTO,
        "sigma_mm": "mm along each axis",
        "score": "1 - mean of sigma, 0 to 1",
        "confidence": _CONFIDENCE,
    },
    ("keypoints", "serving_default"): {
        "keypoints_px": _XY_OF_PHOTO,
        "image_wh": "pixels, width and height of the photograph",
        "mu": "mm / 2000 from the root joint: x right, y down, z away from the camera",
        "sigma": "as mu",
        "score": "1 - mean of sigma, 0 to 1",
        "keypoints_mm": _MM,
        "sigma_mm": "mm along each axis",
    },
}


def export_litert(
    saved_model_dir: str | Path,
    path: str | Path,
    precision: Precision | str = Precision.float32,
    calibration: np.ndarray | None = None,
    flip_test: bool = False,
) -> Path:
    """Converts a SavedModel that `export_savedmodel` wrote, with LiteRT's builtin operators alone.

    The file has `serving_default` and, of a 3D image regressor, `to_camera`: with the SavedModel's
    names, shapes, dtypes and units at every precision, uint8 crops in and float32 out. The other
    signatures decode images, which LiteRT cannot. A signature runner takes any B; the weights are
    in the file once.

    A bare interpreter sees `serving_default`, which comes first in the alphabet. It starts at B = 1
    and takes another after `resize_tensor_input`.

    Beside the file, by its name and `.json`, lies what a program on a device has to know: the
    metadata of `read_metadata` but for the normalisation, which is inside, and
        file, sha256: the `.tflite` that it is of;
        precision: a `Precision`;
        signatures: {name: {"inputs": {name: tensor}, "outputs": {name: tensor}}}, a tensor being
            its `shape` (-1 is free), `dtype`, `unit` and `position`, its place in the lists of
            programs that go by number.

    Args:
        saved_model_dir: A version's folder.
        path: The file to write, by convention VERSION-PRECISION.tflite; replaced when it and its
            JSON are complete, its folder made if absent.
        precision: What it holds and computes in.
        calibration: (N, H, W, 3) uint8, crops as they will be sent, for int8 alone: see
            `calibration_crops`.
        flip_test: Of an image regressor: whether the file has `serving_default_flip_test`, too.
            Without one it is smaller, and so is the memory that it takes, as each signature's
            weights are laid out anew there.

    Returns:
        `path`.

    Raises:
        ModelError: The folder is not an exported model; `path` is a folder or ends in .json; the
            precision is unknown; it is int8 and the calibration is absent, too small or of another
            shape or dtype, or the model is a lifter; a flip test of a lifter; the converter cannot
            convert the graph, where the message ends with what it said.
    """
    saved_model_dir, path = Path(saved_model_dir), Path(path)
    check_paths(saved_model_dir, path)
    if path.suffix == ".json":
        raise ModelError(f"{path}: is the name of the JSON beside the file; expected .tflite")
    try:
        precision = Precision(precision)
    except ValueError:
        valid = ", ".join(Precision)
        raise ModelError(f"precision: found {precision!r}; expected one of {valid}") from None
    metadata = read_metadata(saved_model_dir)
    _check_calibration(metadata, precision, calibration, saved_model_dir)
    of_images = metadata["input"] == "image"
    if flip_test and not of_images:
        raise ModelError(
            f"{saved_model_dir}: a lifter, which is exported without flip test; expected a model "
            "that looks at images, or flip_test=False"
        )
    signatures = [crops_signature(False)]
    signatures += [crops_signature(True)] * flip_test
    signatures += ["to_camera"] * (of_images and metadata["dims"] == 3)

    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as temporary:
        model, crops = Path(temporary, path.name), Path(temporary, "calibration.npy")
        arguments = [saved_model_dir, model, precision, ",".join(signatures)]
        if precision == Precision.int8:
            np.save(crops, calibration)
            arguments.append(crops)
        run_converter(
            "rle_tf.export.litert_converter",
            arguments,
            saved_model_dir,
            "a graph that TensorFlow Lite's builtin ops can express",
        )
        about = _about(model, metadata, precision)
        written = model.with_suffix(".json")
        written.write_text(json.dumps(about, indent=1) + "\n")
        # The JSON first: no file is ever without one.
        os.replace(written, path.with_suffix(".json"))
        os.replace(model, path)
    return path


def calibration_crops(source: Source, input_format: InputFormat, count: int = 128) -> np.ndarray:
    """Crops of people spread over a source, without augmentation, as a deployment sends them.

    Args:
        source: Whose people; the training split's, so that what is measured on others holds.
        input_format: The regressor's.
        count: How many, at most: fewer where there are fewer people.

    Returns:
        (N, H, W, 3) uint8 RGB.

    Raises:
        DataError: for an image that cannot be used, or no people.
        ModelError: if the regressor does not look at images.
    """
    if not input_format.reads_images:
        raise ModelError("calibration: found a lifter, which takes keypoints; expected images")
    people = len(source.records)
    rows = np.unique(np.linspace(0, people - 1, min(count, people)).astype(int))
    records = source.records.take(rows)
    batches = evaluation_batches(
        records, source.skeleton, pixel_format(input_format), batch_size=min(count, 64)
    )
    with named_image_errors(records, input_format):
        crops = [np.round(crops.numpy()).astype(np.uint8) for crops, _ in batches]
    return np.concatenate(crops)


def operators(path: str | Path) -> dict[str, int]:
    """How often each operator is in a `.tflite` file, by LiteRT's names, in all its signatures.

    Raises:
        ModelError: One of them is not built into LiteRT: a custom one, as TensorFlow's are.
    """
    model = schema.ModelT.InitFromPackedBuf(Path(path).read_bytes())
    codes = model.operatorCodes
    custom = [code.customCode.decode() for code in codes if code.customCode]
    if custom:
        raise ModelError(f"{path}: found the operators {', '.join(custom)}; expected builtin ones")
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    counts = Counter(
        names[codes[node.opcodeIndex].builtinCode]
        for graph in model.subgraphs
        for node in graph.operators
    )
    return dict(sorted(counts.items()))


def _check_calibration(
    metadata: dict, precision: Precision, calibration: np.ndarray | None, saved_model_dir: Path
) -> None:
    if precision != Precision.int8:
        if calibration is not None:
            raise ModelError(f"calibration: found crops; expected none for precision {precision}")
        return
    if metadata["input"] != "image":
        raise ModelError(
            f"{saved_model_dir}: a lifter, which takes keypoints; expected a model that looks at"
            " images for precision int8, or float32, float16 or dynamic_int8"
        )
    height, width = metadata["image_size"]
    expected = (
        f"{MIN_CALIBRATION_CROPS} or more crops (N, {height}, {width}, 3) of uint8 for precision"
        " int8, as `calibration_crops` gives them"
    )
    if calibration is None:
        raise ModelError(f"calibration: found none; expected {expected}")
    shape, dtype = np.shape(calibration), np.asarray(calibration).dtype
    if shape[1:] != (height, width, 3) or shape[0] < MIN_CALIBRATION_CROPS or dtype != np.uint8:
        raise ModelError(f"calibration: found {shape} of {dtype}; expected {expected}")


def _about(model: Path, metadata: dict, precision: Precision) -> dict:
    # Without the delegate that computes, which announces itself on the terminal.
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(model), experimental_op_resolver_type=resolver)
    parsed = schema.ModelT.InitFromPackedBuf(model.read_bytes())
    graphs = {
        definition.signatureKey.decode(): parsed.subgraphs[definition.subgraphIndex]
        for definition in parsed.signatureDefs
    }
    signatures = {}
    for name, graph in graphs.items():
        runner = interpreter.get_signature_runner(name)
        sides = {
            "inputs": (runner.get_input_details(), list(graph.inputs)),
            "outputs": (runner.get_output_details(), list(graph.outputs)),
        }
        units = _UNITS[metadata["input"], name]
        signatures[name] = {
            side: {
                tensor: {
                    "shape": [int(n) for n in detail["shape_signature"]],
                    "dtype": np.dtype(detail["dtype"]).name,
                    "unit": units[tensor],
                    "position": order.index(detail["index"]),
                }
                for tensor, detail in details.items()
            }
            for side, (details, order) in sides.items()
        }
    return {
        "file": model.name,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "precision": precision.value,
        **{key: value for key, value in metadata.items() if key not in ("mean", "std")},
        "versions": {**metadata["versions"], "converter": installed_version("tensorflow")},
        "signatures": signatures,
    }
