"""Training: on a demo, on a recipe, on several, and its input."""

import os
import signal
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rle_tf.commands.models import export_run_folder
from rle_tf.commands.options import (
    RECIPES,
    DataRoot,
    Overrides,
    Recipe,
    load_recipe,
)
from rle_tf.console import (
    CONSOLE,
    print_scores,
    progress_bar,
    progress_callback,
    start_tensorflow,
)
from rle_tf.errors import ConfigError
from rle_tf.export.formats import Format, Precision


class Task(StrEnum):
    """What the demo shows, by the number of coordinates."""

    flat = "2d"
    space = "3d"


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
    import numpy as np

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
    export_run_folder(
        folder,
        config,
        regressor,
        models,
        None,
        [Format.savedmodel, Format.litert],
        [Precision.float32],
    )


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
        out = out or Path("runs") / load_recipe(recipe, data_root, overrides).name
        _supervise(recipe, out, data_root, overrides, restarts)
        return
    start_tensorflow()
    config = load_recipe(recipe, data_root, overrides)
    out = out or Path("runs") / config.name
    _train(config, out, resume, f"rle-tf train {out / 'config.yaml'} --out {out} --resume")


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

    config = load_recipe(recipe, data_root, overrides)
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

    config = load_recipe(recipe, data_root, overrides)
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
