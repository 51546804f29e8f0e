"""COCO people: what is read, how it is scored, and what is said of files that cannot be used."""

import contextlib
import dataclasses
import gc
import io
import json
import math
import re
import shutil

import numpy as np
import pytest

from rle_tf.data.coco import CocoSource
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError
from rle_tf.skeletons import COCO17, LSP14


def true_poses(records: Records, shift_px=(0.0, 0.0)) -> Poses:
    """The annotated joints as if a regressor had said them."""
    people, joints = records.labelled.shape
    return Poses(
        keypoints=records.keypoints[..., :2].astype(float) + shift_px,
        sigmas=np.ones((people, joints, 2)),
        joint_scores=np.full((people, joints), 0.9),
        person_scores=np.ones(people),
        crop_boxes_xyxy=records.boxes_xyxy,
    )


def message(*parts: str) -> str:
    """A pattern of parts that stand in a message in this order."""
    return ".*".join(re.escape(part) for part in parts)


# ---- what is read


def test_the_sample_s_people_are_read(coco_sample):
    people = {}
    for split in ("train2017", "val2017"):
        annotations = coco_sample / f"annotations/person_keypoints_{split}.json"
        people[split] = CocoSource(annotations, coco_sample / split).records
    assert {split: len(records) for split, records in people.items()} == {
        "train2017": 1554,
        "val2017": 880,
    }
    for records in people.values():
        assert records.keypoints.shape == (len(records), 17, 2)
        assert records.labelled.any(axis=1).all()
        low, high = records.boxes_xyxy[:, :2], records.boxes_xyxy[:, 2:]
        assert (low >= 0).all() and (low < high).all() and (high <= records.image_wh - 1).all()


def test_a_record_holds_what_the_annotation_says(write_coco):
    annotations, images = write_coco()
    entry = json.loads(annotations.read_text())["annotations"][1]
    records = CocoSource(annotations, images).records
    assert records.image_paths[1] == str(images / "photo_1.jpg")
    assert records.image_wh[1].tolist() == [96, 80]
    assert records.boxes_xyxy[1].tolist() == [28, 8, 28 + 45 - 1, 8 + 65 - 1]
    joints = np.array(entry["keypoints"]).reshape(17, 3)
    np.testing.assert_allclose(records.keypoints[1], joints[:, :2], rtol=1e-6)
    np.testing.assert_array_equal(records.labelled[1], joints[:, 2] > 0)
    assert not records.labelled[1, 3:5].any() and records.labelled[1].sum() == 15
    assert records.areas[1] == 1500
    assert (records.image_ids[1], records.person_ids[1]) == (102, 502)


def test_crowds_other_categories_and_people_without_labels_are_no_records(write_coco):
    def change(dataset):
        crowd, unlabelled, _ = dataset["annotations"]
        crowd["iscrowd"] = 1
        unlabelled["keypoints"] = [0] * 51
        dataset["categories"].append({"id": 3, "name": "car"})
        dataset["annotations"].append({"id": 9, "image_id": 101, "category_id": 3})

    source = CocoSource(*write_coco(change))
    assert source.records.person_ids.tolist() == [503]
    assert source.score(true_poses(source.records))["AP"] == pytest.approx(1)


def test_joints_on_the_far_edge_whole_floats_and_folders_are_fine(write_coco):
    def change(dataset):
        dataset["annotations"][0]["keypoints"][:2] = [96, 80]
        dataset["images"][0].update(width=96.0, height=80.0, file_name="batch/photo_0.jpg")

    annotations, images = write_coco(change)
    (images / "batch").mkdir()
    (images / "photo_0.jpg").rename(images / "batch/photo_0.jpg")
    records = CocoSource(annotations, images).records
    assert records.keypoints[0, 0].tolist() == [96, 80]
    assert records.image_wh[0].tolist() == [96, 80]


# ---- scores


