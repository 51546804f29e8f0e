"""A rendered dataset's folder: written whole or not at all, and never over anything else."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rle_tf.errors import ConfigError, DataError

MANIFEST = "synthetic.json"


def write_json(path: Path, content: dict | list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def check_arguments(
    writer: str,
    *,
    train_people: int,
    val_people: int,
    seed: int,
    image_size: tuple[int, int],
    workers: int | None,
) -> None:
    """Raises a `ConfigError` that names the writer where an argument is outside its range."""
    for name, value, least in (
        ("train_people", train_people, 1),
        ("val_people", val_people, 1),
        ("seed", seed, 0),
        ("image_size[0]", image_size[0], 64),
        ("image_size[1]", image_size[1], 64),
        ("workers", 1 if workers is None else workers, 1),
    ):
        if value < least:
            raise ConfigError(f"{writer}: {name} is {value}, expected at least {least}")


def worthwhile_workers(people: int, people_per_worker: int) -> int:
    """One process a core, fewer where there are not `people_per_worker` for each."""
    return max(1, min(os.cpu_count() or 1, people // people_per_worker))


def run(draw: Callable[[tuple], Any], jobs: list[tuple], workers: int, writer: str) -> Iterator:
    """`draw` of each job, in order.

    Args:
        draw: A function of a module. What it draws must depend on the job alone.
        jobs: Their first items are the folder that is drawn into.
        workers: Processes; 1 is this one.
        writer: The public function that is at work, for the message of an error.

    Raises:
        DataError: A worker process died.
    """
    if workers == 1:
        yield from map(draw, jobs)
        return
    # Spawned, not forked: TensorFlow's threads, if the caller has any, do not survive a fork.
    # Workers leave Ctrl-C to this process, which then gives up the jobs that have not begun.
    try:
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as executor:
            yield from executor.map(draw, jobs, chunksize=8)
    except BrokenProcessPool as error:
        raise DataError(
            f"{jobs[0][0]}: a process that rendered into it died; call {writer} under "
            "`if __name__ == '__main__':`, or with workers=1"
        ) from error


def _described(manifest: object) -> str:
    # COCO's manifests are older than the other layouts and do not name theirs.
    layout = manifest.get("layout", "COCO") if isinstance(manifest, dict) else "unknown"
    return f"{json.dumps(manifest)} (layout: {layout})"


def _is_written(root: Path, manifest: dict) -> bool:
    """Whether root holds this very dataset; False where it is absent or empty.

    Raises:
        DataError: It holds anything else.
    """
    advice = "choose another folder, or empty this one"
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(
            f"{root}: found a file, expected a folder or nothing; choose another folder"
        )
    names = sorted(path.name for path in root.iterdir())
    if not names:
        return False
    if MANIFEST not in names:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise DataError(
            f"{root}: found {listed} but no {MANIFEST}, expected an empty or absent folder to "
            f"write a synthetic dataset into; {advice}"
        )
    try:
        found = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{root / MANIFEST}: found text that is not JSON ({error}), expected the manifest of "
            f"a synthetic dataset; {advice}"
        ) from error
    if found != manifest:
        raise DataError(
            f"{root / MANIFEST}: found a synthetic dataset of {_described(found)}, expected "
            f"{_described(manifest)}; {advice}"
        )
    return True


def write_folder(root: Path, manifest: dict, write: Callable[[Path], None]) -> None:
    """Writes a dataset and its manifest, unless root holds that very dataset already.

    Nothing stands at root before all of it is written.

    Args:
        root: The dataset's folder: absent, empty, or written with the same manifest.
        manifest: All that decides what is written, as JSON would give it back.
        write: Writes everything but the manifest into a folder that is not there yet.

    Raises:
        DataError: root is a file or holds something else.
    """
    root = Path(root).resolve()
    if _is_written(root, manifest):
        return
    partial = root.parent / f".{root.name}.{os.getpid()}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        write_json(partial / MANIFEST, manifest)
        if _is_written(root, manifest):  # by another process, meanwhile
            return
        if root.exists():
            root.rmdir()
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
