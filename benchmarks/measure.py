"""Tables of what was timed, and of what operations spend."""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rle_tf.timing import Times, machine

CONSOLE = Console(width=120)


def show(
    title: str,
    times: dict[str, Times],
    against: str,
    unit: tuple[str, float],
    packages: Sequence[str] = ("tensorflow", "keras"),
) -> None:
    """A table: each side's median, and its time as a multiple of that of `against`.

    Args:
        unit: Its name, and how many of it are a second.
        packages: Whose versions are told.
    """
    title = f"{title}\n{machine(packages)}"
    table = Table("", unit[0], f"times {against}'s", "range", title=title, box=None)
    for name, each in times.items():
        middle, least, most = each.ratio(times[against])
        shown = (f"{each.median * unit[1]:.3g}", f"{middle:.2f}", f"{least:.2f} to {most:.2f}")
        table.add_row(name, *shown)
    CONSOLE.print(table)


def profile(
    title: str, call: Callable[[], object], each: int = 1, rows: int = 15, calls: int = 1
) -> None:
    """A table of the operations that a call spends most in, by TensorFlow's profiler.

    Args:
        title: Of the table.
        call: Called twice before, for that is when graphs are built and kernels chosen.
        each: What times and counts are divided by: the images of a call, say.
        rows: Of the table.
        calls: How many are profiled: one alone may differ much from the next.

    Milliseconds are the sum of what single operations took: where two run at once both count, each
    for as long as the other one made it take. Of asynchronous kernels nothing is told but that
    they are; those that run others (calls, loops) are then counted with what they run.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    call()
    call()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(calls):
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
    each *= calls
    operations = {kind: (ms / each, count[kind] / each) for kind, ms in spent.items()}
    show_operations(title, operations, rows, ("tensorflow", "keras"))


def show_operations(
    title: str, operations: dict[str, tuple[float, float]], rows: int, packages: Sequence[str]
) -> None:
    """A table of milliseconds and calls by operation, the longest first."""
    title = f"{title}\n{machine(packages)}"
    table = Table("operation", "ms", "calls", title=title, box=None)
    for kind, (ms, calls) in sorted(operations.items(), key=lambda item: -item[1][0])[:rows]:
        table.add_row(kind, f"{ms:.3g}", f"{calls:.3g}")
    table.add_row("all", f"{sum(ms for ms, _ in operations.values()):.3g}", "")
    CONSOLE.print(table)