def test_the_sample_s_ground_truth_scores_one(coco_sample):
    annotations = coco_sample / "annotations/person_keypoints_val2017.json"
    source = CocoSource(annotations, coco_sample / "val2017")
    scores = source.score(true_poses(source.records))
    assert scores["AP"] == pytest.approx(1.0, abs=5e-4)
    assert scores["AR"] == pytest.approx(1.0, abs=5e-4)
    assert scores["PCK@0.1"] == 1.0 and scores["error_px"] == 0.0


def test_errors_are_in_pixels_and_cost_ap(write_coco):
    source = CocoSource(*write_coco())
    scores = source.score(true_poses(source.records, shift_px=(3, 4)))
    assert scores["error_px"] == pytest.approx(5)
    assert scores["error_px/left_wrist"] == pytest.approx(5)
    assert math.isnan(scores["error_px/left_ear"])  # nobody's is labelled
    assert scores["PCK@0.1"] == 1.0  # the box is 65 pixels high
    assert scores["AP"] < 0.5
    far = source.score(true_poses(source.records, shift_px=(6, 4)))
    assert far["PCK@0.1"] == 0.0


def test_what_can_be_told_from_other_keys_may_be_missing(write_coco):
    def change(dataset):
        for entry in dataset["annotations"]:
            del entry["iscrowd"], entry["num_keypoints"]

    source = CocoSource(*write_coco(change))
    assert source.score(true_poses(source.records))["AP"] == pytest.approx(1)


def test_a_part_of_the_people_is_scored_against_all(write_coco):
    source = CocoSource(*write_coco(people=4))
    part = source.take(np.array([3, 1]))
    assert part.records.person_ids.tolist() == [504, 502]
    assert len(source.records) == 4
    scores = part.score(true_poses(part.records))
    assert scores["AR"] == pytest.approx(0.5)
    assert scores["error_px"] == 0
    assert len(part.results(true_poses(part.records))) == 2


def test_results_load_with_pycocotools(write_coco):
    source = CocoSource(*write_coco())
    results = json.loads(json.dumps(source.results(true_poses(source.records))))
    assert results[1]["image_id"] == 102 and results[1]["category_id"] == 1
    assert results[1]["score"] == 1.0
    x, y, score = np.reshape(results[1]["keypoints"], (17, 3)).T
    np.testing.assert_allclose(np.stack([x, y], 1), source.records.keypoints[1], atol=1e-3)
    assert (score == 0.9).all()
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = source.ground_truth.loadRes(results)
    assert len(loaded.anns) == 3


# ---- detections


def write_detections(annotations, entries):
    path = annotations.with_name("detections.json")
    path.write_text(json.dumps(entries))
    return path


def detection(image_id=101, score=0.8, bbox=(28, 8, 45, 65), **changes):
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": list(bbox),
        "score": score,
        **changes,
    }


def test_detections_are_the_records_and_nothing_is_labelled(write_coco):
    annotations, images = write_coco()
    entries = [
        detection(103, 0.4, (-5, 2, 30, 40)),
        detection(101, 0.2),
        detection(101, 0.9, category_id=3),  # a car
        detection(102, 0.3),
    ]
    source = CocoSource(
        annotations,
        images,
        detections=write_detections(annotations, entries),
        min_box_score=0.25,
    )
    records = source.records
    assert records.image_ids.tolist() == [103, 102]
    assert records.box_scores.tolist() == [0.4, 0.3]
    assert records.boxes_xyxy[0].tolist() == [0, 2, 24, 41]
    assert not records.labelled.any()
    assert records.person_ids.tolist() == [-1, -1]


