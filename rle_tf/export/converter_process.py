"""Converters of SavedModels, each in a process of its own: they keep memory, and they talk."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rle_tf.errors import ModelError


def check_paths(saved_model_dir: Path, path: Path) -> None:
    """Makes the folder that `path` will lie in.

    Raises:
        ModelError: The first is not a SavedModel, or the second is a folder.
    """
    if not (saved_model_dir / "saved_model.pb").is_file():
        raise ModelError(f"{saved_model_dir}: found no saved_model.pb; expected a SavedModel")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; expected a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)


def run_converter(
    module: str, arguments: Sequence[str | Path], saved_model_dir: Path, expected: str
) -> None:
    """Runs `python -m module`.

    Args:
        module: The converter.
        arguments: Its command line.
        saved_model_dir: What it converts, for the message.
        expected: What it would have taken, for the message.

    Raises:
        ModelError: It failed; the message ends with what it said.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        # The parent may hold the GPU, and a converter has no use for one.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if result.returncode != 0:
        raise ModelError(
            f"{saved_model_dir}: the conversion ended with status {result.returncode};"
            f" expected {expected}\n{_reason(result.stderr)}"
        )


def _reason(log: str) -> str:
    """The lines that say what failed: the log of a refused graph ends in a dump of the graph."""
    lines = [line[:300] for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("TF Select ops:", "TF Custom ops:"))]
    return "\n".join(dict.fromkeys(telling or lines[-5:]))
