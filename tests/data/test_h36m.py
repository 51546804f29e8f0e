"""Human3.6M: cameras and depths, the score of protocol 2, and what is said of unusable files."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rle_tf.data.crops import CropFormat
from rle_tf.data.h36m import H36mSource
from rle_tf.data.pipeline import check_images, evaluation_batches
from rle_tf.data.source import Poses, Records
from rle_tf.data.synthetic import Synthetic3DSource
from rle_tf.errors import DataError
from rle_tf.geometry import DEPTH_MM
from rle_tf.skeletons import H36M18

FILES = (
    "Sample_trainmin_train_Human36M_protocol_2.json",
    "Sample_64_test_Human36M_protocol_2.json",
)
JOINT = {name: index for index, name in enumerate(H36M18.joints)}
SQUARE = CropFormat((128, 128), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def message(*parts: str) -> str:
    """A pattern of parts that stand in a message in this order."""
    return ".*".join(re.escape(part) for part in parts)


def true_poses(records: Records) -> Poses:
    """The annotated joints as if a regressor had said them."""
    people, joints = records.labelled.shape
    return Poses(
        keypoints=records.keypoints.astype(float),
        sigmas=np.ones((people, joints, 3)),
        joint_scores=np.full((people, joints), 0.9),
        person_scores=1 + np.arange(people) / 100,
        crop_boxes_xyxy=records.boxes_xyxy,
    )


def fed_back(source: H36mSource, input_format: CropFormat) -> tuple[Poses, np.ndarray]:
    """The targets of a source's own batches, decoded like a regressor's output; their weights."""
    batches = evaluation_batches(source.records, H36M18, input_format, batch_size=7)
    targets = [target for _, target in batches]
    mu, weight = (
        np.concatenate([target[key] for target in targets]) for key in ("keypoints", "weight")
    )
    output = {"mu": mu, "sigma": np.full_like(mu, 1e-3)}
    return input_format.decode(output, source.records, (1.0, 1.0, 1.0)), weight


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Synthetic3DSource:
    root = tmp_path_factory.mktemp("people") / "synthetic3d"
    return Synthetic3DSource(
        root, "val", train_people=4, val_people=40, seed=3, rendered_size=(96, 96)
    )


# ---- what is read


@pytest.mark.parametrize("file_name", FILES)
def test_the_real_frames_are_read_and_project_into_their_boxes(h36m_sample, file_name):
    path = h36m_sample / "annotations" / file_name
    records = H36mSource(path, h36m_sample / "images").records
    assert len(records) == 4 and records.labelled.all()
    assert records.keypoints.shape == (4, 18, 3) and records.keypoints.dtype == np.float32
    entries = json.loads(path.read_text())["annotations"]
    for entry, found in zip(entries, records.keypoints, strict=True):
        camera = {key: np.array(value) for key, value in entry["cam_param"].items()}
        for joint, world_mm in enumerate(entry["keypoints_world"]):
            x, y, z = camera["R"] @ (np.array(world_mm) - camera["t"])
            pixel = camera["f"] * (x / z, y / z) + camera["c"]
            np.testing.assert_allclose(found[joint, :2], pixel, atol=1e-3)
    # The boxes are those of the people, with a margin; lens distortion moves joints a little.
    low, high = records.boxes_xyxy[:, None, :2] - 3, records.boxes_xyxy[:, None, 2:] + 3
    assert ((low <= records.keypoints[..., :2]) & (records.keypoints[..., :2] <= high)).all()


def test_a_record_holds_what_the_annotation_says(write_h36m):
    annotations, images = write_h36m()
    dataset = json.loads(annotations.read_text())
    source = H36mSource(annotations, images)
    records, entry = source.records, dataset["annotations"][1]
    assert records.image_paths[1] == str(images / dataset["images"][1]["file_name"])
    assert records.image_wh[1].tolist() == [96, 80]
    left, top, width, height = entry["bbox"]
    np.testing.assert_allclose(
        records.boxes_xyxy[1], [left, top, left + width - 1, top + height - 1]
    )
    assert records.areas[1] == pytest.approx((width - 1) * (height - 1))
    assert (records.image_ids[1], records.person_ids[1]) == (102, 502)
    assert records.box_scores.tolist() == [0, 0, 0]
    assert source.actions.tolist() == ["Directions", "Discussion", "Eating"]
    assert records.cameras[1, :4].tolist() == [180, 181, 47.5, 40]
    assert source.parts == (3,)


def test_depths_are_from_the_pelvis_and_the_thorax_is_between_the_shoulders(write_h36m):
    annotations, images = write_h36m()
    source = H36mSource(annotations, images)
    world_mm = np.array(
        [entry["keypoints_world"] for entry in json.loads(annotations.read_text())["annotations"]]
    )
    depths_mm = world_mm[..., 1] + 4000  # of the fixture's camera, which looks along y
    np.testing.assert_allclose(
        source.records.keypoints[:, :17, 2], depths_mm - depths_mm[:, :1], atol=1e-3
    )
    np.testing.assert_allclose(source.records.cameras[:, 4], depths_mm[:, 0])
    assert (source.records.keypoints[:, 0, 2] == 0).all()
    shoulders = [JOINT["left_shoulder"], JOINT["right_shoulder"]]
    np.testing.assert_allclose(
        source.joints_mm[:, JOINT["thorax"]], source.joints_mm[:, shoulders].mean(axis=1)
    )
    np.testing.assert_allclose(
        source.to_camera(true_poses(source.records)), source.joints_mm, atol=0.01
    )


def resize(images: Path, frame: str, size_wh: tuple[int, int]) -> None:
    path = next(images.glob(f"{frame}*/*.jpg"))
    with Image.open(path) as image:
        resized = image.resize(size_wh)
    resized.save(path)


def test_images_of_all_real_frames_have_the_records_sizes(h36m_sample):
    """The annotations state 1000x1002 for all; the last frame is 1000x1000."""
    source = H36mSource(h36m_sample / "annotations" / FILES[0], h36m_sample / "images")
    assert source.records.image_wh.tolist() == [[1000, 1002]] * 3 + [[1000, 1000]]
    assert check_images(source.records) == {}


def test_a_size_that_is_a_little_off_is_the_file_s(write_h36m):
    annotations, images = write_h36m(set_image(width=300, height=300))
    resize(images, "s_11_act_03", (300, 298))
    records = H36mSource(annotations, images).records
    assert records.image_wh.tolist() == [[96, 80], [300, 298], [96, 80]]
    assert check_images(records) == {}
    assert H36mSource(annotations, None).records.image_wh[1].tolist() == [300, 300]


def test_a_size_that_is_far_off_is_refused(write_h36m):
    annotations, images = write_h36m()
    resize(images, "s_11_act_03", (96, 70))
    parts = ("s_11_act_03", "has 96x70 pixels", str(annotations), "says 96x80", "same protocol")
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, images)


def test_an_unreadable_frame_does_not_decide_the_size_of_its_sequence(write_h36m):
    """Both frames of one sequence; the first is damaged."""

    def change(dataset):
        first, second, _ = dataset["images"]
        name = first["file_name"]
        second.update({key: first[key] for key in ("action_idx", "action_name")})
        second["file_name"] = name.replace("_000001", "_000002")
        first.update(width=300, height=300)
        second.update(width=300, height=300)

    annotations, images = write_h36m(change)
    resize(images, "s_11_act_02", (300, 298))
    first = next(images.glob("s_11_act_02*/*.jpg"))
    first.rename(first.with_name(first.name.replace("_000001", "_000002")))
    first.write_bytes(b"no image")
    records = H36mSource(annotations, images).records
    assert records.image_wh.tolist() == [[300, 298], [300, 298], [96, 80]]
    assert list(check_images(records)) == [str(first)]


def placed(subject, action, subaction):
    """Puts the second frame into a sequence."""

    def change(dataset):
        sequence = f"s_{subject:02}_act_{action:02}_subact_{subaction:02}_ca_01"
        dataset["images"][1].update(
            file_name=f"{sequence}/{sequence}_000001.jpg",
            subject=subject,
            action_idx=action,
            subaction_idx=subaction,
        )

    return change


@pytest.mark.parametrize("sequence", [(9, 5, 2), (9, 10, 2), (9, 13, 1)])
def test_sequences_with_faulty_annotations_are_left_out(write_h36m, sequence):
    # Their images need not be there.
    source = H36mSource(*write_h36m(placed(*sequence)))
    assert source.records.image_ids.tolist() == [101, 103]
    assert source.actions.tolist() == ["Directions", "Eating"] and len(source.joints_mm) == 2


@pytest.mark.parametrize("sequence", [(9, 5, 1), (9, 10, 1), (9, 13, 2), (11, 5, 2), (1, 10, 2)])
def test_other_sequences_of_the_same_actions_stay(write_h36m, sequence):
    annotations, _ = write_h36m(placed(*sequence))
    assert H36mSource(annotations, None).records.image_ids.tolist() == [101, 102, 103]


def test_without_an_image_folder_no_image_is_looked_for(write_h36m):
    annotations, images = write_h36m()
    expected = H36mSource(annotations, images)
    for path in sorted(images.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    images.rmdir()
    found = H36mSource(annotations, None)
    np.testing.assert_array_equal(found.records.keypoints, expected.records.keypoints)
    with pytest.raises(DataError, match=message(str(images), "no such folder", str(annotations))):
        H36mSource(annotations, images)


def test_an_absent_image_that_nobody_is_on_does_not_matter(write_h36m):
    annotations, images = write_h36m(lambda dataset: dataset["annotations"].pop(0))
    absent = next(images.glob("s_11_act_02*"))
    next(absent.iterdir()).unlink()
    absent.rmdir()
    assert len(H36mSource(annotations, images).records) == 2


@pytest.mark.parametrize("excluded", [False, True])
def test_a_dataset_without_people_is_refused(write_h36m, excluded):
    def change(dataset):
        if not excluded:
            dataset.update(images=[], annotations=[])
        for entry in dataset["images"]:
            entry.update(subject=9, action_idx=5, subaction_idx=2)
            name = entry["file_name"].rpartition("_")[2]
            entry["file_name"] = f"s_09_act_05_subact_02_ca_01/s_09_act_05_subact_02_ca_01_{name}"

    annotations, images = write_h36m(change)
    count = 3 if excluded else 0
    with pytest.raises(
        DataError, match=f"{annotations}: {count} annotations, of which none.*excluded"
    ):
        H36mSource(annotations, images)


@pytest.mark.parametrize("rows", [[2, 0], np.array([True, False, True]), slice(1, None)])
def test_of_some_people_everything_is_taken_in_step(write_h36m, rows):
    source = H36mSource(*write_h36m())
    taken = source.take(np.array(rows) if isinstance(rows, list) else rows)
    expected = np.arange(3)[rows]
    assert taken.records.image_ids.tolist() == (101 + expected).tolist()
    np.testing.assert_array_equal(taken.joints_mm, source.joints_mm[expected])
    assert taken.actions.tolist() == source.actions[expected].tolist()
    assert taken.parts == (2,) and source.parts == (3,)
    assert taken.score(true_poses(taken.records))["MPJPE"] < 0.01
    again = taken.take(np.array([1]))
    assert again.records.image_ids.tolist() == [101 + expected[1]]
    assert again.score(true_poses(again.records))["MPJPE"] < 0.01


# ---- scores


@pytest.mark.parametrize("image_size", [(256, 256), (256, 192)])
def test_the_real_frames_ground_truth_fed_back_scores_nothing(h36m_sample, image_size):
    source = H36mSource(h36m_sample / "annotations" / FILES[1], h36m_sample / "images")
    poses, weight = fed_back(source, replace(SQUARE, image_size=image_size))
    scores = source.score(poses)
    assert scores["MPJPE"] < 0.01 and scores["PA-MPJPE"] < 0.01
    assert scores["PCK3D@150mm"] == 1 and scores["within_1_sigma"] == 1
    # The root's depth is given: it is no target, and what stands there is right all the same.
    assert (weight[:, 0, 2] == 0).all() and weight.sum() == weight.size - len(weight)
    assert (poses.keypoints[:, 0, 2] == 0).all()


def test_the_synthetic_ground_truth_fed_back_scores_nothing(synthetic):
    poses, weight = fed_back(synthetic, SQUARE)
    scores = synthetic.score(poses)
    assert len(synthetic.records) == 40
    assert scores["MPJPE"] < 0.01 and scores["PA-MPJPE"] < 0.01
    assert weight.sum() == weight.size - 40


def test_the_reference_s_errors_come_out_of_a_source(golden, write_h36m):
    """Random poses are no people, so they are put into a source that was read."""
    arrays = golden("h36m_metrics")
    source = H36mSource(*write_h36m(people=12))
    cameras = np.concatenate(
        [arrays["focal_px"], arrays["principal_point_px"], arrays["root_cam_mm"][:, 2:]], axis=1
    )
    source.records = replace(source.records, cameras=cameras)
    source.joints_mm = arrays["joints_cam_mm"]
    source.actions = arrays["action_id"].astype(str)
    poses = replace(true_poses(source.records), keypoints=arrays["uvd"] * (1, 1, DEPTH_MM))
    scores = source.score(poses)
    assert scores["MPJPE"] == pytest.approx(float(arrays["mpjpe_mm"]), rel=1e-9)
    assert scores["PA-MPJPE"] == pytest.approx(float(arrays["pa_mpjpe_mm"]), rel=1e-9)
    first = float(arrays["per_joint_error_mm"][0].mean())
    assert scores[f"MPJPE/{arrays['action_id'][0]}"] == pytest.approx(first, rel=1e-9)


def test_scores_have_names_and_means_by_action(write_h36m):
    source = H36mSource(*write_h36m(people=4))
    poses = true_poses(source.records)
    poses.keypoints[1, 1:, 2] += 100  # Discussion
    poses.sigmas[:, H36M18.root, 2] = 1e-6  # known
    scores = source.score(poses)
    actions = ("Directions", "Discussion", "Eating")
    assert list(scores) == [
        *("MPJPE", "PA-MPJPE", "MPJPE_by_action", "PA-MPJPE_by_action", "PCK3D@150mm", "AUC"),
        *(f"{name}/{action}" for action in actions for name in ("MPJPE", "PA-MPJPE")),
        *("within_1_sigma", "within_2_sigma"),
    ]
    # A joint that is further along its ray is also further from the axis.
    assert 94 < scores["MPJPE/Discussion"] < 100
    assert scores["MPJPE/Directions"] < 0.01 and scores["MPJPE/Eating"] < 0.01
    assert scores["MPJPE"] == pytest.approx(scores["MPJPE/Discussion"] / 4, rel=1e-3)
    assert scores["MPJPE_by_action"] == pytest.approx(scores["MPJPE/Discussion"] / 3, rel=1e-3)
    # 17 of the 53 coordinates of one of four people; the depth of the root is known.
    assert scores["within_1_sigma"] == pytest.approx(1 - 17 / 53 / 4)


def test_the_root_s_predicted_depth_and_the_thorax_do_not_matter(write_h36m):
    source = H36mSource(*write_h36m())
    poses = true_poses(source.records)
    poses.keypoints[:, JOINT["thorax"]] += 30
    assert source.score(poses)["MPJPE"] < 0.01


def test_results_are_millimetres_from_the_pelvis(write_h36m):
    source = H36mSource(*write_h36m())
    results = json.loads(json.dumps(source.results(true_poses(source.records))))
    assert [set(entry) for entry in results] == [{"image_id", "keypoints_mm", "score"}] * 3
    assert [entry["image_id"] for entry in results] == [101, 102, 103]
    assert [entry["score"] for entry in results] == [1, 1.01, 1.02]
    found = np.array([entry["keypoints_mm"] for entry in results])
    np.testing.assert_allclose(
        found, (source.joints_mm - source.joints_mm[:, :1])[:, :17], atol=0.02
    )
    # The camera's axes: people stand upright in it, and y goes down.
    assert (found[:, JOINT["head_top"], 1] < -500).all()
    assert (found[:, JOINT["left_ankle"], 1] > 700).all()


# ---- detections


def write_detections(annotations: Path, entries) -> Path:
    path = annotations.with_name("detections.json")
    path.write_text(json.dumps(entries))
    return path


def detection(image_id=101, score=0.8, bbox=(28, 8, 45, 65), **changes):
    return {"image_id": image_id, "category_id": 1, "bbox": list(bbox), "score": score, **changes}


def test_the_best_box_of_each_image_takes_the_annotated_one_s_place(write_h36m):
    annotations, images = write_h36m()
    entries = [
        detection(103, 0.4, (-5, 2, 30, 40)),
        detection(101, 0.2),
        detection(101, 0.7, (20, 5, 40, 50)),
        detection(101, 0.6),
        detection(101, 0.95, (1, 1, 9, 9), category_id=62),  # a chair
        detection(102, 0.3),
    ]
    del entries[-1]["category_id"]
    path = write_detections(annotations, entries)
    found = H36mSource(annotations, images, detections=path)
    annotated = H36mSource(annotations, images)
    assert found.records.image_ids.tolist() == [101, 102, 103]
    assert found.records.box_scores.tolist() == [0.7, 0.3, 0.4]
    assert found.records.boxes_xyxy.tolist() == [
        [20, 5, 59, 54], [28, 8, 72, 72], [0, 2, 24, 41],
    ]  # fmt: skip
    assert found.records.areas[0] == 39 * 49
    np.testing.assert_array_equal(found.records.keypoints, annotated.records.keypoints)
    assert found.records.labelled.all()
    assert found.score(true_poses(found.records))["MPJPE"] < 0.01


def test_an_excluded_frame_needs_no_detection(write_h36m):
    annotations, _ = write_h36m(placed(9, 5, 2))
    path = write_detections(annotations, [detection(101), detection(103)])
    assert len(H36mSource(annotations, None, detections=path).records) == 2


def test_a_frame_without_a_detection_is_named(write_h36m):
    annotations, images = write_h36m()
    path = write_detections(annotations, [detection(101), detection(103, category_id=62)])
    parts = (str(path), "no detection of a person in 2 of 3 images", "image 102", str(annotations),
             "expected one in each")  # fmt: skip
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, images, detections=path)


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ({"image_id": 101}, ["holds a dict", "expected a list of COCO detections"]),
        ([3], ["detection 0 is 3", "expected 'image_id'"]),
        ([detection(999)], ["detection 0 is of image 999", "h36m.json does not list"]),
        ([detection(score=math.nan)], ["detection 0 has score nan", "a finite number"]),
        ([detection(bbox=(1, 2, 3))], ["detection 0 has bbox [1, 2, 3]", "four numbers"]),
        (
            [detection(101), detection(102, bbox=(200, 3, 5, 5)), detection(103)],
            ["detection 1 has bbox [200, 3, 5, 5]", "no area inside its image of 96x80"],
        ),
    ],
)
def test_bad_detections_are_named(write_h36m, entries, parts):
    annotations, images = write_h36m()
    path = write_detections(annotations, entries)
    with pytest.raises(DataError, match=message(str(path), *parts)):
        H36mSource(annotations, images, detections=path)


def test_a_missing_detections_file_is_named(write_h36m):
    annotations, images = write_h36m()
    absent = annotations.with_name("absent.json")
    with pytest.raises(DataError, match=message(str(absent), "no such file", "expected")):
        H36mSource(annotations, images, detections=absent)


# ---- files that cannot be used


def test_a_missing_annotation_file_is_named(write_h36m):
    annotations, images = write_h36m()
    annotations.unlink()
    parts = (str(annotations), "no such file", "expected a Human3.6M dataset")
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, images)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("not json", ["not JSON", "expected a Human3.6M dataset"]),
        ("", ["not JSON", "expected a Human3.6M dataset"]),
        ("[" * 100_000, ["not JSON", "expected a Human3.6M dataset"]),
        (b"\xff\xd8\xff\xe0", ["not JSON", "expected a Human3.6M dataset"]),
        ("[]", ["holds a list", "expected a Human3.6M dataset"]),
        ("{}", ["no list 'images'", "expected a Human3.6M dataset with 'images' and 'annotations"]),
        ('{"images": []}', ["no list 'annotations'", "expected a Human3.6M dataset"]),
        ('{"images": {}, "annotations": []}', ["no list 'images'", "expected a Human3.6M dataset"]),
    ],
)
def test_a_file_that_is_no_human36m_dataset_is_named(tmp_path, content, parts):
    path = tmp_path / "people.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message(str(path), *parts)):
        H36mSource(path, None)


def test_a_coco_file_is_no_human36m_dataset(write_coco):
    annotations, images = write_coco()
    parts = (str(annotations), "images[0] (id 101) has subject None", "expected a whole number")
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, images)


def test_a_lost_image_is_named(write_h36m):
    annotations, images = write_h36m()
    lost = next(images.glob("s_11_act_03*/*.jpg"))
    lost.unlink()
    parts = (str(annotations), "1 of 3 images are missing", str(lost), "expected")
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, images)


def test_the_images_of_another_protocol_are_told_from_a_lost_file(write_h36m):
    annotations, images = write_h36m()
    for index, path in enumerate(sorted(images.iterdir())):
        if index:
            path.rename(images / path.name.replace("s_11", f"s_0{4 + index}"))
    parts = (
        str(annotations),
        "images of 3 sequences, of which 2 are not in",
        str(images),
        "the first is s_11_act_03_subact_01_ca_01",
        "found 3 sequences there, of subjects 05, 06, 11",
        "expected annotations and images of the same protocol",
    )
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, images)


def test_a_folder_of_something_else_has_no_sequences(write_h36m, tmp_path):
    annotations, _ = write_h36m()
    (tmp_path / "holiday").mkdir()
    parts = ("3 are not in", "holiday", "found 0 sequences there, of subjects none")
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(annotations, tmp_path / "holiday")


# ---- entries that cannot be used


def set_annotation(**values):
    return lambda dataset: dataset["annotations"][1].update(values)


def set_image(**values):
    return lambda dataset: dataset["images"][1].update(values)


def set_camera(**values):
    return lambda dataset: dataset["annotations"][1]["cam_param"].update(values)


def drop(table, key):
    return lambda dataset: dataset[table][1].pop(key)


def drop_camera(*keys):
    def change(dataset):
        for key in keys:
            del dataset["annotations"][1]["cam_param"][key]

    return change


def set_coordinate(value, joint=5, axis=2):
    def change(dataset):
        dataset["annotations"][1]["keypoints_world"][joint][axis] = value

    return change


def joints(count):
    def change(dataset):
        entry = dataset["annotations"][1]
        entry["keypoints_world"] = (entry["keypoints_world"] * 2)[:count]

    return change


def in_unit(millimetres, cameras=True):
    """Poses, and where the cameras stand, in another unit of length."""

    def change(dataset):
        for entry in dataset["annotations"][1:]:
            world = np.array(entry["keypoints_world"]) / millimetres
            entry["keypoints_world"] = world.tolist()
            if cameras:
                position = np.array(entry["cam_param"]["t"]) / millimetres
                entry["cam_param"]["t"] = position.tolist()

    return change


PERSON = "annotation 502"
NUMBER = "expected a number within +-1e+09"
JOINTS = "keypoints_world[5][2]"
SEVENTEEN = "expected 17 joints of 3 coordinates: pelvis, right_hip"
BAD_ENTRIES = {
    "annotations that are numbers": (
        lambda dataset: dataset.update(annotations=[1, 2]),
        ["annotations[0] is 1", "expected an object with 'id', 'image_id', 'bbox'"],
    ),
    "no id": (drop("annotations", "id"), ["annotations[1] is {'image_id': 102", "expected"]),
    "id of text": (set_annotation(id="a"), ["annotations[1] is {'id': 'a'", "expected", "'id'"]),
    "no image": (drop("annotations", "image_id"), [PERSON, "image None", "expected one of its 3"]),
    "absent image": (
        set_annotation(image_id=999),
        [PERSON, "image 999, which 'images' does not list", "expected one of its 3 ids"],
    ),
    "two people in an image": (
        set_annotation(image_id=101),
        [PERSON, "image 101, as annotation 501 is", "expected one person an image"],
    ),
    # Boxes.
    "no bbox": (drop("annotations", "bbox"), [PERSON, "bbox None", "expected four numbers"]),
    "bbox with NaN": (
        set_annotation(bbox=[1, 2, 3, math.nan]), [PERSON, "bbox [1, 2, 3, nan]", "four numbers"]
    ),
    "bbox of text": (set_annotation(bbox=["1", 2, 3, 4]), [PERSON, "bbox ['1', 2", "four numbers"]),
    "bbox without area": (
        set_annotation(bbox=[20, 20, 0, 30]),
        [PERSON, "bbox [20, 20, 0, 30]", "no area inside its image of 96x80", "expected a box"],
    ),
    "bbox outside": (
        set_annotation(bbox=[96, 20, 30, 30]),
        [PERSON, "bbox [96, 20, 30, 30]", "no area inside its image of 96x80", "expected a box"],
    ),
    "bbox of somebody else": (
        set_annotation(bbox=[2, 2, 11, 11]),
        [PERSON, "pelvis projected to [49.0, 37.0]", "bbox from [2.0, 2.0] to [12.0, 12.0]",
         "expected camera, pose and box of one image (1 annotations have this)"],
    ),
    # Joints.
    "no joints": (
        drop("annotations", "keypoints_world"), [PERSON, "keypoints_world of None", SEVENTEEN]
    ),
    "16 joints": (
        joints(16), [PERSON, "keypoints_world of 16 joints", SEVENTEEN, "without the neck"]
    ),
    "32 joints": (
        joints(32), [PERSON, "keypoints_world of 32 joints", SEVENTEEN, "as recorded: take joints"]
    ),
    "18 joints": (joints(18), [PERSON, "keypoints_world of 18 joints", SEVENTEEN]),
    "joints of text": (
        set_annotation(keypoints_world="0, 0, 0"), [PERSON, "of '0, 0, 0'", SEVENTEEN]
    ),
    "a flat list of joints": (
        set_annotation(keypoints_world=[0.0] * 51), [PERSON, "of 51 joints", SEVENTEEN]
    ),
    "joints that are numbers": (
        set_annotation(keypoints_world=[0.0] * 17),
        [PERSON, "0.0 at keypoints_world[0]", "expected a list of 3 numbers"],
    ),
    "a joint of two": (
        lambda dataset: dataset["annotations"][1]["keypoints_world"][5].pop(),
        [PERSON, "[", "at keypoints_world[5]", "expected a list of 3 numbers"],
    ),
    "joints of two": (
        lambda dataset: [joint.pop() for joint in dataset["annotations"][1]["keypoints_world"]],
        [PERSON, "at keypoints_world[0]", "expected a list of 3 numbers"],
    ),
    "NaN": (set_coordinate(math.nan), [PERSON, f"nan at {JOINTS}", NUMBER]),
    "infinity": (set_coordinate(-math.inf), [PERSON, f"-inf at {JOINTS}", NUMBER]),
    "null": (set_coordinate(None), [PERSON, f"None at {JOINTS}", NUMBER]),
    "text": (set_coordinate("far"), [PERSON, f"'far' at {JOINTS}", NUMBER]),
    "text that is a number": (set_coordinate("60.5"), [PERSON, f"'60.5' at {JOINTS}", NUMBER]),
    "empty text": (set_coordinate(""), [PERSON, f"'' at {JOINTS}", NUMBER]),
    "a boolean": (set_coordinate(True), [PERSON, f"True at {JOINTS}", NUMBER]),
    "a list": (set_coordinate([1.0]), [PERSON, f"[1.0] at {JOINTS}", NUMBER]),
    "an object": (set_coordinate({}), [PERSON, f"{{}} at {JOINTS}", NUMBER]),
    "a number that float64 does not hold": (
        set_coordinate(10**400), [PERSON, "1000", f"at {JOINTS}", NUMBER]
    ),
    "a number beyond sense": (set_coordinate(1e300), [PERSON, f"1e+300 at {JOINTS}", NUMBER]),
    # Cameras.
    "no camera": (
        drop("annotations", "cam_param"),
        [PERSON, "cam_param without R, t, f, c", "expected R (3, 3), t (3) in millimetres"],
    ),
    "a camera that is a list": (
        set_annotation(cam_param=[1]), [PERSON, "cam_param without R, t, f, c", "expected R (3, 3)"]
    ),
    "no R": (drop_camera("R"), [PERSON, "cam_param without R; expected R (3, 3)"]),
    "no t": (drop_camera("t"), [PERSON, "cam_param without t; expected R (3, 3)"]),
    "no f and c": (drop_camera("f", "c"), [PERSON, "cam_param without f, c; expected R (3, 3)"]),
    "R of nine": (
        set_camera(R=[1, 0, 0, 0, 0, -1, 0, 1, 0]),
        [PERSON, "[1, 0, 0, 0, 0, -1, 0, 1, 0] at cam_param.R", "a list of 3 lists of 3 numbers"],
    ),
    "R that is null": (set_camera(R=None), [PERSON, "None at cam_param.R", "a list of 3 lists of"]),
    "t as a column": (
        set_camera(t=[[0], [-4000], [850]]), [PERSON, "[0] at cam_param.t[0]", NUMBER]
    ),
    "t of text": (set_camera(t=["0", "-4000", "850"]), [PERSON, "'0' at cam_param.t[0]", NUMBER]),
    "one f": (set_camera(f=180.0), [PERSON, "180.0 at cam_param.f", "a list of 2 numbers"]),
    "c with NaN": (set_camera(c=[48, math.nan]), [PERSON, "nan at cam_param.c[1]", NUMBER]),
    "f of 0": (
        set_camera(f=[180, 0]),
        [PERSON, "cam_param.f [180.0, 0.0]", "expected focal lengths in pixels, above 0"],
    ),
    "f below 0": (set_camera(f=[-180, 180]), [PERSON, "cam_param.f [-180.0, 180.0]", "above 0"]),
    "R that scales": (
        set_camera(R=[[2, 0, 0], [0, 0, -2], [0, 2, 0]]),
        [PERSON, "cam_param.R that is no rotation", "off the identity by 3", "determinant is 8",
         "expected an orthonormal matrix of determinant 1"],
    ),
    "R that shears": (
        set_camera(R=[[1, 0.1, 0], [0, 0, -1], [0, 1, 0]]),
        [PERSON, "cam_param.R that is no rotation", "off the identity by 0.1", "orthonormal"],
    ),
    "R that mirrors": (
        set_camera(R=[[-1, 0, 0], [0, 0, -1], [0, 1, 0]]),
        [PERSON, "cam_param.R that is no rotation", "determinant is -1", "of determinant 1"],
    ),
    "R of zeros": (
        set_camera(R=[[0] * 3] * 3), [PERSON, "cam_param.R that is no rotation", "determinant is 0"]
    ),
    "R with huge numbers": (
        set_camera(R=[[1e9, 1e9, 0], [1e9, -1e9, 0], [0, 0, 1]]), [PERSON, "no rotation"]
    ),
    # Lengths.
    "metres": (
        in_unit(1000),
        [PERSON, "thighs and shanks of 0.41", "as in metres", "expected millimetres, 150 to 700",
         "(2 annotations have this)"],
    ),
    "metres, cameras in millimetres": (
        in_unit(1000, cameras=False), [PERSON, "as in metres", "expected millimetres"]
    ),
    "centimetres": (in_unit(10), [PERSON, "of 4", "as in centimetres", "expected millimetres"]),
    "micrometres": (in_unit(0.001), [PERSON, "as in micrometres", "expected millimetres"]),
    "no unit": (
        in_unit(4), [PERSON, "thighs and shanks of 10", "; expected millimetres, 150 to 700"]
    ),
    "everybody behind the camera": (
        set_camera(R=[[-1, 0, 0], [0, 0, -1], [0, -1, 0]]),
        [PERSON, "pelvis 40", "mm behind the camera", "expected everybody in front of it",
         "1 annotations have this)"],
    ),
    "a joint behind the camera": (
        set_coordinate(-4100, joint=13, axis=1),
        [PERSON, "left_wrist 100 mm behind the camera", "expected everybody in front of it"],
    ),
    "a camera elsewhere": (
        set_camera(t=[3000, -4000, 850]),
        [PERSON, "pelvis projected to [-", "expected camera, pose and box of one image"],
    ),
    # Images.
    "images that are numbers": (
        lambda dataset: dataset.update(images=[7]),
        ["images[0] is 7", "expected an object with 'id'"],
    ),
    "no file_name": (drop("images", "file_name"), ["images[1]", "{'id': 102", "'file_name'"]),
    "no width": (drop("images", "width"), ["images[1] (id 102)", "width None", "whole numbers"]),
    "image id twice": (set_image(id=101), ["images[1] has id 101", "expected every id once"]),
    "no subject": (
        drop("images", "subject"), ["images[1] (id 102) has subject None", "a whole number"]
    ),
    "subject of text": (set_image(subject="S9"), ["(id 102) has subject 'S9'", "a whole number"]),
    "action of text": (set_image(action_idx="3"), ["action_idx '3'", "a whole number"]),
    "no subaction": (
        drop("images", "subaction_idx"), ["(id 102) has subaction_idx None", "a whole number"]
    ),
    "action without a name": (
        set_image(action_name=3), ["images[1] (id 102) has action_name 3", "expected text"]
    ),
    "the file of another subject": (
        set_image(subject=9),
        ["images[1] (id 102) is of subject 9, action 3, subaction 1 and has file_name 's_11_act_03",
         "expected a file named s_09_act_03_subact_01_*", "another protocol"],
    ),
    "a file outside the folder": (
        set_image(file_name="../s_11_act_03_subact_01_ca_01_000001.jpg"),
        ["images[1] (id 102) has file_name '../s_11", "nothing inside the image folder"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_bad_entry_is_named(write_h36m, name):
    change, parts = BAD_ENTRIES[name]
    annotations, images = write_h36m(change)
    with pytest.raises(DataError, match=message(str(annotations), *parts)):
        H36mSource(annotations, images)
    with pytest.raises(DataError, match=message(str(annotations), *parts)):
        H36mSource(annotations, None)


def test_all_who_are_in_another_unit_are_counted_by_the_first(write_h36m):
    with pytest.raises(DataError, match=message("annotation 502", "(4 annotations have this)")):
        H36mSource(*write_h36m(in_unit(1000), people=5))


def test_arrays_that_all_have_another_shape_are_refused(write_h36m):
    def change(dataset):
        for entry in dataset["annotations"]:
            entry["cam_param"]["t"] = entry["cam_param"]["t"][:2]

    parts = ("annotation 501", "[0, -4000] at cam_param.t; expected a list of 3 numbers")
    with pytest.raises(DataError, match=message(*parts)):
        H36mSource(*write_h36m(change))


def test_whole_numbers_are_fine(write_h36m):
    def change(dataset):
        entry = dataset["annotations"][1]
        entry["keypoints_world"] = np.rint(entry["keypoints_world"]).astype(int).tolist()
        entry["cam_param"] = {
            key: np.rint(value).astype(int).tolist() for key, value in entry["cam_param"].items()
        }

    assert len(H36mSource(*write_h36m(change)).records) == 3
