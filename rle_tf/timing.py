"""Sides of a question, timed in turns, and what they ran on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata


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
    calls: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 1
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


def bind(threads: int) -> None:
    """This process to as many cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory_mib() -> float:
    """The most memory that this process has held; NaN where the system has no /proc."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            # Not getrusage, which counts what the process had held that started this one.
            line = next(line for line in file if line.startswith("VmHWM:"))
    except OSError:
        return float("nan")
    return int(line.split()[1]) / 1024


def machine(packages: Sequence[str] = ("tensorflow", "keras")) -> str:
    """Processor, the cores that this process may use, and versions, for the line at a table."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line for line in file if line.startswith("model name"))
            model = next(names, model).partition(":")[2].strip() or model
    except OSError:
        pass  # no Linux
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    plural = "s" * (cores > 1)
    return f"{model}, {cores} core{plural}; Python {platform.python_version()}, {versions}"
