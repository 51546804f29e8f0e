"""What the command line says: help, and errors in a line instead of a traceback."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rle_tf import cli, console
from rle_tf.commands.options import RECIPES
from rle_tf.errors import ConfigError, DataError, ModelError, RLEError

RECIPE = """
name: tiny
data:
  source: {kind: coco, root: nowhere}
  image_size: [64, 64]
model: {backbone: mobilenet_v3_small}
train: {batch_size: 2, epochs: 1}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return "tiny.yaml"


def run(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


def fails(*arguments) -> RLEError:
    result = run(*arguments)
    assert isinstance(result.exception, RLEError), result.output
    return result.exception


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate", "predict", "export", "serve"])
def test_every_verb_s_help_shows_an_example(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example:  rle-tf {verb}" in result.output


def test_the_version():
    assert run("--version").output.startswith("rle-tf 0.")


def test_no_arguments_show_the_help():
    assert "demo" in run().output


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["train", "absent.yaml"], ConfigError, "absent.yaml: no such file"),
        (["train", "tiny.yaml", "--set", "train.batchsize=3"], ConfigError,
         r"tiny.yaml.*train.batchsize: unknown key; did you mean 'batch_size'\?"),
        (["train", "tiny.yaml", "--set", "train.batch_size"], ConfigError, "--set train.batch_si"),
        (["train", "tiny.yaml"], DataError, "nowhere/annotations/person_keypoints_train2017.json"),
        (["train", "tiny.yaml", "--data-root", "else"], DataError, "else/annotations/"),
        (["train", "tiny.yaml", "--resume"], ConfigError, "runs/tiny: holds no run to resume"),
        (["evaluate", "runs/none"], ModelError, "runs/none/config.yaml: no such file"),
        (["export", "runs/none"], ModelError, "runs/none/config.yaml: no such file"),
        (["predict", "--model", "runs/none", "a.jpg"], ModelError, "neither config.yaml nor"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(recipe, arguments, kind, message):
    error = fails(*arguments)
    assert type(error) is kind
    assert re.search(message, str(error)), error


def test_a_run_folder_is_not_overwritten(recipe, tmp_path):
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(RECIPE)
    assert "holds a run already" in str(fails("train", recipe))


def test_main_prints_the_message_alone(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rle-tf", "train", "absent.yaml"])
    with pytest.raises(SystemExit) as exit_status:
        cli.main()
    assert exit_status.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: absent.yaml: no such file")
    assert "Traceback" not in printed


def test_brackets_of_a_message_are_printed_as_they_are(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rle-tf", "train", "tiny.yaml", "--set", "data.mean=[1, 2]"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "data.mean" in capsys.readouterr().err


def test_metrics_without_ground_truth_say_so():
    with cli.CONSOLE.capture() as captured:
        console.print_scores({"AP": 0.5, "APL": float("nan"), "error_px/nose": 3.0}, "title")
    text = captured.get()
    assert "0.500" in text and "no ground truth" in text and "nose" not in text


def test_a_recipe_that_comes_with_the_package_is_found_by_its_name(recipe):
    error = fails("train", "coco_sample", "--data-root", "nowhere")
    assert type(error) is DataError and "nowhere/annotations" in str(error)


def test_a_folder_that_cannot_be_made_is_named(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rle-tf", "evaluate", "run", "--out", "tiny.yaml/out"])
    monkeypatch.setattr("rle_tf.run_folder.load_regressor", lambda path: None)
    Path("run").mkdir()
    shutil.copy("tiny.yaml", "run/config.yaml")
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("error: tiny.yaml/out: Not a directory")


def test_recipes_lie_where_the_demo_looks():
    names = {path.name for path in RECIPES.glob("*.yaml")}
    assert {"demo.yaml", "coco_sample.yaml", "coco_resnet50_rle.yaml"} <= names
