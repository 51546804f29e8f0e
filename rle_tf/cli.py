"""The commands of `rle-tf`; what they show is in `rle_tf.console`."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.logging import RichHandler

import rle_tf
from rle_tf.console import (
    CONSOLE,
    fail,
    print_calibration,
    print_import,
    print_models,
    print_report,
    print_scores,
    progress_bar,
    progress_callback,
    start_tensorflow,
)
from rle_tf.errors import ConfigError, ModelError, RLEError, WorkerLost
from rle_tf.export.formats import Format, Precision
from rle_tf.server import Options

# TensorFlow's notes on the processor are no news to a user. Before it is imported, which each
# command does for itself: `--help` answers at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The recipes lie inside an installed package and beside it in a checkout.
_HERE = Path(__file__).parent
RECIPES = next(path for path in (_HERE / "configs", _HERE.parent / "configs") if path.is_dir())

app = typer.Typer(
    help="Human pose regression with residual log-likelihood estimation.",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="A YAML recipe, or the name of one that comes with rle-tf."
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set train.batch_size=64"),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of the dataset, in place of the recipe's data.source.root."),
]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        CONSOLE.print(f"rle-tf {rle_tf.__version__}")
        raise typer.Exit


def _example(command: str) -> str:
    return f"[dim]Example:[/dim]  rle-tf {command}"


class Task(StrEnum):
    """What the demo shows, by the number of coordinates."""

    flat = "2d"
    space = "3d"


@app.command(epilog=_example("demo --task 3d"))
def demo(
    task: Annotated[
        Task, typer.Option(help="2d: where joints are in the image; 3d: how deep they are, too.")
    ] = Task.flat,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default runs/demo or runs/demo3d.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Where the model is exported to.")] = Path(
        "saved_models"
    ),
    overrides: Overrides = None,
) -> None:
    """Renders people, trains on them, scores, draws and exports: the whole chain in minutes.

    Needs no data. An interrupted demo goes on where it stopped.
    """
    start_tensorflow()
    from rle_tf.callbacks import draw_people
    from rle_tf.config import load_config
    from rle_tf.run_folder import RunFolder

    recipe = {Task.flat: "demo", Task.space: "synthetic3d"}[task]
    config = load_config(RECIPES / f"{recipe}.yaml", overrides or [])
    out = out or Path("runs") / config.name
    _train(config, out, resume=(out / "config.yaml").exists(), again="the same command")
    folder = RunFolder(out)
    config, regressor = folder.load()
    source = config.open_source("val")
    # Spread over the dataset: neighbours may be of one pose.
    people = source.take(np.linspace(0, len(source.records) - 1, 12).astype(int))
    picture = out / "predictions.png"
    draw_people(regressor, people, config, folder.spread).save(picture)
    CONSOLE.print(f"predictions for people it has not seen: {picture}")
    _export(
        folder,
        config,
        regressor,
        models,
        None,
        [Format.savedmodel, Format.litert],
        [Precision.float32],
    )


@app.command(epilog=_example("train configs/coco_sample.yaml --data-root ~/coco --out runs/sample"))
def train(
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    restarts: Annotated[
        int,
        typer.Option(
            help="So often a training that was killed, or whose cluster lost a worker, is started "
            "again from its newest checkpoint; one that is in --out already is gone on with.",
            min=0,
        ),
    ] = 0,
) -> None:
    """Trains a recipe into a run folder: config, checkpoints, logs, regressor and metrics.

    Ctrl-C leaves a usable run; --resume goes on from it.
    """
    if restarts:
        out = out or Path("runs") / _config(recipe, data_root, overrides).name
        _supervise(recipe, out, data_root, overrides, restarts)
        return
    start_tensorflow()
    config = _config(recipe, data_root, overrides)
    out = out or Path("runs") / config.name
    _train(config, out, resume, f"rle-tf train {out / 'config.yaml'} --out {out} --resume")


@app.command(epilog=_example("records coco_resnet50_rle --data-root ~/coco --out gs://me/coco"))
def records(
    recipe: Recipe,
    out: Annotated[str, typer.Option(help="A new folder, on any file system that TensorFlow has.")],
    shards: Annotated[
        int, typer.Option(help="Files; a few for each worker that reads.", min=1)
    ] = 16,
    quality: Annotated[int, typer.Option(help="Of JPEGs.", min=1, max=100)] = 95,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Packs training people into TFRecord files, to train on with --set data.records=OUT.

    Each with as much of its photograph as the recipe's augmentation can ask for. An interrupted
    packing goes on where it stopped; of a finished one the checksums are compared.
    """
    start_tensorflow()
    from rle_tf.data.records import write_records

    config = _config(recipe, data_root, overrides)
    if not config.input_format.reads_images:
        raise ConfigError("model.kind: lifting sees no images; expected a recipe of an image model")
    source = config.open_source("train")
    with progress_bar() as progress:
        task = progress.add_task("records", total=shards * len(source.parts), status="")
        index = write_records(
            source,
            config.input_format,
            config.data.augmentation,
            out,
            shards=shards,
            quality=quality,
            on_shard=lambda: progress.advance(task),
        )
    size = sum(shard.bytes for shard in index.shards) / 2**20
    CONSOLE.print(f"{len(source.records)} people, {size:.1f} MiB: {out}", soft_wrap=True)


