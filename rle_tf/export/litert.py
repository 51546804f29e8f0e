"""An exported SavedModel as a float32 `.tflite` file for LiteRT (TensorFlow Lite)."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tensorflow as tf

from rle_tf.errors import ModelError


def export_litert(saved_model_dir: str | Path, path: str | Path) -> Path:
    """Converts a SavedModel that `export_savedmodel` wrote, with TensorFlow Lite's own ops alone.

    Every signature stays, with its inputs and outputs by the same names, shapes and units. A
    signature runner takes any B; the file holds the weights once however many signatures it has.

    A bare interpreter sees `serving_default`, which comes first in the alphabet. It starts at B = 1
    and takes another after `resize_tensor_input`.

    The converter keeps memory and writes to the terminal, so it runs in a process of its own.

    Args:
        saved_model_dir: A version's folder.
        path: The file to write, replaced when the conversion is complete; its folder is made if
            absent.

    Returns:
        `path`.

    Raises:
        ModelError: The folder is not a SavedModel, `path` is a folder, or the converter cannot
            convert the graph; the message ends with what it said.
    """
    saved_model_dir, path = Path(saved_model_dir), Path(path)
    if not (saved_model_dir / "saved_model.pb").is_file():
        raise ModelError(f"{saved_model_dir}: found no saved_model.pb; expected a SavedModel")
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; expected a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as temporary:
        complete = Path(temporary, path.name)
        result = subprocess.run(
            [sys.executable, "-m", __name__, saved_model_dir, complete],
            # The parent may hold the GPU, and the converter has no use for one.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            errors="replace",
        )
        if result.returncode != 0:
            raise ModelError(
                f"{saved_model_dir}: the conversion ended with status {result.returncode};"
                " expected a graph that TensorFlow Lite's builtin ops can express\n"
                + _reason(result.stderr)
            )
        os.replace(complete, path)
    return path


def _reason(log: str) -> str:
    """The lines that say what failed: the log of a refused graph ends in a dump of the graph."""
    lines = [line[:300] for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("TF Select ops:", "TF Custom ops:"))]
    return "\n".join(dict.fromkeys(telling or lines[-5:]))


def _convert(saved_model_dir: str, path: str) -> None:
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model_dir)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    Path(path).write_bytes(converter.convert())


if __name__ == "__main__":
    _convert(*sys.argv[1:])
