"""The model that comes with the package."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageFilter

import rle_tf
from rle_tf.data.crops import CropFormat
from rle_tf.data.lsp import LspSource
from rle_tf.data.mix import MappedSource
from rle_tf.evaluation import of_pixels, pixel_format, predict_outputs
from rle_tf.export.savedmodel import read_metadata
from rle_tf.prediction import SHIPPED

MODEL = SHIPPED / "pose_small"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pose():
    return rle_tf.load("pose_small")


def test_what_is_shipped_is_small_and_calibrated(pose):
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    names = {path.name for path in MODEL.iterdir()}
    assert {"1", "1-int8.tflite", "1-int8.json", "1-float16.tflite", "1-float16.json"} <= names
    assert pose.skeleton.joints == rle_tf.PERSON19.joints
    assert pose.spread.shape == (19, 2) and pose.confidence.values.shape[0] == 19
    assert read_metadata(MODEL / "1")["skeleton"] == "person19"


def nobody(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return {
        "grey": np.full((128, 128, 3), 127, np.uint8),
        "noise": rng.integers(0, 256, (128, 128, 3), np.uint8),
        "coarse": np.asarray(coarse.resize((128, 128), Image.Resampling.BICUBIC)),
    }[kind]


@pytest.mark.parametrize("kind", ["grey", "noise", "coarse"])
def test_where_nobody_is_it_is_not_sure(pose, kind):
    poses = pose(nobody(kind), np.array([[0.0, 0, 127, 127]]))
    assert poses.confidences.mean() < 0.35 and np.isfinite(poses.keypoints).all()


def test_it_is_what_predict_takes_by_default(rle_tf, tmp_path):
    Image.new("RGB", (80, 120), (90, 90, 90)).save(tmp_path / "photo.jpg")
    rle_tf(tmp_path, "predict", "photo.jpg")
    (entry,) = json.loads((tmp_path / "poses/predictions.json").read_text())
    (person,) = entry["people"]
    assert [joint["name"] for joint in person["joints"]] == list(MODEL_JOINTS)
    assert 0 <= person["confidence"] < 0.35
    assert (tmp_path / "poses/photo.png").is_file()


@pytest.mark.parametrize("grey", [0, 90, 200])
def test_an_empty_photograph_taller_than_wide_is_no_person(pose, grey):
    poses = pose(np.full((120, 80, 3), grey, np.uint8), np.array([[0.0, 0, 79, 119]]))
    assert poses.confidences.mean() < 0.35


MODEL_JOINTS = rle_tf.PERSON19.joints


@pytest.fixture(scope="module")
def people(lsp_sample, pose):
    """Five hundred people that it was not trained on, and the crops that it takes."""
    source = LspSource(lsp_sample / "joints.mat", lsp_sample / "images", 6501, 7000)
    crops = CropFormat(pose.image_size, (0.5,) * 3, (0.5,) * 3, pose.box_margin)
    return MappedSource(source, pose.skeleton), crops


def outputs(forward, people):
    source, crops = people
    return predict_outputs(of_pixels(forward), source.records, source.skeleton, pixel_format(crops))


@pytest.fixture(scope="module")
def predicted(pose, people):
    return outputs(pose.forward, people)


def scores(output, people, spread):
    source, crops = people
    return source.score(crops.decode(output, source.records, spread))


@pytest.mark.slow
def test_on_real_photographs_it_is_as_good_as_the_model_card_says(pose, people, predicted):
    found = scores(predicted, people, pose.spread)
    card = (REPOSITORY / "MODEL_CARD.md").read_text()
    (line,) = [line for line in card.splitlines() if line.startswith("| no flip test: SavedModel")]
    stated = [float(cell) for cell in line.split("|")[2:4]]
    # The card is of all thousand.
    assert found["PCK@0.2_limbs"] == pytest.approx(stated[0], abs=0.02)
    assert found["PCK@0.1_limbs"] == pytest.approx(stated[1], abs=0.02)
    assert found["within_1_sigma"] == pytest.approx(0.6827, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_for_phones_it_loses_next_to_nothing(pose, people, predicted, precision):
    runner = Interpreter(str(MODEL / f"1-{precision}.tflite")).get_signature_runner(
        "serving_default"
    )
    small = outputs(lambda crops: runner(image=crops.numpy()), people)
    wanted, found = (scores(o, people, pose.spread) for o in (predicted, small))
    assert found["PCK@0.2"] >= wanted["PCK@0.2"] - 0.01


@pytest.mark.slow
def test_blurred_it_is_less_sure(pose, people):
    source, _ = people
    surer = []
    for row in range(0, 200, 10):
        image = Image.open(source.records.image_paths[row]).convert("RGB")
        box = source.records.boxes_xyxy[[row]]
        soft = image.filter(ImageFilter.GaussianBlur(float((box[0, 2:] - box[0, :2]).max()) / 15))
        sharp, blurred = (pose(np.asarray(i), box).confidences.mean() for i in (image, soft))
        surer.append(sharp > blurred)
    assert np.mean(surer) > 0.8


@pytest.mark.slow
def test_an_installed_package_has_it(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", tmp_path, REPOSITORY],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for path in MODEL.rglob("*"):
        if path.is_file():
            assert f"rle_tf/saved_models/pose_small/{path.relative_to(MODEL)}" in names
    assert "rle_tf/configs/pose_small.yaml" in names
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    found = subprocess.run(
        [sys.executable, "-c",
         "import rle_tf, numpy as np; print(rle_tf.__file__);"
         "print(rle_tf.load()(np.zeros((9, 9, 3), np.uint8), np.array([[0., 0, 8, 8]])).keypoints"
         ".shape)"],
        env={"PYTHONPATH": str(tmp_path / "site"), "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert str(tmp_path / "site") in found and "(1, 19, 2)" in found
