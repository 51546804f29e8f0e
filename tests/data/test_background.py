"""Places without people."""

import json

import numpy as np
import pytest

from rle_tf.config import load_config
from rle_tf.data.background import background, with_background
from rle_tf.data.coco import CocoSource
from rle_tf.errors import DataError


@pytest.fixture(scope="module")
def source(coco_sample):
    return CocoSource(
        coco_sample / "annotations/person_keypoints_val2017.json", coco_sample / "val2017"
    )


def test_boxes_touch_nobody_annotated_and_lie_in_their_photographs(source):
    places = background(source, 200)
    annotations = source.ground_truth.dataset["annotations"]
    assert len(places) == 200
    for box, image, wh in zip(places.boxes_xyxy, places.image_ids, places.image_wh, strict=True):
        assert (box[:2] >= 0).all() and (box[2:] <= wh - 1).all() and (box[2:] > box[:2]).all()
        side = (box[2:] - box[:2]).max()
        assert 0.15 <= side / wh.min() <= 0.5
        # All that an upright crop of a training view shows.
        centre, reach = (box[:2] + box[2:]) / 2, 1.25 * 1.3 * side / 2
        low, high = centre - reach, centre + reach
        for annotation in annotations:
            if annotation["image_id"] == image:  # crowds and people without joints, too
                x, y, w, h = annotation["bbox"]
                assert low[0] > x + w or high[0] < x or low[1] > y + h or high[1] < y


def test_each_has_the_pose_of_somebody_else_as_it_is_in_its_own_box(source):
    places, people = background(source, 50), source.records

    def in_box(records):
        low, high = records.boxes_xyxy[:, None, :2], records.boxes_xyxy[:, None, 2:]
        shares = (records.keypoints - low) / (high - low)
        return np.where(records.labelled[..., None], shares, -9).reshape(len(records), -1)

    known = in_box(people)
    for pose, count in zip(in_box(places), places.labelled.sum(axis=1), strict=True):
        assert np.abs(known - pose).max(axis=1).min() < 1e-3 and count > 0


def test_the_same_seed_draws_the_same_and_another_one_others(source):
    one, same, other = (background(source, 20, seed).boxes_xyxy for seed in (1, 1, 2))
    assert (one == same).all() and not (one == other).all()


def test_they_join_the_people_to_train_on_and_nobody_else(coco_sample, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: a\n"
        f"data: {{source: {{kind: coco, root: {json.dumps(str(coco_sample))}, background: 0.1}}}}\n"
        "model: {backbone: mobilenet}\n"
        "train: {batch_size: 4, epochs: 1}\n"
    )
    config = load_config(recipe)
    train, val = config.open_source("train"), config.open_source("val")
    plain = load_config(recipe, ["data.source.background=0"]).open_source("train")
    assert train.parts == (len(train.records),) == (round(1.1 * len(plain.records)),)
    assert len(val.records) == 880
    assert (train.records.person_ids[len(plain.records) :] == -1).all()
    assert train.take(slice(-3, None)).records.labelled.any(axis=1).all()


def test_where_there_is_no_room_it_is_said(write_coco):
    def fill(dataset):
        for entry in dataset["annotations"]:
            entry["bbox"] = [0, 0, 95, 79]

    source = CocoSource(*write_coco(fill))
    with pytest.raises(DataError, match="found room for 0 boxes beside all people; expected 3"):
        background(source, 3)
    assert len(with_background(source, 0.0).records) == len(source.records)