def test_of_two_detections_of_one_person_the_stronger_stays(write_coco):
    annotations, images = write_coco()
    # Twice the person of 101, and the same places in 102, which are another person's.
    path = write_detections(annotations, [detection(i, 0.5) for i in (101, 101, 102)])
    people = CocoSource(annotations, images).records
    poses = true_poses(people.take(np.array([0, 0, 1])))
    poses.keypoints[:] = people.keypoints[0] + np.array([0, 0.2, 0])[:, None, None]
    poses.person_scores[:] = [0.6, 0.7, 0.5]
    source = CocoSource(annotations, images, detections=path)
    results = source.results(poses)
    assert [(r["image_id"], r["score"]) for r in results] == [(101, 0.7), (102, 0.5)]
    assert results[0]["keypoints"][0] == pytest.approx(people.keypoints[0, 0, 0] + 0.2, abs=1e-3)
    lenient = CocoSource(annotations, images, detections=path, oks_nms_threshold=1.0)
    assert len(lenient.results(poses)) == 3
    scores = source.score(poses)
    assert 0 < scores["AP"] < 1 and "error_px" not in scores


def test_the_sample_s_detections(coco_sample):
    source = CocoSource(
        coco_sample / "annotations/person_keypoints_val2017.json",
        coco_sample / "val2017",
        detections=coco_sample / "detections/person_detections_val2017.json",
    )
    records = source.records
    assert len(records) == 96
    # All joints in the middle of each box: poor poses, but well-formed ones.
    middle = (records.boxes_xyxy[:, None, :2] + records.boxes_xyxy[:, None, 2:]) / 2
    poses = true_poses(records)
    poses.keypoints[:] = middle
    results = source.results(poses)
    assert 0 < len(results) <= 96
    with contextlib.redirect_stdout(io.StringIO()):
        source.ground_truth.loadRes(results)
    assert 0 <= source.score(poses)["AP"] < 0.1


def test_no_detections_are_no_results(write_coco):
    annotations, images = write_coco()
    source = CocoSource(annotations, images, detections=write_detections(annotations, []))
    assert len(source.records) == 0
    assert source.results(true_poses(source.records)) == []
    assert source.score(true_poses(source.records))["AP"] == 0


def test_detections_of_few_images_are_told(write_coco, caplog):
    annotations, images = write_coco()
    CocoSource(annotations, images, detections=write_detections(annotations, [detection()]))
    assert "has people in 1 of 3 images; those annotated in the others count" in caplog.text


def test_detections_without_area_are_left_out_and_counted(write_coco, caplog):
    """Detectors give them: a pixel wide, or outside the image."""
    annotations, images = write_coco()
    entries = [detection(), detection(bbox=(100, 2, 30, 40)), detection(bbox=(5, 5, 1, 1))]
    path = write_detections(annotations, entries)
    source = CocoSource(annotations, images, detections=path)
    assert len(source.records) == 1
    assert "left out 2 of 3 detections" in caplog.text
    assert f"{path}: detection 1" in caplog.text


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ({"image_id": 101}, ["holds a dict", "expected a list of COCO detections"]),
        ([3], ["detection 0 is 3", "expected 'image_id'"]),
        (
            [detection(), {"image_id": 101, "bbox": [1, 2, 3, 4]}],
            ["detection 1", "{'image_id': 101", "'score'"],
        ),
        ([detection(999)], ["detection 0 is of image 999", "people.json does not list"]),
        ([detection([101])], ["detection 0 is of image [101]", "does not list"]),
        ([detection(score=math.nan)], ["detection 0 has score nan", "a finite number"]),
        ([detection(score="high")], ["detection 0 has score 'high'", "a finite number"]),
        ([detection(bbox=(1, 2, 3))], ["detection 0 has bbox [1, 2, 3]", "four numbers"]),
        ([detection(bbox=(1, 2, 3, math.inf))], ["bbox [1, 2, 3, inf]", "four numbers"]),
    ],
)
def test_bad_detections_are_named(write_coco, entries, parts):
    annotations, images = write_coco()
    path = write_detections(annotations, entries)
    with pytest.raises(DataError, match=message(str(path), *parts)):
        CocoSource(annotations, images, detections=path)


# ---- files that cannot be used


def test_reading_leaves_the_collector_of_garbage_on(write_coco, tmp_path):
    annotations, images = write_coco()
    CocoSource(annotations, images)
    assert gc.isenabled()
    with pytest.raises(DataError):
        CocoSource(annotations, tmp_path / "absent")
    assert gc.isenabled()


