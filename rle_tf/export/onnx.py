"""An exported SavedModel as an ONNX file, by tf2onnx."""

import importlib.util
import os
import tempfile
from pathlib import Path

from rle_tf.errors import ModelError
from rle_tf.export.converter_process import check_paths, run_converter

# The newest set of operators that tf2onnx 1.17 writes.
_OPSET = "18"


def export_onnx(saved_model_dir: str | Path, path: str | Path) -> Path:
    """Converts the signature `serving_default`: its inputs and outputs by their names, any B.

    Args:
        saved_model_dir: A version's folder, as `export_savedmodel` returns it.
        path: The file to write, replaced when the conversion is complete; its folder is made if
            absent.

    Returns:
        `path`.

    Raises:
        ModelError: The extra `onnx` is not installed, the folder is not a SavedModel, `path` is a
            folder, or the graph cannot be converted.
    """
    check_onnx_installed()
    import onnx  # of the extra

    saved_model_dir, path = Path(saved_model_dir), Path(path)
    check_paths(saved_model_dir, path)
    expected = f"a graph that ONNX's operators of set {_OPSET} can express"
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as temporary:
        complete = Path(temporary, path.name)
        run_converter(
            "tf2onnx.convert",
            [
                "--saved-model", saved_model_dir, "--tag", "serve",
                "--signature_def", "serving_default", "--opset", _OPSET, "--output", complete,
            ],
            saved_model_dir,
            expected,
        )  # fmt: skip
        try:
            # tf2onnx writes what it cannot express as it is, and calls that a success.
            onnx.checker.check_model(str(complete))
        except onnx.checker.ValidationError as error:
            raise ModelError(
                f"{saved_model_dir}: cannot be converted; expected {expected}\n{error}"
            ) from None
        os.replace(complete, path)
    return path


def check_onnx_installed() -> None:
    """ModelError unless the packages of the extra are there."""
    for package in ("tf2onnx", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"onnx: found no package {package}; expected those of: pip install 'rle-tf[onnx]'"
            )
