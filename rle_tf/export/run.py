"""A training run's regressor in all the formats that are asked for, under one version."""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import keras

from rle_tf.calibration import uncertainty
from rle_tf.checkpoints import state_dict
from rle_tf.config import RunConfig
from rle_tf.errors import ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.export.formats import Format, Precision
from rle_tf.export.litert import calibration_crops, export_litert
from rle_tf.export.onnx import check_onnx_installed, export_onnx
from rle_tf.export.openvino import check_openvino_installed, export_openvino
from rle_tf.export.report import deployment_report
from rle_tf.export.savedmodel import check_model_name, export_savedmodel, newest_version
from rle_tf.export.serving import check_serving_installed, write_serving
from rle_tf.export.torch import check_torch_installed, export_torch
from rle_tf.run_folder import RunFolder


def export_run(
    run: RunFolder,
    config: RunConfig,
    regressor: keras.Model,
    out: Path,
    name: str | None = None,
    *,
    formats: Sequence[Format] = (Format.savedmodel, Format.litert),
    precisions: Sequence[Precision] = (Precision.float32,),
    serving: bool = False,
    report: bool = False,
    flip_test: bool = False,
    half_weights: bool = False,
    on_step: Callable[[str], None] | None = None,
    on_file: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Writes `out/NAME/VERSION`, `VERSION-PRECISION.tflite` with its JSON, `VERSION.onnx`,
    `VERSION.xml` with its `.bin`, and `VERSION.pth` with its JSON.

    Args:
        run: The folder of a training run.
        config, regressor: What is in it (`RunFolder.load`), or the config with other keys, such as
            where the data lies now.
        out: Folder of models.
        name: The model's; by default the config's.
        formats: Which of them to write. VERSION is one more than the highest that is there in any
            format.
        precisions: Of the LiteRT files. For int8 crops of the config's training people show what
            activations come to.
        serving: Also write the warm-up requests and the configuration of TensorFlow Serving.
        report: Also write `VERSION-report.json`, what `deployment_report` gives.
        flip_test: Whether the LiteRT files have a flip test, too, and the report is of it as well.
        half_weights: Whether the SavedModel's variables are float16.
        on_step: Called with a line about each step before it begins.
        on_file: Called with each SavedModel, file and configuration file once it is written.

    Returns:
        What was written.

    Raises:
        ModelError: A format cannot hold the regressor; the calibration of the run is of another
            one; the packages of an extra are not installed; `serving` or `report` without a
            SavedModel; `flip_test` with neither LiteRT nor `report`; `flip_test` or `report` of a
            lifter; a name that cannot stand in a path and in an address. Nothing is written then.
        DataError: The images for int8 cannot be used.
    """
    for wanted, needed in (("serving", serving), ("report", report)):
        if needed and Format.savedmodel not in formats:
            raise ModelError(f"{wanted}: found no SavedModel among the formats; expected one")
    for wanted, needed in (("report", report), ("flip_test", flip_test)):
        if needed and not config.input_format.reads_images:
            raise ModelError(
                f"{wanted}: found {run.path}, a lifter; expected a model that sees images"
            )
    if flip_test and Format.litert not in formats and not report:
        raise ModelError("flip_test: is of LiteRT files and the report; expected one of them")
    if serving:
        check_serving_installed()
    if Format.onnx in formats:
        check_onnx_installed()
    if Format.openvino in formats:
        check_openvino_installed()
    if Format.torch in formats:
        check_torch_installed()
    name = name or config.name
    check_model_name(name)
    model_dir = out / name
    say = on_step or (lambda line: None)
    # First: what is missing is said before anything is written.
    spread, confidence = uncertainty(run, regressor)
    estimator = None
    if Format.torch in formats:
        estimator = PoseEstimator(
            regressor, run.load_loss(config, *regressor.output["mu"].shape[1:])
        )
        state_dict(estimator)
    ranges = None
    if Format.litert in formats and Precision.int8 in precisions:
        say("reading crops that show what activations come to")
        ranges = calibration_crops(config.open_source("train"), config.input_format)
    version = newest_version(model_dir) + 1
    data = config.data
    crops = {"mean": data.mean, "std": data.std, "box_margin": data.box_margin}
    written: list[Path] = []

    def add(path: Path) -> None:
        written.append(path)
        if on_file:
            on_file(path)

    files = []
    with ExitStack() as stack:
        keep = Format.savedmodel in formats
        say("tracing the graph")

        # The other formats are made of a SavedModel, whether or not it stays.
        def export_into(folder: Path, half_weights: bool) -> Path:
            return export_savedmodel(
                regressor,
                folder,
                skeleton=data.source.skeleton,
                spread=spread,
                confidence=confidence,
                version=version,
                warm_up=serving,
                half_weights=half_weights,
                **(crops if config.input_format.reads_images else {}),
            )

        if keep:
            kept = export_into(model_dir, half_weights)
            add(kept)
        saved = None
        if keep and not half_weights:
            saved = kept
        elif {Format.litert, Format.onnx, Format.openvino} & set(formats):
            saved = export_into(Path(stack.enter_context(tempfile.TemporaryDirectory())), False)
        for precision in precisions if Format.litert in formats else ():
            say(f"converting to LiteRT, {precision}")
            crops_if_int8 = ranges if precision == Precision.int8 else None
            path = model_dir / f"{version}-{precision}.tflite"
            files.append(export_litert(saved, path, precision, crops_if_int8, flip_test))
            add(path)
        if Format.onnx in formats:
            say("converting to ONNX")
            files.append(export_onnx(saved, model_dir / f"{version}.onnx"))
            add(files[-1])
        if Format.openvino in formats:
            say("converting to OpenVINO's representation")
            files.append(export_openvino(saved, model_dir / f"{version}.xml"))
            add(files[-1])
        if estimator:
            add(export_torch(estimator, config, model_dir / f"{version}.pth"))
        for path in write_serving(model_dir) if serving else ():
            add(path)
        if report:
            measured = deployment_report(
                run, config, regressor, kept, files, flip_test=flip_test, on_step=say
            )
            path = model_dir / f"{version}-report.json"
            path.write_text(json.dumps(measured, indent=1) + "\n")
            add(path)
    return written
