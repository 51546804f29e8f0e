"""What is asked of an export that cannot be had is said before anything is written."""

import importlib.util
from types import SimpleNamespace

import pytest

from rle_tf.errors import ModelError
from rle_tf.export.formats import Format, Precision
from rle_tf.export.run import export_run
from rle_tf.run_folder import RunFolder


def run(tmp_path, name="tiny", reads_images=True, **asked):
    config = SimpleNamespace(
        name=name, input_format=SimpleNamespace(reads_images=reads_images), open_source=None
    )
    return export_run(RunFolder(tmp_path / "run"), config, None, tmp_path / "out", **asked)


@pytest.mark.parametrize("name", ["we ird", "a/b", "../out", "..", "", "näme", "-o"])
def test_names_that_no_address_or_path_can_hold(tmp_path, name):
    with pytest.raises(ModelError, match=f"the model's name: found {name!r}; expected letters"):
        run(tmp_path, name=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"formats": [Format.litert], "serving": True}, "serving: found no SavedModel among"),
        ({"formats": [Format.onnx], "report": True}, "report: found no SavedModel among"),
        ({"report": True, "reads_images": False}, "report: found .*run, a lifter; expected"),
        ({"flip_test": True, "reads_images": False}, "flip_test: found .*run, a lifter; expected"),
        (
            {"flip_test": True, "formats": [Format.savedmodel, Format.onnx]},
            "flip_test: is of LiteRT files and the report; expected one of them",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path, asked, message):
    with pytest.raises(ModelError, match=message):
        run(tmp_path, **asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "asked", "extra"),
    [
        ("tf2onnx", {"formats": [Format.savedmodel, Format.onnx]}, "onnx"),
        ("openvino", {"formats": [Format.savedmodel, Format.openvino]}, "openvino"),
        ("tensorflow_serving", {"serving": True, "precisions": [Precision.float16]}, "serving"),
    ],
)
def test_extras_that_are_not_installed(tmp_path, monkeypatch, package, asked, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ModelError, match=rf"no package {package}; .*'rle-tf\[{extra}\]'"):
        run(tmp_path, **asked)
    assert not list(tmp_path.iterdir())
