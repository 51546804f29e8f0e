"""What is done with a trained model."""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from rle_tf.commands.options import (
    DataRoot,
    Overrides,
    Run,
    load_recipe,
    open_run,
    recipe_path,
    root_override,
)
from rle_tf.console import (
    CONSOLE,
    print_calibration,
    print_import,
    print_models,
    print_report,
    print_scores,
    print_speed,
    progress_bar,
    start_tensorflow,
)
from rle_tf.errors import ModelError, RLEError
from rle_tf.export.formats import Format, Precision
from rle_tf.server import Options


def evaluate(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="Where metrics.json and results.json go; default RUN.")
    ] = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Scores a trained regressor and writes metrics.json and results.json."""
    start_tensorflow()
    from rle_tf.calibration import uncertainty
    from rle_tf.run_folder import RunFolder
    from rle_tf.training import evaluate_run

    folder, config, regressor = open_run(run, data_root, overrides)
    target = RunFolder(out or run)
    target.path.mkdir(parents=True, exist_ok=True)
    source = config.open_source("val")
    with progress_bar() as progress:
        task = progress.add_task("evaluate", total=len(source.records), status="")
        scores = evaluate_run(
            target,
            config,
            regressor,
            source,
            uncertainty(folder, regressor)[0],
            lambda people: progress.advance(task, people),
        )
    print_scores(scores, f"{run}, {config.evaluate.boxes} boxes")
    CONSOLE.print(f"written: {target.metrics} and {target.results}")


def calibrate(
    run: Run,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A recipe whose validation people are taken in place of the run's own.",
        ),
    ] = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take people that the model was trained on, too.")
    ] = False,
) -> None:
    """Fits what a sigma is worth on half of the validation people, and reports on the other half.

    Writes calibration.json, which predict and export make use of, and the report with a picture.
    """
    start_tensorflow()
    from rle_tf.calibration import calibrate_run
    from rle_tf.charts import calibration_chart
    from rle_tf.data.mix import MappedSource

    folder, config, regressor = open_run(run, data_root if recipe is None else None, overrides)
    people = config if recipe is None else load_recipe(recipe, data_root, None)
    source = people.open_source("val", boxes="ground_truth")
    if source.skeleton != config.data.source.skeleton:
        source = MappedSource(source, config.data.source.skeleton)
    try:
        trained_on = config.open_source("train")
    except RLEError:
        if not force:
            raise
        trained_on = None
    with progress_bar() as progress:
        task = progress.add_task("calibrate", total=len(source.records), status="")
        calibration, report = calibrate_run(
            folder,
            config,
            regressor,
            source,
            trained_on=trained_on,
            force=force,
            on_batch=lambda people: progress.advance(task, people),
        )
    calibration.save(folder.calibration)
    written = folder.calibration_report
    written.write_text(json.dumps(report, indent=1) + "\n")
    calibration_chart(report, config.name, written.with_suffix(".png"))
    print_calibration(report)
    CONSOLE.print(f"written: {folder.calibration}, {written} and .png", soft_wrap=True)


def flow(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The picture; default RUN/flow.png.")] = None,
) -> None:
    """Draws the density of errors that a training has learned, beside a normal and a Laplace one.

    In units of sigma, of x and y together and of each coordinate. Where each joint has a flow of
    its own that is of all of them, and another picture has each.
    """
    start_tensorflow()
    import numpy as np

    from rle_tf.calibration import Density
    from rle_tf.charts import density_chart, joint_densities_chart
    from rle_tf.run_folder import RunFolder

    folder = RunFolder(run)
    config, regressor = folder.load()
    _, joints, dims = regressor.output["mu"].shape
    # Of a flow for each joint as many in all.
    draws = 200_000 // (joints if getattr(config.loss, "flow_per_joint", False) else 1)
    density = Density.of(folder.load_loss(config, joints, dims), dims, draws)
    out = out or run / "flow.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{config.name}, loss {config.loss.kind}"
    draws = density.draws.reshape(-1, dims)
    density_chart(draws, title, out)
    for name, column in zip("xyz", draws.T, strict=False):
        low, middle, high = np.quantile(column, [0.16, 0.5, 0.84])
        CONSOLE.print(
            f"{name}: median {middle:+.3f}, 68 % of the draws from {low:.3f} to {high:.3f} sigmas"
        )
    if density.per_joint:
        of_joints = out.with_stem(f"{out.stem}_joints")
        names = config.data.source.skeleton.joints
        joint_densities_chart(density.draws, names, title, of_joints)
        CONSOLE.print(f"written: {of_joints}", soft_wrap=True)
    CONSOLE.print(f"written: {out}", soft_wrap=True)


def models(
    height: Annotated[int, typer.Option(help="Of the input, a multiple of 32.")] = 256,
    width: Annotated[int, typer.Option(help="Of the input, a multiple of 32.")] = 192,
) -> None:
    """Lists the backbones: parameters, multiply-adds and size, of a regressor of 17 joints and of
    the heatmap model that the paper compares it with."""
    start_tensorflow()
    from rle_tf.models.cost import cost_table

    with CONSOLE.status("building them"):
        rows = cost_table((height, width))
    print_models(rows, (height, width))


def benchmark(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|CONFIG",
            help="A run, an exported model or the name of one that comes with rle-tf; or a recipe.",
        ),
    ],
    threads: Annotated[list[int] | None, typer.Option(help="For one crop; default: 1, 2.")] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Crops at once; default: 1, 4, 16, 64.")
    ] = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Times a model in each runtime that is installed; of a recipe, its training step and input."""
    start_tensorflow()
    from rle_tf.benchmark import benchmark_model, benchmark_recipe
    from rle_tf.prediction import model_folder

    folder = model_folder(model)
    with CONSOLE.status("") as status:
        if folder.is_dir():
            speed = benchmark_model(
                folder, threads or (1, 2), batch or (1, 4, 16, 64), status.update
            )
        else:
            speed = benchmark_recipe(load_recipe(model, data_root, overrides), status.update)
    print_speed(speed)


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs.")],
    model: Annotated[
        str,
        typer.Option(
            help="A run folder, an exported model, or the name of one that comes with rle-tf."
        ),
    ] = "pose_small",
    out: Annotated[Path, typer.Option(help="Where predictions.json and the pictures go.")] = Path(
        "poses"
    ),
    boxes: Annotated[
        Path | None,
        typer.Option(
            help='JSON: {"photo.jpg": \\[\\[left, top, width, height], ...]} in pixels. '
            "An image without boxes is one person that fills it."
        ),
    ] = None,
    flip_test: Annotated[
        bool, typer.Option("--flip-test", help="Average with the mirrored image.")
    ] = False,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help="Joints less sure than this are not drawn; default 0.2 where the model is "
            "calibrated.",
            min=0,
            max=1,
        ),
    ] = None,
) -> None:
    """Predicts poses in photographs and draws them with their uncertainty."""
    start_tensorflow()
    from rle_tf.prediction import load, predict_images, read_boxes

    predictor = load(model, flip_test)
    boxes_xywh = read_boxes(boxes) if boxes else None
    with progress_bar() as progress:
        task = progress.add_task("predict", total=len(images), status="")
        predictions = predict_images(
            predictor,
            images,
            out,
            boxes_xywh,
            lambda path: progress.advance(task),
            min_confidence=min_confidence,
        )
    people = sum(len(entry["people"]) for entry in predictions)
    CONSOLE.print(f"{people} people in {len(images)} images: {out / 'predictions.json'}")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A state dict: .pth, .pt (extra torch), .safetensors or .npz."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A new folder; default saved_models/FILE's name.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="A recipe with the data to evaluate and go on with; default: coco_resnet50_rle, "
            "in 3D h36m_mpii_resnet50_rle.",
        ),
    ] = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Makes a model of RLE weights that others have published: the authors' or mmpose's.

    The folder is like that of a training: predict, evaluate, calibrate and export take it, and
    rle-tf train OUT/config.yaml goes on from its weights. Its parity.json says what was used.
    """
    start_tensorflow()
    from rle_tf.checkpoints import import_checkpoint

    out = out or Path("saved_models") / file.stem
    defaults = {2: Path("coco_resnet50_rle"), 3: Path("h36m_mpii_resnet50_rle")}
    config, published, parity = import_checkpoint(
        file,
        out,
        {dims: recipe_path(name) for dims, name in defaults.items()},
        recipe_path(recipe) if recipe else None,
        (overrides or []) + root_override(data_root),
    )
    print_import(config, published, parity)
    CONSOLE.print(f"written: {out}", soft_wrap=True)


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder of models.")] = Path("saved_models"),
    name: Annotated[
        str | None, typer.Option(help="The model's name; default: the config's.")
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format", help="May be given several times; default: savedmodel and litert."
        ),
    ] = None,
    precisions: Annotated[
        list[Precision] | None,
        typer.Option(
            "--precision",
            help="Of a LiteRT file; may be given several times; default: float32. int8 needs the "
            "images of the config's training people.",
        ),
    ] = None,
    serving: Annotated[
        bool,
        typer.Option(
            "--serving", help="Also write warm-up requests and configuration of TensorFlow Serving."
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Measure what was written: size, latency, and accuracy on the validation people.",
        ),
    ] = False,
    flip_test: Annotated[
        bool,
        typer.Option(
            "--flip-test",
            help="LiteRT files have a flip test, too, and the report is of it as well.",
        ),
    ] = False,
    half_weights: Annotated[
        bool,
        typer.Option("--half-weights", help="Half the SavedModel's size: variables of 16 bits."),
    ] = False,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Exports the regressor alone: OUT/NAME/VERSION, a SavedModel, and other formats beside it."""
    start_tensorflow()
    folder, config, regressor = open_run(run, data_root, overrides)
    formats = formats or [Format.savedmodel, Format.litert]
    if precisions and Format.litert not in formats:
        raise ModelError("--precision: is LiteRT's; expected --format litert with it")
    export_run_folder(
        folder,
        config,
        regressor,
        out,
        name,
        formats,
        precisions or [Precision.float32],
        serving=serving,
        report=report,
        flip_test=flip_test,
        half_weights=half_weights,
    )