def test_a_missing_annotation_file_is_named(write_coco):
    annotations, images = write_coco()
    annotations.unlink()
    with pytest.raises(DataError, match=message(str(annotations), "no such file", "expected")):
        CocoSource(annotations, images)


def test_a_missing_detections_file_is_named(write_coco):
    annotations, images = write_coco()
    absent = annotations.with_name("absent.json")
    with pytest.raises(DataError, match=message(str(absent), "no such file", "expected")):
        CocoSource(annotations, images, detections=absent)


def test_a_missing_image_folder_is_named(write_coco):
    annotations, images = write_coco()
    shutil.rmtree(images)
    with pytest.raises(
        DataError, match=message(str(images), "no such folder", "expected", str(annotations))
    ):
        CocoSource(annotations, images)


def test_missing_images_are_counted_and_the_first_is_named(write_coco):
    annotations, images = write_coco()
    (images / "photo_1.jpg").unlink()
    (images / "photo_2.jpg").unlink()
    parts = (str(annotations), "2 of 3 images are missing", str(images / "photo_1.jpg"), "expected")
    with pytest.raises(DataError, match=message(*parts)):
        CocoSource(annotations, images)


def test_an_absent_image_that_nobody_is_on_does_not_matter(write_coco):
    annotations, images = write_coco(lambda dataset: dataset["annotations"].pop(0))
    (images / "photo_0.jpg").unlink()
    assert len(CocoSource(annotations, images).records) == 2


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("not json", ["not JSON", "expected a COCO keypoint dataset"]),
        ("", ["not JSON", "expected a COCO keypoint dataset"]),
        (b"\xff\xd8\xff\xe0", ["not JSON", "expected a COCO keypoint dataset"]),
        ("[]", ["holds a list", "expected a COCO keypoint dataset"]),
        ("{}", ["no list 'images'", "expected a COCO keypoint dataset"]),
        ('{"images": [], "categories": []}', ["no list 'annotations'", "expected"]),
        (
            '{"images": [], "annotations": {}, "categories": []}',
            ["no list 'annotations'", "expected"],
        ),
        ('{"images": [], "annotations": []}', ["no list 'categories'", "expected"]),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}, 4]}',
            ["found none with keypoints", "expected ['nose', 'left_eye'"],
        ),
    ],
)
def test_a_file_that_is_no_keypoint_dataset_is_named(tmp_path, content, parts):
    path = tmp_path / "people.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message(str(path), *parts)):
        CocoSource(path, tmp_path)


def test_another_skeleton_is_refused(write_coco):
    annotations, images = write_coco()
    parts = (str(annotations), "'lsp14'", "found 1 'person' with ['nose'", "['right_ankle'")
    with pytest.raises(DataError, match=message(*parts)):
        CocoSource(annotations, images, skeleton=LSP14)


def test_joints_in_another_order_are_refused(write_coco):
    def change(dataset):
        dataset["categories"][0]["keypoints"].reverse()

    parts = ("people.json", "'coco17'", "found 1 'person' with ['right_ankle'", "['nose'")
    with pytest.raises(DataError, match=message(*parts)):
        CocoSource(*write_coco(change))


def set_keypoint(index, value):
    def change(dataset):
        dataset["annotations"][1]["keypoints"][index] = value

    return change


def set_annotation(**values):
    return lambda dataset: dataset["annotations"][1].update(values)


def set_image(**values):
    return lambda dataset: dataset["images"][1].update(values)


def drop(table, key):
    return lambda dataset: dataset[table][1].pop(key)


def nose_at(*xyv):
    def change(dataset):
        dataset["annotations"][1]["keypoints"][:3] = xyv

    return change


