"""Files that are there as a whole, or as they were before."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written(path: Path, size: int = 0) -> Iterator[Path]:
    """Gives a place to write a file at that is there as a whole or as it was before.

    Args:
        path: Of the file.
        size: About how many bytes it will have, if it is to be known that there is room.

    Raises:
        OSError: of the file's name, where it cannot be written.
    """
    unfinished = path.with_name(f"unfinished_{path.name}")
    try:
        free = shutil.disk_usage(path.parent).free
        if free < size:
            found = f"{os.strerror(errno.ENOSPC)}: {free:,} bytes are free, {size:,} are needed"
            raise OSError(errno.ENOSPC, found)
        yield unfinished
        # Its content before its name, also where the power goes.
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that is there as a whole or as it was before; errors as in `written`."""
    with written(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def bytes_of(model: Path) -> int:
    """The size of an exported model: a folder's files, or a file; of OpenVINO's .xml with its
    weights."""
    files = model.rglob("*") if model.is_dir() else [model]
    if model.suffix == ".xml":
        files = [model, model.with_suffix(".bin")]
    return sum(file.stat().st_size for file in files if file.is_file())
