"""MPII: COCO's layout with 16 joints, joints beyond the photograph's edge, and no depths."""

import json
import re
from itertools import product

import numpy as np
import pytest

from rle_tf.data.crops import CropFormat
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.pipeline import check_images, evaluation_batches
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError
from rle_tf.skeletons import COCO17, H36M18, MPII16, SKELETONS, joint_map

SMALL = CropFormat((64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def message(*parts: str) -> str:
    return ".*".join(re.escape(part) for part in parts)


def true_poses(records: Records, shift_px=(0.0, 0.0)) -> Poses:
    people, joints = records.labelled.shape
    return Poses(
        keypoints=records.keypoints.astype(float) + shift_px,
        sigmas=np.ones((people, joints, 2)),
        joint_scores=np.full((people, joints), 0.9),
        person_scores=np.ones(people),
        crop_boxes_xyxy=records.boxes_xyxy,
    )


# ---- skeletons


def test_mpii_s_joints_are_human36m_s_by_their_names():
    places = joint_map(MPII16, H36M18)
    # As the authors' code has it, -1 for None.
    expected = [6, 2, 1, 0, 3, 4, 5, -1, 8, -1, 9, 13, 14, 15, 12, 11, 10, 7]
    assert [-1 if place is None else place for place in places] == expected
    missing = [H36M18.joints[i] for i, place in enumerate(places) if place is None]
    assert missing == ["torso", "nose"]


@pytest.mark.parametrize("names", list(product(SKELETONS, repeat=2)), ids="-".join)
def test_maps_of_joints_are_consistent(names):
    source, target = (SKELETONS[name] for name in names)
    places = joint_map(source, target)
    assert len(places) == len(target.joints)
    found = [place for place in places if place is not None]
    assert len(set(found)) == len(found) >= 12  # all skeletons have limbs
    for joint, place in enumerate(places):
        if place is not None:
            assert source.side(place) == target.side(joint)
            # A mirrored person is mapped as the person.
            mirrored = places[target.flip_permutation[joint]]
            assert mirrored == source.flip_permutation[place]
            assert joint_map(target, source)[place] == joint
    if source is target:
        assert places == tuple(range(len(target.joints)))


def test_the_root_is_the_pelvis():
    assert H36M18.joints[H36M18.root] == MPII16.joints[MPII16.root] == "pelvis"
    assert COCO17.root is None


# ---- what is read


def test_the_real_photographs_are_read(mpii_sample):
    source = MpiiSource(mpii_sample / "annotations/annot_mpii.json", mpii_sample / "images")
    records = source.records
    assert len(records) == 5 and source.skeleton is MPII16 and source.parts == (5,)
    assert records.keypoints.shape == (5, 16, 2)
    assert check_images(records) == {}
    entry = json.loads((mpii_sample / "annotations/annot_mpii.json").read_text())["annotations"][0]
    joints = np.reshape(entry["keypoints"], (16, 3))
    np.testing.assert_allclose(records.keypoints[0], joints[:, :2], rtol=1e-6)
    np.testing.assert_array_equal(records.labelled[0], joints[:, 2] > 0)
    for inputs, target in evaluation_batches(records, MPII16, SMALL, batch_size=5):
        assert inputs.shape == (5, 64, 64, 3) and target["weight"].shape == (5, 16, 2)
        np.testing.assert_array_equal(target["weight"][..., 0] > 0, records.labelled)
    scores = source.score(true_poses(records))
    assert scores["PCK@0.1"] == 1 and scores["error_px"] == 0


def test_joints_beyond_the_edge_stay_where_they_are(write_mpii):
    def change(dataset):
        dataset["annotations"][1]["keypoints"][:6] = [-40, 30, 2, 50, 300, 1]

    records = MpiiSource(*write_mpii(change)).records
    assert records.keypoints[1, :2].tolist() == [[-40, 30], [50, 300]]
    assert records.labelled[1, :2].all() and not records.labelled[:, 2:4].any()


def test_scores_are_pixels_without_ap(write_mpii):
    source = MpiiSource(*write_mpii())
    scores = source.score(true_poses(source.records, shift_px=(3, 4)))
    assert scores["error_px"] == pytest.approx(5) and "AP" not in scores
    assert np.isnan(scores["error_px/left_hip"]) and "error_px/upper_neck" in scores
    assert len(source.results(true_poses(source.records))) == 3


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda dataset: dataset["annotations"][1]["keypoints"].pop(),
            ["annotation 502", "keypoints of 47 numbers", "expected 48 numbers", "'mpii16'"],
        ),
        (
            lambda dataset: dataset["categories"][0].update(keypoints=list(COCO17.joints)),
            ["no category with an id has the joints of skeleton 'mpii16'", "'nose'", "'right_an"],
        ),
        (
            lambda dataset: dataset["annotations"][1]["keypoints"].__setitem__(0, None),
            ["annotation 502", "None at keypoints[0], x of right_ankle", "a finite number"],
        ),
        (
            lambda dataset: dataset["annotations"][1]["keypoints"].__setitem__(2, 7),
            ["annotation 502", "right_ankle at", "expected a visibility of 0, 1 or 2"],
        ),
    ],
)
def test_a_bad_entry_is_named(write_mpii, change, parts):
    annotations, images = write_mpii(change)
    with pytest.raises(DataError, match=message(str(annotations), *parts)):
        MpiiSource(annotations, images)


def test_people_without_a_box_are_left_out_and_counted(write_mpii, caplog):
    def change(dataset):
        dataset["annotations"][0]["area"] = 0
        dataset["annotations"][1]["bbox"] = [200, 8, 45, 65]

    annotations, images = write_mpii(change)
    source = MpiiSource(annotations, images)
    assert source.records.person_ids.tolist() == [503]
    assert "left out 2 of 3 people" in caplog.text
    assert f"{annotations}: annotation 501" in caplog.text
