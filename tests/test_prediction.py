"""Photographs and boxes in, poses out."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf import prediction
from rle_tf.data.confidence import Confidence
from rle_tf.data.source import Poses
from rle_tf.errors import DataError, ModelError
from rle_tf.geometry import crop_boxes
from rle_tf.skeletons import COCO17


def brightest_pixel(crops):
    """A stand-in regressor: all joints at the brightest pixel of the crop, sigma 0.1."""
    crops = tf.cast(crops, tf.float32)
    height, width = crops.shape[1:3]
    flat = tf.argmax(tf.reshape(tf.reduce_sum(crops, -1), (len(crops), -1)), axis=1)
    x, y = flat % width / width - 0.5, flat // width / height - 0.5
    mu = tf.cast(tf.stack([x, y], axis=-1), tf.float32)
    mu = tf.repeat(mu[:, None], len(COCO17.joints), axis=1)
    return {"mu": mu, "sigma": tf.fill(tf.shape(mu), 0.1)}


@pytest.fixture
def predictor():
    return prediction.Predictor(COCO17, (128, 96), 1.25, np.array([1.0, 0.5]), brightest_pixel)


def photograph(path, bright_xy=(150, 60), size=(300, 200), **save):
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    x, y = bright_xy
    pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    Image.fromarray(pixels).save(path, **save)
    return path


def test_a_pose_comes_back_in_pixels_of_the_photograph(predictor, tmp_path):
    image = prediction.read_image(photograph(tmp_path / "a.png"))
    poses = predictor(image, np.array([[100.0, 20, 190, 140], [120, 30, 180, 100]]))
    assert isinstance(poses, Poses)
    np.testing.assert_allclose(poses.keypoints, np.full((2, 17, 2), (150, 60)), atol=2)
    widths = poses.crop_boxes_xyxy[:, 2] - poses.crop_boxes_xyxy[:, 0]
    np.testing.assert_allclose(poses.sigmas[:, 0, 0], 0.1 * widths, rtol=1e-5)
    heights = poses.crop_boxes_xyxy[:, 3] - poses.crop_boxes_xyxy[:, 1]
    np.testing.assert_allclose(poses.sigmas[:, 0, 1], 0.05 * heights, rtol=1e-5)


def test_without_a_flow_no_error_is_claimed(tmp_path):
    unknown = np.array([np.nan, np.nan])
    predictor = prediction.Predictor(COCO17, (128, 96), 1.25, unknown, brightest_pixel)
    (entry,) = prediction.predict_images(
        predictor, [photograph(tmp_path / "a.png")], tmp_path / "out"
    )
    assert entry["people"][0]["joints"][0]["sigma_x"] is None
    assert "NaN" not in (tmp_path / "out" / "predictions.json").read_text()


def test_of_a_calibrated_model_joints_that_are_not_sure_can_be_left_out(predictor, tmp_path):
    values = np.linspace(0.9, 0.1, 17)[:, None] * np.ones(2)
    sure = dataclasses.replace(predictor, confidence=Confidence(np.array([-4.0, -1]), values))
    image = photograph(tmp_path / "a.png")
    pictures = []
    for least in (0.0, 0.95):
        (entry,) = prediction.predict_images(sure, [image], tmp_path / "out", min_confidence=least)
        (person,) = entry["people"]
        assert person["confidence"] == pytest.approx(0.5, abs=1e-3)
        assert person["joints"][0]["confidence"] == pytest.approx(0.9, abs=1e-3)
        with Image.open(tmp_path / "out/a.png") as drawn:
            pictures.append(np.asarray(drawn, int))
    plain = np.asarray(Image.open(image), int)
    assert np.abs(pictures[0] - plain).sum() > 0 and (pictures[1] == plain).all()


def test_no_boxes_no_people(predictor, tmp_path):
    image = prediction.read_image(photograph(tmp_path / "a.png"))
    assert predictor(image, np.zeros((0, 4))).keypoints.shape == (0, 17, 2)


def test_files_that_are_written(predictor, tmp_path):
    first = photograph(tmp_path / "a.png")
    (tmp_path / "other").mkdir()
    second = photograph(tmp_path / "other" / "a.png", bright_xy=(20, 180))
    boxes = {str(first): np.array([[100.0, 20, 90, 120], [120, 30, 60, 70]])}
    done = []
    out = tmp_path / "out"
    predictions = prediction.predict_images(predictor, [first, second], out, boxes, done.append)

    assert done == [first, second]
    assert json.loads((out / "predictions.json").read_text()) == predictions
    assert [len(entry["people"]) for entry in predictions] == [2, 1]  # no box: the whole image
    assert predictions[1]["people"][0]["box_xywh"] == [0, 0, 300, 200]
    joint = predictions[1]["people"][0]["joints"][5]
    assert joint["name"] == "left_shoulder"
    assert joint["score"] == pytest.approx(0.9, abs=1e-3) and joint["confidence"] is None
    assert (joint["x"], joint["y"]) == (pytest.approx(20, abs=4), pytest.approx(180, abs=4))
    # Two photographs of one name do not overwrite each other.
    assert sorted(path.name for path in out.glob("*.png")) == ["a.png", "a_.png"]
    with Image.open(out / "a.png") as drawn:
        assert drawn.size == (300, 200)
        assert np.abs(np.asarray(drawn, int) - np.asarray(Image.open(first), int)).sum() > 0


def test_boxes_by_name_without_folder_and_those_left_over(predictor, tmp_path, caplog):
    image = photograph(tmp_path / "a.png")
    boxes = {"a.png": np.zeros((0, 4)), "b.png": np.zeros((1, 4))}
    (entry,) = prediction.predict_images(predictor, [image], tmp_path / "out", boxes)
    assert entry["people"] == []
    assert "b.png" in caplog.text


def test_boxes_of_images_that_share_a_name(predictor, tmp_path):
    images = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        images.append(photograph(tmp_path / name / "x.png"))
    boxes = {"x.png": np.array([[120.0, 30, 60, 70]]), str(images[1]): np.zeros((2, 4)) + 50}
    first, second = prediction.predict_images(predictor, images, tmp_path / "out", boxes)
    assert first["people"][0]["box_xywh"] == [120, 30, 60, 70]
    assert len(second["people"]) == 2
    both = prediction.predict_images(predictor, images, tmp_path / "o", {"x.png": boxes["x.png"]})
    assert [entry["people"][0]["box_xywh"] for entry in both] == [[120, 30, 60, 70]] * 2


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_images_of_any_mode(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (30, 20), (200, 200, 200)).convert(mode).save(path)
    image = prediction.read_image(path)
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8


def test_a_photograph_is_turned_as_its_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    path = photograph(tmp_path / "a.jpg", bright_xy=(2, 100), exif=exif)
    image = prediction.read_image(path)
    assert image.shape == (300, 200, 3)
    y, x = np.unravel_index(image.sum(-1).argmax(), image.shape[:2])
    assert (x, y) == (pytest.approx(99, abs=2), pytest.approx(2, abs=2))


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.jpg: cannot be read as an image"):
        prediction.read_image(path)


def test_a_truncated_or_absent_photograph_is_named(tmp_path):
    path = photograph(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match="a.jpg: cannot be read as an image"):
        prediction.read_image(path)
    with pytest.raises(DataError, match="b.jpg: no such file"):
        prediction.read_image(tmp_path / "b.jpg")


def test_a_box_outside_its_image_is_named(predictor, tmp_path):
    image = photograph(tmp_path / "a.png")
    boxes = {"a.png": np.array([[400.0, 20, 90, 120]])}
    with pytest.raises(DataError, match=r"a.png: the box \[400.0, .* no area inside .* 300x200"):
        prediction.predict_images(predictor, [image], tmp_path / "out", boxes)


def test_boxes_are_read(tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text('{"a.jpg": [[1, 2, 3, 4.5], [5, 6, 7, 8]], "b.jpg": []}')
    boxes = prediction.read_boxes(path)
    assert boxes["a.jpg"].tolist() == [[1, 2, 3, 4.5], [5, 6, 7, 8]]
    assert boxes["b.jpg"].shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a list"),
        ("{", "not JSON"),
        ('{"a.jpg": [[1, 2, 3]]}', r"'a.jpg' has the box \[1, 2, 3\]"),
        ('{"a.jpg": [1, 2, 3, 4]}', "'a.jpg' has the box 1"),
        ('{"a.jpg": [[1, 2, 3, "4"]]}', "'a.jpg' has the box"),
        ('{"a.jpg": [[1, 2, 3, NaN]]}', "'a.jpg' has the box"),
        ('{"a.jpg": 7}', "'a.jpg' has the box 7"),
        ('{"a.jpg": [[1, 2, 3, true]]}', "'a.jpg' has the box"),
    ],
)
def test_wrong_boxes_are_named(tmp_path, text, message):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        prediction.read_boxes(path)


def test_an_absent_boxes_file_is_named(tmp_path):
    with pytest.raises(DataError, match="boxes.json: cannot be read"):
        prediction.read_boxes(tmp_path / "boxes.json")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="neither config.yaml nor saved_model.pb"):
        prediction.load(tmp_path)
    (tmp_path / "config.yaml").write_text("name: x")
    with pytest.raises(ModelError, match="regressor.keras: no such file"):
        prediction.load(tmp_path)


def test_the_flip_test_of_an_exported_model_is_a_signature(monkeypatch, tmp_path):
    metadata = {
        "input": "image", "skeleton": "coco17", "joints": COCO17.joints,
        "flip_pairs": COCO17.flip_pairs,
        "bones": COCO17.bones, "image_size": [128, 96], "box_margin": 1.25, "spread": [None, None],
    }  # fmt: skip
    (tmp_path / "saved_model.pb").touch()
    signatures = {"serving_default": lambda image: brightest_pixel(image)}
    monkeypatch.setattr(prediction, "read_metadata", lambda folder: metadata)
    monkeypatch.setattr(
        tf.saved_model, "load", lambda folder: SimpleNamespace(signatures=signatures)
    )
    with pytest.raises(ModelError, match="found the signatures serving_default; expected 'serv"):
        prediction.load(tmp_path, flip_test=True)
    signatures["serving_default_flip_test"] = lambda image: brightest_pixel(image[:, :, ::-1])
    image = prediction.read_image(photograph(tmp_path / "a.png"))
    box = np.array([[100.0, 20, 190, 140]])
    plain, other = (prediction.load(tmp_path, flip)(image, box).keypoints for flip in (False, True))
    low, high = crop_boxes(box, (128, 96), 1.25)[0].numpy().reshape(2, 2)
    np.testing.assert_allclose(plain[..., 0] + other[..., 0], low[0] + high[0], atol=3)
    np.testing.assert_allclose(plain[..., 1], other[..., 1], atol=0.1)
