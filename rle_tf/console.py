"""What the command line shows: progress, tables of scores, and what went wrong."""

import math
import os
import sys
import tempfile
import time
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

CONSOLE = Console()


def start_tensorflow() -> None:
    """Imports TensorFlow and finds its devices without the notes that it writes meanwhile.

    They come from below Python, before any log level counts. Where the start fails they are shown.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf

            gpus = tf.config.list_physical_devices("GPU")
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
    CONSOLE.print(f"[dim]on {len(gpus)} GPUs" if gpus else "[dim]on the CPU: no GPU was found")


def fail(message: str, status: int = 1) -> NoReturn:
    """Says what was wrong and ends the program."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(status)


def print_report(report: dict) -> None:
    """Shows what `rle-tf export --report` measured."""
    from rle_tf.export.report import report_table

    header, rows = report_table(report)
    title = (
        f"{report['people']} people, {report['machine']}; off from Keras: px and mm mean, p95,"
        " sigma median, p95; ms at 1 and 2 threads"
    )
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for column in header:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def print_scores(scores: dict[str, float], title: str) -> None:
    """Shows metrics by name, and errors of 3D poses action by action."""
    table = Table("metric", "value", title=title)
    for name, value in scores.items():
        if "/" not in name:  # errors of single joints are in metrics.json
            table.add_row(name, _number(value))
    CONSOLE.print(table)
    actions = [name.partition("/")[2] for name in scores if name.startswith("MPJPE/")]
    if actions:
        table = Table("action", "MPJPE", "PA-MPJPE", title="millimetres")
        for action in actions:
            table.add_row(
                action, *(_number(scores[f"{name}/{action}"]) for name in ("MPJPE", "PA-MPJPE"))
            )
        CONSOLE.print(table)


def print_calibration(report: dict) -> None:
    """Shows coverage, joint by joint too, and what confidence correlates with."""
    table = Table(
        "", "50 %", "80 %", "90 %", "95 %", "ECE", title=f"{report['people']} people not fitted on"
    )
    rows = {
        "calibrated regions": (report["coverage"], report["ece"]),
        "density as trained": (report["coverage_uncalibrated"], None),
        "normal density": (report["coverage_normal"], None),
        **{
            name: (entry["coverage"], entry["ece"])
            for name, entry in report["joints"].items()
            if entry["labelled"]
        },
    }
    for name, (coverage, ece) in rows.items():
        shares = [f"{share:.1%}" for share in coverage.values()]
        table.add_row(name, *shares, "" if ece is None else f"{ece:.3f}")
    CONSOLE.print(table)
    correlation = report["correlation"]
    for key, name in (("oks", "its OKS"), ("pck", "its share of right joints")):
        if correlation[key] is not None:
            CONSOLE.print(
                f"correlation of a person's confidence with {name}: {correlation[key]:.3f}"
            )


def print_models(rows: list[dict], image_size: tuple[int, int]) -> None:
    """Shows `rle_tf.models.cost.cost_table`."""
    table = Table(
        title=f"at {image_size[0]}x{image_size[1]}, 17 joints; GFLOPs are 10^9 multiply-adds"
    )
    for column in ("backbone", "head", "maps"):
        table.add_column(column)
    for column in ("parameters", "GFLOPs", "MB, float32"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["backbone"],
            row["head"],
            row["maps"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['multiply_adds'] / 1e9:.1f}",
            f"{row['parameters'] * 4 / 1e6:.0f}",
        )
    CONSOLE.print(table)


def print_import(config, published, parity) -> None:
    """Shows what `rle_tf.checkpoints.import_checkpoint` found in a file."""
    data, unknown = config.data, published.unknown
    ignored = f"{len(unknown)} entries: {', '.join(unknown[:5])}" if unknown else "nothing"
    table = Table(show_header=False, box=None)
    for name, value in (
        ("layout", published.layout),
        ("network", f"{published.backbone}, {published.joints} joints in {published.dims}D"),
        ("crops", f"{data.image_size[0]}x{data.image_size[1]}, mean {data.mean}, std {data.std}"),
        ("tensors", f"{len(published.tensors)} used"),
        ("not of such a model", ignored),
        (
            "off from NumPy",
            f"mu {parity.mu:.1e}, sigma {parity.sigma:.1e}, flow {parity.log_prob:.1e}",
        ),
    ):
        table.add_row(name, str(value))
    CONSOLE.print(table)


