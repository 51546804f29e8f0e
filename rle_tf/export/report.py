"""What an export costs and what it is worth: size, operators, accuracy, deviation, latency."""

import importlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from rle_tf.calibration import uncertainty
from rle_tf.config import RunConfig
from rle_tf.errors import ModelError
from rle_tf.evaluation import (
    Forward,
    forward_function,
    of_pixels,
    pixel_format,
    predict_outputs,
)
from rle_tf.export.formats import crops_signature
from rle_tf.export.latency import Runner, measure_latency
from rle_tf.export.litert import operators
from rle_tf.export.savedmodel import load_forward, read_metadata
from rle_tf.files import bytes_of
from rle_tf.geometry import DEPTH_MM
from rle_tf.run_folder import RunFolder, without_nan

# Of a source's metrics, what the table shows where it is there.
_SHOWN_SCORES = ("AP", "PCK@0.2", "PCK@0.1", "second_AP", "MPJPE", "PA-MPJPE")
THREADS = (1, 2)


def deployment_report(
    run: RunFolder,
    config: RunConfig,
    regressor: keras.Model,
    savedmodel: str | Path,
    files: Sequence[str | Path] = (),
    *,
    people: int | None = None,
    flip_test: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> dict:
    """Compares a run's exports with each other and with Keras, all on the same uint8 crops.

    People are those of the run's validation set, in the boxes of its `evaluate.boxes`.

    Args:
        run: A training run's folder.
        config, regressor: What is in it (`RunFolder.load`), or the config with other keys, such as
            where the data lies now.
        savedmodel: The version's folder that was exported from it.
        files: `.tflite`, `.onnx` and OpenVINO's `.xml` files that were converted from that.
        people: How many, spread over the validation set; by default all of it.
        flip_test: Whether Keras, the SavedModel and the `.tflite` files are measured with a flip
            test, too.
        on_step: Called with a line about each step before it begins.

    Returns:
        What JSON can hold:
        run, model: the two folders.
        people: how many.
        machine: processor and number of cores at hand.
        formats: a dict each, Keras first, then the SavedModel and the files as given, then those
        with a flip test:
            flip_test: whether it is one of those.
            format: "Keras", "SavedModel", "LiteRT", "ONNX" or "OpenVINO".
            precision: of LiteRT its `Precision`, "float32" of the others.
            path: the file or folder.
            bytes: its size.
            operators: {name: how often} of LiteRT, where all are builtin ones; None of others.
            scores: the source's metrics; None where one is not defined.
            deviation_px: {"mean", "p95", "max"}, distance from the keypoints of Keras, with a flip
                test from its own, in pixels of the crop.
            deviation_mm: the same of depths, in 3D; None in 2D.
            deviation_sigma: {"median", "p95"}, relative to Keras's sigma.
            latency_ms: {"1", "2"}: the median for one crop by the number of threads; None of Keras.

    Raises:
        ModelError: The regressor does not look at images, a file is absent or of another kind, its
            operators are not all builtin ones, or it lacks the flip test that is asked for.
        DataError: for an image that cannot be used.
    """
    savedmodel, files = Path(savedmodel), [Path(file) for file in files]
    image_format = config.input_format
    if not image_format.reads_images:
        raise ModelError(f"{run.path}: a lifter, which takes keypoints; expected a model of images")
    pixels = pixel_format(image_format)
    source = config.open_source("val")
    if people is not None and people < len(source.records):
        rows = np.linspace(0, len(source.records) - 1, people).astype(int)
        source = source.take(rows)
    say = on_step or (lambda line: None)
    read_metadata(savedmodel)  # which says what is wrong where it is none of ours

    def keras_forward(flip: bool) -> Forward:
        regress = forward_function(regressor, source.skeleton, image_format, flip)
        return lambda crops: regress(image_format.normalise(tf.cast(crops, tf.float32)))

    entries = [
        {"flip_test": flip, **entry}
        for flip in ([False, True] if flip_test else [False])
        for entry in (
            {
                "format": "Keras", "precision": "float32", "path": str(run.regressor),
                "operators": None, "forward": keras_forward(flip),
            },
            {
                "format": "SavedModel", "precision": "float32", "path": str(savedmodel),
                "operators": None, "forward": load_forward(savedmodel, flip),
            },
            *(_file_entry(file, flip) for file in files if not flip or file.suffix == ".tflite"),
        )
    ]  # fmt: skip
    spread, _ = uncertainty(run, regressor)
    for entry in entries:
        say(f"accuracy of {entry['path']}{', flip test' if entry['flip_test'] else ''}")
        output = predict_outputs(
            of_pixels(entry.pop("forward")),
            source.records,
            source.skeleton,
            pixels,
            batch_size=config.evaluate.batch_size,
        )
        if entry["format"] == "Keras":
            reference = output
        entry["bytes"] = bytes_of(Path(entry["path"]))
        poses = image_format.decode(output, source.records, spread)
        entry["scores"] = without_nan(source.score(poses))
        entry |= deviation(output, reference, image_format.image_size)
        entry["latency_ms"] = None
    exported = [entry for entry in entries if entry["format"] != "Keras"]
    for threads in THREADS:
        say(f"latency at {threads} thread{'s' if threads > 1 else ''}")
        runners = [Runner.of(Path(each["path"]), each["flip_test"]) for each in exported]
        measured = measure_latency(runners, threads)
        for entry, latency in zip(exported, measured, strict=True):
            entry["latency_ms"] = {**(entry["latency_ms"] or {}), str(threads): latency.median_ms}
    return {
        "run": str(run.path),
        "model": str(savedmodel),
        "people": len(source.records),
        "machine": _machine(),
        "formats": entries,
    }


def report_table(report: dict) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a table of what `deployment_report` gives: px and mm are the mean
    and the 95th percentile off from Keras, sigma the median and that; ms at 1 and 2 threads."""
    formats = report["formats"]
    shown = [name for name in _SHOWN_SCORES if formats[0]["scores"].get(name) is not None]
    in_3d = formats[0]["deviation_mm"] is not None
    header = ["format", "MB", *shown, "px", *(["mm"] * in_3d), "sigma"]
    header += [f"ms, {n}" for n in THREADS]
    rows = []
    for entry in formats:
        name = entry["format"]
        if name == "Keras" and entry["flip_test"]:
            rows.append(["flip test:", *[""] * (len(header) - 1)])
        row = [f"{name} {entry['precision']}" if name == "LiteRT" else name]
        row += [f"{entry['bytes'] / 1e6:.2f}", *(f"{entry['scores'][key]:.4f}" for key in shown)]
        if name == "Keras":  # what the others deviate from
            row += [""] * (len(header) - len(row))
        else:
            px, sigma = entry["deviation_px"], entry["deviation_sigma"]
            row.append(f"{px['mean']:.2f}, {px['p95']:.2f}")
            if in_3d:
                mm = entry["deviation_mm"]
                row.append(f"{mm['mean']:.1f}, {mm['p95']:.1f}")
            row.append(f"{sigma['median']:.1%}, {sigma['p95']:.1%}")
            row += [f"{entry['latency_ms'][str(threads)]:.2f}" for threads in THREADS]
        rows.append(row)
    return header, rows


def _file_entry(file: Path, flip_test: bool) -> dict:
    if not file.is_file():
        raise ModelError(f"{file}: no such file; expected a .tflite, .onnx or .xml file")
    if file.suffix == ".tflite":
        about = file.with_suffix(".json")
        if not about.is_file():
            raise ModelError(f"{about}: no such file; expected what `export_litert` writes")
        return {
            "format": "LiteRT", "precision": json.loads(about.read_text())["precision"],
            "path": str(file), "operators": operators(file),
            "forward": litert_forward(file, flip_test),
        }  # fmt: skip
    others = {".onnx": ("ONNX", _onnx_forward), ".xml": ("OpenVINO", _openvino_forward)}
    if file.suffix not in others:
        raise ModelError(
            f"{file}: found the suffix '{file.suffix}'; expected .tflite, .onnx or .xml"
        )
    name, forward = others[file.suffix]
    return {
        "format": name, "precision": "float32", "path": str(file), "operators": None,
        "forward": forward(file),
    }  # fmt: skip


def litert_forward(file: Path, flip_test: bool = False) -> Forward:
    """A `.tflite` file as a function of uint8 crops.

    Raises:
        ModelError: It was exported without a flip test.
    """
    interpreter, name = Interpreter(str(file)), crops_signature(flip_test)
    found = interpreter.get_signature_list()
    if name not in found:
        raise ModelError(
            f"{file}: found the signatures {', '.join(found)}; expected '{name}', which "
            "rle-tf export --flip-test writes"
        )
    runner = interpreter.get_signature_runner(name)
    return lambda crops: runner(image=crops.numpy())


def _onnx_forward(file: Path) -> Forward:
    onnxruntime = _of_extra("onnxruntime", "onnx", file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = ["mu", "sigma"]
    return lambda crops: dict(zip(names, session.run(names, {"image": crops.numpy()}), strict=True))


def _openvino_forward(file: Path) -> Forward:
    openvino = _of_extra("openvino", "openvino", file)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def forward(crops: tf.Tensor) -> dict[str, np.ndarray]:
        output = compiled({"image": crops.numpy()})
        return {name: output[name] for name in ("mu", "sigma")}

    return forward


def _of_extra(package: str, extra: str, file: Path):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ModelError(
            f"{file}: found no package {package}; expected that of: pip install 'rle-tf[{extra}]'"
        ) from None


def deviation(output: dict, reference: dict, image_size: tuple[int, int]) -> dict:
    """`deviation_px`, `deviation_mm` and `deviation_sigma` of `deployment_report`.

    Args:
        output, reference: {"mu": (N, K, D), "sigma": (N, K, D)}, as `predict_outputs` gives them.
        image_size: (height, width) of the crops.
    """
    height, width = image_size
    difference = output["mu"].astype(np.float64) - reference["mu"]
    px = np.linalg.norm(difference[..., :2] * (width, height), axis=-1)
    depth = np.abs(difference[..., 2]) * DEPTH_MM if difference.shape[-1] == 3 else None
    # The root's depth in 3D is known, and its sigma next to nothing.
    learned = reference["sigma"] > 1e-6
    sigma = np.abs(output["sigma"][learned] / reference["sigma"][learned] - 1)
    return {
        "deviation_px": _distances(px),
        "deviation_mm": None if depth is None else _distances(depth),
        "deviation_sigma": {"median": float(np.median(sigma)), "p95": _p95(sigma)},
    }


def _distances(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "p95": _p95(values), "max": float(values.max())}


def _p95(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.95))


def _machine() -> str:
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [line for line in information.read_text().splitlines() if "model name" in line]
        name = lines[0].partition(":")[2].strip() if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