PERSON = "annotation 502"
BAD_ENTRIES = {
    "annotations that are numbers": (
        lambda dataset: dataset.update(annotations=[1, 2]),
        ["annotations[0] is 1", "expected an object with 'id'"],
    ),
    "no category_id": (
        drop("annotations", "category_id"),
        ["annotations[1] is {'id': 502", "expected", "'category_id'"],
    ),
    "no id": (drop("annotations", "id"), ["annotations[1] has id None", "expected a whole number"]),
    "id of text": (set_annotation(id="a"), ["annotations[1] has id 'a'", "a whole number"]),
    "absent image": (
        set_annotation(image_id=999),
        [PERSON, "image 999, which 'images' does not list", "expected one of its 3 ids"],
    ),
    "no image": (drop("annotations", "image_id"), [PERSON, "image None", "expected one of"]),
    "image of a list": (set_annotation(image_id=[1]), [PERSON, "image [1]", "expected one of"]),
    "no keypoints": (
        drop("annotations", "keypoints"),
        [PERSON, "keypoints of None", "expected 51 numbers"],
    ),
    "short keypoints": (
        set_annotation(keypoints=[1.0] * 50),
        [PERSON, "keypoints of 50 numbers", "expected 51 numbers", "17 joints of 'coco17'"],
    ),
    "NaN keypoint": (
        set_keypoint(3, math.nan),
        [PERSON, "nan at keypoints[3], x of left_eye", "expected a finite number"],
    ),
    "infinite keypoint": (
        set_keypoint(16, math.inf),
        [PERSON, "inf at keypoints[16], y of left_shoulder", "expected a finite number"],
    ),
    "keypoint of text": (
        set_keypoint(2, "2"),
        [PERSON, "'2' at keypoints[2], the visibility of nose", "expected a finite number"],
    ),
    "null keypoint": (
        set_keypoint(50, None),
        [PERSON, "None at keypoints[50], the visibility of right_ankle", "a finite number"],
    ),
    "nested keypoint": (
        set_keypoint(0, [1.0]),
        [PERSON, "[1.0] at keypoints[0], x of nose", "a finite number"],
    ),
    "a number that float64 does not hold": (
        set_keypoint(0, 10**400),
        [PERSON, "at keypoints[0], x of nose", "a finite number"],
    ),
    "joint right of the image": (
        nose_at(98, 30, 2),
        [PERSON, "nose at [98.0, 30.0, 2.0]", "image of 96x80", "a place inside the image"],
    ),
    "joint above the image": (
        nose_at(30, -2, 1),
        [PERSON, "nose at [30.0, -2.0, 1.0]", "image of 96x80", "a place inside the image"],
    ),
    "visibility": (
        nose_at(30, 30, 7),
        [PERSON, "nose at [30.0, 30.0, 7.0]", "expected a visibility of 0, 1 or 2", "(1 anno"],
    ),
    "no bbox": (drop("annotations", "bbox"), [PERSON, "bbox None", "expected four numbers"]),
    "bbox of three": (
        set_annotation(bbox=[1, 2, 3]),
        [PERSON, "bbox [1, 2, 3]", "expected four numbers: left, top, width, height"],
    ),
    "bbox with NaN": (
        set_annotation(bbox=[1, 2, 3, math.nan]),
        [PERSON, "bbox [1, 2, 3, nan]", "expected four numbers"],
    ),
    "bbox of text": (set_annotation(bbox="1,2,3,4"), [PERSON, "bbox '1,2,3,4'", "four numbers"]),
    "bbox without area": (
        set_annotation(bbox=[20, 20, 0, 0]),
        [PERSON, "bbox [20, 20, 0, 0]", "no area inside its image of 96x80", "expected a box"],
    ),
    "bbox of negative width": (
        set_annotation(bbox=[50, 20, -30, 40]),
        [PERSON, "bbox [50, 20, -30, 40]", "no area inside its image", "expected a box"],
    ),
    "bbox outside": (
        set_annotation(bbox=[96, 20, 30, 30]),
        [PERSON, "bbox [96, 20, 30, 30]", "no area inside its image of 96x80", "expected a box"],
    ),
    "no area": (drop("annotations", "area"), [PERSON, "area None", "expected the person's area"]),
    "area of zero": (set_annotation(area=0), [PERSON, "area 0", "expected the person's area"]),
    "area NaN": (set_annotation(area=math.nan), [PERSON, "area nan", "the person's area"]),
    "images that are numbers": (
        lambda dataset: dataset.update(images=[7]),
        ["images[0] is 7", "expected an object with 'id'"],
    ),
    "image id of text": (set_image(id="102"), ["images[1]", "'102'", "expected", "a whole number"]),
    "no file_name": (drop("images", "file_name"), ["images[1]", "{'id': 102", "'file_name'"]),
    "file_name of a number": (set_image(file_name=3), ["images[1]", "3", "'file_name' (text)"]),
    "no width": (
        drop("images", "width"),
        ["images[1] (id 102)", "width None and height 80", "expected whole numbers of pixels"],
    ),
    "width NaN": (set_image(width=math.nan), ["images[1] (id 102)", "width nan", "whole numbers"]),
    "height of zero": (set_image(height=0), ["images[1] (id 102)", "height 0", "whole numbers"]),
    "half a pixel": (set_image(width=96.5), ["images[1] (id 102)", "width 96.5", "whole numbers"]),
    "image id twice": (
        set_image(id=101),
        ["images[1] has id 101, as an image before it", "expected every id once"],
    ),
    "category without id": (
        lambda dataset: dataset["categories"][0].pop("id"),
        ["no category with an id", "found None 'person' with ['nose'"],
    ),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_named(write_coco, name):
    change, parts = BAD_ENTRIES[name]
    annotations, images = write_coco(change)
    with pytest.raises(DataError, match=message(str(annotations), *parts)):
        CocoSource(annotations, images)


@pytest.mark.parametrize(
    "file_name",
    [
        "../x.jpg",
        "a/../../x.jpg",
        "/etc/x.jpg",
        "C:\\x.jpg",
        "C:x.jpg",
        "..\\x.jpg",
        "\\x.jpg",
        "\\\\server\\share\\x.jpg",
        "",
        ".",
    ],
)
def test_a_file_name_outside_the_image_folder_is_refused(write_coco, file_name):
    annotations, images = write_coco(set_image(file_name=file_name))
    (images.parent / "x.jpg").write_bytes((images / "photo_1.jpg").read_bytes())
    parts = (
        str(annotations),
        "images[1] (id 102)",
        f"file_name '{file_name}', which is nothing inside the image folder",
        f"expected a path relative to {images}",
    )
    with pytest.raises(DataError, match=message(*parts)):
        CocoSource(annotations, images)


def test_bad_annotations_are_found_with_detections_too(write_coco):
    annotations, images = write_coco(set_annotation(area=None))
    path = write_detections(annotations, [detection()])
    with pytest.raises(DataError, match=message(str(annotations), PERSON, "area None")):
        CocoSource(annotations, images, detections=path)


def test_joints_outside_are_counted(write_coco):
    def change(dataset):
        for entry in dataset["annotations"][:2]:
            entry["keypoints"][:3] = [200, 30, 2]

    with pytest.raises(DataError, match=message("annotation 501", "(2 annotations have this)")):
        CocoSource(*write_coco(change))


def test_an_unlabelled_joint_may_be_anywhere(write_coco):
    records = CocoSource(*write_coco(nose_at(-50, 999, 0))).records
    assert not records.labelled[1, COCO17.joints.index("nose")]


def test_a_skeleton_without_oks_sigmas_has_no_ap_and_no_detections(write_coco, tmp_path):
    annotations, images = write_coco()
    plain = dataclasses.replace(COCO17, name="plain", oks_sigmas=())
    source = CocoSource(annotations, images, skeleton=plain)
    poses = Poses(
        source.records.keypoints, np.ones((3, 17, 2)), np.ones((3, 17)), np.ones(3), np.ones((3, 4))
    )
    scores = source.score(poses)
    assert "AP" not in scores and scores["PCK@0.1"] == 1
    with pytest.raises(DataError, match="'plain', which has no oks_sigmas to tell doubles by"):
        CocoSource(annotations, images, skeleton=plain, detections=tmp_path / "d.json")