def serve(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="An exported model or a run folder.")
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than the loopback let everybody in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TensorFlow Serving's REST port; 0: any.")] = 8501,
    name: Annotated[
        str | None, typer.Option(help="What requests call the model; default: its folder's name.")
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests under way; past it 503.")] = Options.queue,
    batch: Annotated[int, typer.Option(help="Crops in one call of the model.")] = Options.batch,
    batch_wait_ms: Annotated[
        float, typer.Option(help="How long the first of a batch waits for others.")
    ] = Options.batch_wait_ms,
    body_mib: Annotated[int, typer.Option(help="Size of a request; past it 413.")] = (
        Options.body_bytes >> 20
    ),
    images: Annotated[int, typer.Option(help="Images in a request; past it 400.")] = Options.images,
    boxes: Annotated[int, typer.Option(help="Boxes in an image; past it 400.")] = Options.boxes,
    megapixels: Annotated[
        int, typer.Option(help="Of all photographs in a request; past it 400.")
    ] = Options.megapixels,
    client_seconds: Annotated[
        float, typer.Option(help="How long a client may take to send its request; past it 408.")
    ] = Options.client_seconds,
) -> None:
    """Serves a model for development: TensorFlow Serving's REST API, and a page to try it on."""
    # TensorFlow logs each request that the model refuses, whose sender gets a sentence.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    start_tensorflow()
    from rle_tf.export.run import export_run
    from rle_tf.prediction import model_folder
    from rle_tf.server import serve

    body = body_mib * 2**20
    model = model_folder(model)
    options = Options(
        queue=queue,
        queue_bytes=max(body, Options.queue_bytes),
        body_bytes=body,
        images=images,
        boxes=boxes,
        megapixels=megapixels,
        batch=batch,
        batch_wait_ms=batch_wait_ms,
        client_seconds=client_seconds,
    )
    with tempfile.TemporaryDirectory() as folder:
        if (model / "config.yaml").is_file():  # a run
            run = open_run(model, None, None)
            (model,) = export_run(*run, Path(folder), name, formats=[Format.savedmodel])
        serve(model, options, host=host, port=port, name=name, console=CONSOLE)


def export_run_folder(
    run,
    config,
    regressor,
    out: Path,
    name: str | None,
    formats: list[Format],
    precisions: list[Precision],
    serving: bool = False,
    report: bool = False,
    flip_test: bool = False,
    half_weights: bool = False,
) -> None:
    from rle_tf.export.run import export_run

    with CONSOLE.status("") as status:
        *_, last = export_run(
            run,
            config,
            regressor,
            out,
            name,
            formats=formats,
            precisions=precisions,
            serving=serving,
            report=report,
            flip_test=flip_test,
            half_weights=half_weights,
            on_step=status.update,
            on_file=lambda path: CONSOLE.print(f"exported: {path}", soft_wrap=True),
        )
    if report:
        print_report(json.loads(last.read_text()))
