"""Two sides of a question, timed in turns, and what they ran on."""

import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=120)


@dataclass(frozen=True)
class Times:
    """Seconds of one side, a value a turn."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, other: "Times") -> tuple[float, float, float]:
        """How many times the other's time this one takes: median of the turns, least and most."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def in_turns(
    calls: dict[str, Callable[[], object]], turns: int, warm_up: int = 1
) -> dict[str, Times]:
    """Calls each side once a turn, A B A B, so that a machine that is slow for a while is slow for
    all of them; the first turns do not count."""
    times = {name: [] for name in calls}
    for turn in range(warm_up + turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: Times(tuple(values)) for name, values in times.items()}


def show(title: str, times: dict[str, Times], against: str, unit: tuple[str, float]) -> None:
    """A table: each side's median, and its time as a multiple of that of `against`.

    Args:
        unit: Its name, and how many of it are a second.
    """
    table = Table(
        "", unit[0], f"times {against}'s", "range", title=f"{title}\n{machine()}", box=None
    )
    for name, each in times.items():
        middle, least, most = each.ratio(times[against])
        shown = (f"{each.median * unit[1]:.3g}", f"{middle:.2f}", f"{least:.2f} to {most:.2f}")
        table.add_row(name, *shown)
    CONSOLE.print(table)


def profile(title: str, call: Callable[[], object], each: int = 1, rows: int = 15) -> None:
    """A table of the operations that a call spends most in, by TensorFlow's profiler.

    Args:
        title: Of the table.
        call: Called twice before, for that is when graphs are built and kernels chosen.
        each: What times and counts are divided by: the images of a call, say.
        rows: Of the table.

    Milliseconds are those of all threads together. Of asynchronous kernels nothing is told but that
    they are; those that run others (calls, loops) are then counted with what they run.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    call()
    call()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    spent, count = Counter(), Counter()
    for plane in space.planes:
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for event in (event for line in plane.lines for event in line.events):
            # An operation is "its name:its kind", what runs operations "a::b".
            name, _, kind = names[event.metadata_id].rpartition(":")
            if names[event.metadata_id] == "ExecutorState::ProcessAsync::Start":
                name = kind = "asynchronous"
            if name and ":" not in name and kind.isidentifier():
                spent[kind] += event.duration_ps / 1e9
                count[kind] += 1
    table = Table("operation", "ms", "calls", title=f"{title}\n{machine()}", box=None)
    for kind, ms in spent.most_common(rows):
        table.add_row(kind, f"{ms / each:.3g}", f"{count[kind] / each:.3g}")
    table.add_row("all", f"{spent.total() / each:.3g}", "")
    CONSOLE.print(table)


def machine(packages: Sequence[str] = ("tensorflow", "keras")) -> str:
    """Processor, cores, threads and versions, for the line above a table."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in open("/proc/cpuinfo", encoding="utf-8")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"