def print_speed(speed) -> None:
    """Shows what `rle_tf.benchmark` measured, of an exported model or of a recipe."""
    from rle_tf.export.latency import PACKAGES
    from rle_tf.timing import machine

    if not isinstance(speed, list):
        table = Table(show_header=False, box=None)
        for name, value in (
            ("parameters", f"{speed.parameters / 1e6:.1f} M"),
            ("multiply-adds", f"{speed.multiply_adds / 1e9:.2f} G a crop"),
            ("training step", f"{speed.step_ms:.0f} ms, {_ratio(speed.step_to_l1)} times l1's"),
            ("a batch of input", "{:.0f} ms ({:.0f} to {:.0f})".format(*speed.input_ms)),
            (
                "input, beside nothing else",
                f"{speed.images_per_second:.0f} images/s, {speed.images_per_core_second:.0f} for "
                "each second of a core's work",
            ),
        ):
            table.add_row(name, value)
        CONSOLE.print(table)
        CONSOLE.print(machine())
        return
    first = speed[0]
    title = "ms of one crop, by threads; MiB of its process; crops/s, by batch"
    table = Table("runtime", "file", "MB", title=title)
    for threads in first.latency_ms:
        table.add_column(f"ms, {threads}", justify="right")
    table.add_column(f"times {first.runtime}'s", justify="right")
    table.add_column("MiB", justify="right")
    for batch in first.crops_per_second:
        table.add_column(f"/s, {batch}", justify="right")
    for each in speed:
        table.add_row(
            each.runtime,
            each.file,
            f"{each.bytes / 1e6:.1f}",
            *(f"{value:.2f}" for value in each.latency_ms.values()),
            _ratio(each.to_first),
            f"{each.peak_mib:.0f}",
            *(f"{value:.0f}" for value in each.crops_per_second.values()),
        )
    CONSOLE.print(table)
    packages = dict.fromkeys(PACKAGES[each.runtime] for each in speed)
    CONSOLE.print(machine([*packages, "rle-tf"]))


def _ratio(of_turns: tuple[float, float, float]) -> str:
    middle, least, most = of_turns
    return f"{middle:.2f} ({least:.2f} to {most:.2f})"


def _number(value: float) -> str:
    if math.isnan(value):
        return "no ground truth"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def progress_bar() -> Progress:
    """A display of tasks, each with a `status` that is shown behind it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=CONSOLE,
    )


def progress_callback(progress: Progress, config):
    """A Keras callback that shows a training run of a config."""
    import keras

    class ShowProgress(keras.callbacks.Callback):
        """A bar for the epoch that runs, and a line for each that has ended."""

        def on_train_begin(self, logs=None):
            self.task = progress.add_task("", total=None, status="")

        def on_train_end(self, logs=None):
            progress.remove_task(self.task)

        def on_epoch_begin(self, epoch, logs=None):
            self.name = f"epoch {epoch + 1}/{config.train.epochs}"
            progress.reset(self.task, description=self.name, total=self.params["steps"], status="")
            self.start = time.monotonic()

        def on_train_batch_end(self, batch, logs=None):
            speed = (batch + 1) * config.train.batch_size / (time.monotonic() - self.start)
            progress.update(
                self.task,
                completed=batch + 1,
                status=f"{_summary(logs)}  {speed:.0f} people/s",
            )

        def on_epoch_end(self, epoch, logs=None):
            seconds = time.monotonic() - self.start
            line = f"{self.name}  {_summary(logs)}  {seconds:.0f} s"
            progress.console.print(line, soft_wrap=True)

    return ShowProgress()


def _summary(logs: dict) -> str:
    names = ("loss", "pck", "sigma", "val_loss", "val_pck", "val_AP", "val_MPJPE")
    return "  ".join(f"{name} {float(logs[name]):.3f}" for name in names if name in logs)
