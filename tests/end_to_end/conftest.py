"""The command line as the end-to-end tests call it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rle_tf() -> Callable[..., str]:
    """`rle_tf(folder, *arguments, status=0)`: runs it in a process of its own, in `folder`.

    Returns what it prints, or where another status than 0 is expected what it says of errors.
    """

    def run(folder: Path, *arguments, status: int = 0) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "rle_tf", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout if status == 0 else result.stderr

    return run


@pytest.fixture(scope="session")
def small_demo() -> list[str]:
    """Options that make the demo a matter of seconds; the last one says how many epochs."""
    settings = (
        "data.source.train_people=64", "data.source.val_people=24", "train.batch_size=16",
        "train.drop_epochs=[]", "train.epochs=2",
    )  # fmt: skip
    return [option for setting in settings for option in ("--set", setting)]


@pytest.fixture(scope="session")
def demo(tmp_path_factory, rle_tf, small_demo) -> tuple[Path, str]:
    """A folder in which a small demo has run, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, rle_tf(folder, "demo", *small_demo)
