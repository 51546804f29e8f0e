"""An exported SavedModel as OpenVINO's intermediate representation, by its own converter."""

import importlib.util
import os
import tempfile
from pathlib import Path

from rle_tf.errors import ModelError
from rle_tf.export.converter_process import check_paths, run_converter


def export_openvino(saved_model_dir: str | Path, path: str | Path) -> Path:
    """Converts the signature `serving_default`: its inputs and outputs by their names, any B.

    Args:
        saved_model_dir: A version's folder, as `export_savedmodel` returns it, without
            `half_weights`.
        path: The `.xml` to write; its weights, float32, go into the `.bin` beside it. Both are
            replaced when the conversion is complete; their folder is made if absent.

    Returns:
        `path`.

    Raises:
        ModelError: The extra `openvino` is not installed, the folder is not a SavedModel, `path`
            is a folder or no `.xml`, or the graph cannot be converted.
    """
    check_openvino_installed()
    saved_model_dir, path = Path(saved_model_dir), Path(path)
    if path.suffix != ".xml":
        raise ModelError(f"{path}: found the suffix '{path.suffix}'; expected .xml")
    check_paths(saved_model_dir, path)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as temporary:
        complete = Path(temporary, path.name)
        run_converter(
            "openvino.tools.ovc",
            [saved_model_dir, "--output_model", complete, "--compress_to_fp16=False"],
            saved_model_dir,
            "a graph that OpenVINO's operators can express",
        )
        # The name that says that there is a model comes last.
        for suffix in (".bin", ".xml"):
            os.replace(complete.with_suffix(suffix), path.with_suffix(suffix))
    return path


def check_openvino_installed() -> None:
    """ModelError unless the package of the extra is there."""
    if importlib.util.find_spec("openvino") is None:
        raise ModelError(
            "openvino: found no package openvino; expected that of: pip install 'rle-tf[openvino]'"
        )