@app.command(epilog=_example("evaluate runs/sample --set evaluate.boxes=detections"))
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

    folder, config, regressor = _run(run, data_root, overrides)
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


@app.command(epilog=_example("calibrate runs/sample"))
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

    folder, config, regressor = _run(run, data_root if recipe is None else None, overrides)
    people = config if recipe is None else _config(recipe, data_root, None)
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


@app.command(epilog=_example("compare demo --methods l1,laplace,rle,heatmap --seeds 3"))
def compare(
    recipe: Recipe,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "--losses",
            help="Some of l1, l2, gaussian, laplace, direct, direct_places, rle, rle_gaussian, "
            "rle_official, rle_gaussian_official, integral, integral_rle, heatmap. Times are "
            "relative to the first one's.",
        ),
    ] = "l1,laplace,rle,heatmap",
    seeds: Annotated[int, typer.Option(help="Runs of each, with seeds 0, 1, ...", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs; default runs/NAME-comparison.")
    ] = None,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Trains methods under one budget: the recipe's model, data and schedule, but for the loss and
    what belongs to it. Writes a table and a picture.

    Interrupted, the same command goes on.
    """
    start_tensorflow()
    from rle_tf.charts import comparison_chart
    from rle_tf.comparison import compare

    config = _config(recipe, data_root, overrides)
    out = out or Path("runs") / f"{config.name}-comparison"
    names = [name.strip() for name in methods.split(",") if name.strip()]
    with progress_bar() as progress:

        def on_run(run):
            progress.console.print(f"[bold]{run.name}[/]")
            return [progress_callback(progress, run)]

        rows = compare(config, names, range(seeds), out, on_run)
    picture = out / "comparison.png"
    title = f"{config.name}, {seeds} seeds" if seeds > 1 else config.name
    comparison_chart({row.method: row.curves for row in rows}, title, picture)
    CONSOLE.print((out / "comparison.md").read_text(), soft_wrap=True, markup=False)
    CONSOLE.print(f"written: {out / 'comparison.md'}, .json and .png", soft_wrap=True)


@app.command(epilog=_example("flow runs/demo"))
def flow(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The picture; default RUN/flow.png.")] = None,
) -> None:
    """Draws the density of errors that a training has learned, beside a normal and a Laplace one.

    In units of sigma, of x and y together and of each coordinate. Where each joint has a flow of
    its own that is of all of them, and another picture has each.
    """
    start_tensorflow()
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


@app.command(epilog=_example("models"))
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


@app.command(epilog=_example("predict photo.jpg --boxes boxes.json"))
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


@app.command("import", epilog=_example("import deeppose_res50_coco_256x192_rle.pth"))
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
        {dims: _recipe(name) for dims, name in defaults.items()},
        _recipe(recipe) if recipe else None,
        (overrides or []) + _root_override(data_root),
    )
    print_import(config, published, parity)
    CONSOLE.print(f"written: {out}", soft_wrap=True)


@app.command(epilog=_example("export runs/demo --format savedmodel --serving"))
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
    half_weights: Annotated[
        bool,
        typer.Option("--half-weights", help="Half the SavedModel's size: variables of 16 bits."),
    ] = False,
    data_root: DataRoot = None,
    overrides: Overrides = None,
) -> None:
    """Exports the regressor alone: OUT/NAME/VERSION, a SavedModel, and other formats beside it."""
    start_tensorflow()
    folder, config, regressor = _run(run, data_root, overrides)
    formats = formats or [Format.savedmodel, Format.litert]
    if precisions and Format.litert not in formats:
        raise ModelError("--precision: is LiteRT's; expected --format litert with it")
    _export(
        folder,
        config,
        regressor,
        out,
        name,
        formats,
        precisions or [Precision.float32],
        serving,
        report,
        half_weights,
    )


data_service = typer.Typer(
    help="Makes training batches for other machines (tf.data service).", no_args_is_help=True
)
app.add_typer(data_service, name="data-service")


@data_service.command(epilog=_example("data-service dispatcher --port 5050"))
def dispatcher(
    port: Annotated[int, typer.Option(help="To listen on; 0: any.")] = 5050,
    work_dir: Annotated[
        str | None,
        typer.Option(help="Where it keeps its books: one that is started again there goes on."),
    ] = None,
) -> None:
    """Hands out sample numbers. One for a training; recipes name it as data.service."""
    start_tensorflow()
    from rle_tf.data.service import start_dispatcher

    server = start_dispatcher(port, work_dir)
    CONSOLE.print(f"dispatcher: --set data.service={server.target}", soft_wrap=True)
    signal.pause()  # the servers' own waiting is deaf to Ctrl-C


@data_service.command(epilog=_example("data-service worker --dispatcher 10.0.0.7:5050"))
def worker(
    dispatcher: Annotated[str, typer.Option(help="HOST:PORT of the dispatcher.")],
    host: Annotated[
        str, typer.Option(help="Name or address of this machine, as trainers reach it.")
    ] = "localhost",
    port: Annotated[int, typer.Option(help="To listen on; 0: any.")] = 0,
) -> None:
    """Makes samples. As many as the training can use; each reads the photographs."""
    start_tensorflow()
    from rle_tf.data.service import start_worker

    server = start_worker(dispatcher, host, port)
    CONSOLE.print(f"worker of {dispatcher}: {server._server.bound_port()}")
    signal.pause()


@app.command(epilog=_example("serve saved_models/demo"))
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
            run = _run(model, None, None)
            (model,) = export_run(*run, Path(folder), name, formats=[Format.savedmodel])
        serve(model, options, host=host, port=port, name=name, console=CONSOLE)


def main() -> None:
    """Runs the command line; what is wrong with the input is said in a line, not a traceback."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=CONSOLE, show_path=False, show_time=False)],
    )
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        app(standalone_mode=True)
    except WorkerLost as error:
        fail(str(error), os.EX_TEMPFAIL)
    except RLEError as error:
        fail(str(error))
    except OSError as error:  # a folder that cannot be written, a full disk
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}")


def _config(recipe: Path, data_root: Path | None, overrides: list[str] | None):
    from rle_tf.config import load_config

    return load_config(_recipe(recipe), (overrides or []) + _root_override(data_root))


def _recipe(recipe: Path) -> Path:
    """The path of a recipe, or of the one that comes with the package under this name."""
    packaged = RECIPES / f"{recipe}.yaml"
    return packaged if not recipe.exists() and packaged.is_file() else recipe


def _root_override(data_root: Path | None) -> list[str]:
    # Absolute: the run's config is read from other folders, too.
    return [f"data.source.root={str(data_root.expanduser().resolve())!r}"] if data_root else []


def _run(run: Path, data_root: Path | None, overrides: list[str] | None):
    """The folder of a training run, its config with changes, and its regressor."""
    from rle_tf.run_folder import RunFolder, load_regressor

    folder = RunFolder(run)
    if not folder.config.is_file():
        raise ModelError(f"{folder.config}: no such file; expected the folder of a training run")
    config = _config(folder.config, data_root, overrides)
    return folder, config, load_regressor(folder.regressor)


def _supervise(
    recipe: Path,
    out: Path,
    data_root: Path | None,
    overrides: list[str] | None,
    restarts: int,
) -> None:
    """Trains in a process of its own, and in another one when that has died."""
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--out", str(out)]
    command += ["--data-root", str(data_root)] if data_root else []
    command += [part for override in overrides or [] for part in ("--set", override)]
    for left in range(restarts, -1, -1):
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        process = subprocess.Popen([*command, *resume])
        stopped = False

        def stop(number, frame, process=process):
            nonlocal stopped
            stopped = True
            if number == signal.SIGTERM:  # Ctrl-C reaches both
                process.terminate()

        handlers = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
        # Killed, or crashed, or a worker lost: all else would happen again.
        if stopped or not (status < 0 or status == os.EX_TEMPFAIL) or not left:
            raise typer.Exit(status if status >= 0 else 128 - status)
        CONSOLE.print(f"the training ended with status {status}; {left} restarts are left")


def _train(config, out: Path, resume: bool, again: str) -> None:
    from rle_tf.training import train

    model = config.model.kind
    if model == "image":
        model = f"{config.model.backbone} at {'x'.join(map(str, config.data.image_size))}"
    CONSOLE.print(f"[bold]{config.name}[/]: {model}, loss {config.loss.kind}, into {out}")
    try:
        with progress_bar() as progress:
            scores = train(
                config, out, resume=resume, callbacks=[progress_callback(progress, config)]
            )
    except KeyboardInterrupt:
        if (out / "config.yaml").exists():
            CONSOLE.print(f"interrupted; go on with: {again}")
        raise
    print_scores(scores, f"{config.name}, {config.evaluate.boxes} boxes")
    CONSOLE.print(f"run folder: {out}  (tensorboard --logdir {out})")


def _export(
    run,
    config,
    regressor,
    out: Path,
    name: str | None,
    formats: list[Format],
    precisions: list[Precision],
    serving: bool = False,
    report: bool = False,
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
            half_weights=half_weights,
            on_step=status.update,
            on_file=lambda path: CONSOLE.print(f"exported: {path}", soft_wrap=True),
        )
    if report:
        print_report(json.loads(last.read_text()))
