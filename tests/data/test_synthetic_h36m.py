"""The rendered people as a Human3.6M dataset: what the annotations say is what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rle_tf.data.rendering import bodies, h36m_writer
from rle_tf.data.rendering.coco_writer import write_synthetic_coco
from rle_tf.errors import ConfigError, DataError
from rle_tf.skeletons import H36M18

SMALL = {"train_people": 9, "val_people": 4, "seed": 4, "image_size": (64, 96)}
SIZE = (128, 160)
PEOPLE = {"train": 42, "val": 40}  # ten poses of four views, and in train one more of two
JOINT = {name: index for index, name in enumerate(H36M18.joints[:17])}


def write(root: Path, **changes) -> Path:
    h36m_writer.write_synthetic_h36m(root, **{**SMALL, **changes})
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def load(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / h36m_writer.SPLITS[split][0]).read_text())


def in_camera_mm(annotation: dict) -> np.ndarray:
    camera = annotation["cam_param"]
    return (np.array(annotation["keypoints_world"]) - camera["t"]) @ np.array(camera["R"]).T


def project(annotation: dict) -> np.ndarray:
    """(17, 2) pixels, by the dataset's formula."""
    joints, camera = in_camera_mm(annotation), annotation["cam_param"]
    return np.array(camera["f"]) * joints[:, :2] / joints[:, 2:] + camera["c"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, list[np.ndarray]]:
    """A dataset, and the silhouettes that it was drawn with, in order."""
    masks, render = [], h36m_writer.render

    def recorded(*arguments):
        layer = render(*arguments)
        masks.append(layer.mask)
        return layer

    root = tmp_path_factory.mktemp("synthetic") / "h36m"
    people = {f"{split}_people": count for split, count in PEOPLE.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h36m_writer, "render", recorded)
        write(root, **people, image_size=SIZE, workers=1)
    return root, masks


@pytest.fixture(scope="module")
def entries(drawn) -> list[tuple[dict, dict]]:
    """(image, annotation) of both splits."""
    splits = [load(drawn[0], split) for split in h36m_writer.SPLITS]
    return [
        pair
        for content in splits
        for pair in zip(content["images"], content["annotations"], strict=True)
    ]


def by_pose(entries) -> dict[tuple, list[tuple[dict, dict]]]:
    poses = {}
    for image, annotation in entries:
        name = (image["subject"], image["action_idx"], image["subaction_idx"], image["frame_idx"])
        poses.setdefault(name, []).append((image, annotation))
    return poses


# ---- the layout


def test_layout_is_that_of_human36m(drawn):
    root, _ = drawn
    pictures = {str(path.relative_to(root / "images")) for path in root.glob("images/*/*.jpg")}
    named = set()
    for split, subjects in (("train", {1, 5, 6, 7, 8}), ("val", {9, 11})):
        content = load(root, split)
        assert {image["subject"] for image in content["images"]} == subjects
        assert {image["action_name"] for image in content["images"]} == set(bodies.ACTIVITIES)
        assert len(content["images"]) == len(content["annotations"]) == PEOPLE[split]
        for index, (image, annotation) in enumerate(
            zip(content["images"], content["annotations"], strict=True)
        ):
            assert image["id"] == annotation["id"] == annotation["image_id"] == index
            assert set(annotation["cam_param"]) == {"R", "t", "f", "c"}
            assert set(annotation) == {"id", "image_id", "bbox", "keypoints_world", "cam_param"}
            sequence = (
                f"s_{image['subject']:02d}_act_{image['action_idx']:02d}"
                f"_subact_{image['subaction_idx']:02d}_ca_{image['cam_idx']:02d}"
            )
            assert image["file_name"] == f"{sequence}/{sequence}_{image['frame_idx']:06d}.jpg"
            assert 2 <= image["action_idx"] <= 16
            named.add(image["file_name"])
            with Image.open(root / "images" / image["file_name"]) as picture:
                assert picture.format == "JPEG" and picture.mode == "RGB"
                assert picture.size == (image["width"], image["height"]) == SIZE[::-1]
    assert named == pictures and len(named) == sum(PEOPLE.values())


@pytest.mark.parametrize("split", h36m_writer.SPLITS)
def test_every_pose_is_a_frame_of_its_own_and_none_of_a_sequence_that_readers_leave_out(split):
    subjects = h36m_writer.SPLITS[split][1]
    frames = [h36m_writer._sequence(subjects, index) for index in range(5000)]
    assert len(set(frames)) == len(frames)
    sequences = {
        (subject, 2 + list(bodies.ACTIVITIES).index(activity), subaction)
        for subject, activity, subaction, _ in frames
    }
    assert not sequences & {(9, 5, 2), (9, 10, 2), (9, 13, 1)}
    counts = [sum(subject == each for each, *_ in frames) for subject in subjects]
    assert np.ptp(counts) <= len(bodies.ACTIVITIES)


# ---- cameras and poses


def test_four_cameras_around_the_person_see_one_pose(entries):
    poses = by_pose(entries)
    assert len(poses) == 11 + 10
    views = [len(seen) for seen in poses.values()]
    assert views.count(4) == 20 and views.count(2) == 1
    for seen in poses.values():
        assert [image["cam_idx"] for image, _ in seen] == list(range(1, len(seen) + 1))
        worlds = [annotation["keypoints_world"] for _, annotation in seen]
        assert all(world == worlds[0] for world in worlds)
        if len(seen) == 4:
            positions = np.array([annotation["cam_param"]["t"] for _, annotation in seen])
            around = np.sort(np.degrees(np.arctan2(positions[:, 1], positions[:, 0])))
            apart = np.diff(np.append(around, around[0] + 360))
            assert (apart > 60).all() and (apart < 120).all()
            assert (positions[:, 2] > 1000).all() and (positions[:, 2] < 2050).all()


def test_cameras_are_rigid_and_their_lenses_stay(entries):
    lenses, places = {}, {}
    for image, annotation in entries:
        camera = annotation["cam_param"]
        rotation = np.array(camera["R"])
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert rotation[1, 2] < -0.9  # down in the image is down in the world
        lenses.setdefault(image["cam_idx"], set()).add((*camera["f"], *camera["c"]))
        places.setdefault((image["cam_idx"], image["subject"]), set()).add(str(camera))
    assert all(len(found) == 1 for found in (*lenses.values(), *places.values()))
    assert len(set.union(*lenses.values())) == 4
    assert len(set.union(*places.values())) == 4 * 7


def test_a_subject_keeps_the_body(entries):
    bones = [bone for bone in H36M18.bones if max(bone) < 17]
    lengths = {}
    for image, annotation in entries:
        joints = np.array(annotation["keypoints_world"])
        first, second = np.array(bones).T
        found = np.linalg.norm(joints[first] - joints[second], axis=1)
        lengths.setdefault(image["subject"], []).append(found)
    for found in lengths.values():
        assert np.ptp(found, axis=0).max() < 0.01  # millimetres
        leg = [bones.index((1, 2)), bones.index((2, 3))]
        assert 600 < np.sum(found[0][leg]) < 1100
    assert len({tuple(np.round(found[0], 1)) for found in lengths.values()}) == 7


def test_people_stand_on_the_floor_within_the_ring_and_are_no_mirror_images(entries):
    for image, annotation in entries:
        joints = np.array(annotation["keypoints_world"])
        assert 0 < joints[:, 2].min() < 200
        assert np.linalg.norm(joints[JOINT["pelvis"], :2]) <= 400.1
        # Left, up and ahead are right-handed; the nose is ahead of the head's middle.
        left = joints[JOINT["left_shoulder"]] - joints[JOINT["right_shoulder"]]
        up = joints[JOINT["head_top"]] - joints[JOINT["neck"]]
        nose = joints[JOINT["nose"]] - (joints[JOINT["head_top"]] + joints[JOINT["neck"]]) / 2
        assert np.cross(left, up) @ nose > 0
        if image["action_name"] in ("stand", "walk", "arms_up"):
            assert joints[JOINT["head_top"], 2] > 1300
            y = project(annotation)[:, 1]
            assert y[JOINT["head_top"]] < y[JOINT["pelvis"]] < y[JOINT["left_ankle"]]


# ---- what is drawn


def test_joints_are_projected_onto_the_silhouette(drawn, entries):
    for (_, annotation), mask in zip(entries, drawn[1], strict=True):
        assert (in_camera_mm(annotation)[:, 2] > 2000).all()
        xy = project(annotation)
        assert (xy >= 0).all() and (xy <= np.array(SIZE[::-1]) - 1).all()
        columns, rows = np.rint((xy.T + 0.5) * 2 - 0.5).astype(int)
        shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]  # half a pixel around
        around = np.any([np.roll(mask, shift, (0, 1)) for shift in shifts], axis=0)
        assert around[rows, columns].all()


def test_boxes_are_those_of_the_silhouettes(drawn, entries):
    overlaps = []
    for (_, annotation), mask in zip(entries, drawn[1], strict=True):
        rows, columns = np.nonzero(mask)
        low, high = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) / 2
        box = np.array(annotation["bbox"])
        shared = np.minimum(box[:2] + box[2:], high) - np.maximum(box[:2], low)
        shared = np.prod(np.maximum(shared, 0))
        overlaps.append(shared / (np.prod(box[2:]) + np.prod(high - low) - shared))
    assert np.mean(overlaps) > 0.95 and np.min(overlaps) > 0.8


def test_people_fill_a_good_part_of_the_image(entries):
    shares = [
        annotation["bbox"][3] / image["height"]
        for image, annotation in entries
        if image["action_name"] in ("stand", "walk")
    ]
    assert 0.5 < np.mean(shares) < 0.8


# ---- writing


def test_the_same_arguments_give_the_same_bytes_however_many_workers(tmp_path):
    first = contents(write(tmp_path / "a", workers=1))
    assert first == contents(write(tmp_path / "b", workers=2))
    other = contents(write(tmp_path / "c", seed=5))
    assert set(other) == set(first)
    assert all(other[name] != first[name] for name in first)


def test_without_pictures_the_annotations_are_the_same(tmp_path):
    with_pictures = contents(write(tmp_path / "a"))
    without = contents(write(tmp_path / "b", images=False))
    annotations = {name for name in with_pictures if name.startswith("annotations")}
    assert set(without) == annotations | {"synthetic.json"} and len(annotations) == 2
    assert all(without[name] == with_pictures[name] for name in annotations)


def test_a_dataset_of_the_same_arguments_is_left_alone(tmp_path):
    root = write(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_anything_else_in_the_folder_is_refused_and_kept(tmp_path):
    root = write(tmp_path / "data")
    before = contents(root)
    with pytest.raises(DataError, match=r'synthetic\.json.*"images": true.*"images": false'):
        write(root, images=False)
    assert contents(root) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="found holiday.jpg"):
        write(tmp_path / "other")
    assert contents(tmp_path / "other") == {"holiday.jpg": b"mine"}


def test_the_layouts_are_told_apart(tmp_path):
    coco, h36m = tmp_path / "coco", write(tmp_path / "h36m")
    write_synthetic_coco(coco, **SMALL)
    with pytest.raises(DataError, match=r"layout: COCO.*expected.*layout: Human3\.6M"):
        write(coco)
    with pytest.raises(DataError, match=r"layout: Human3\.6M.*expected.*layout: COCO"):
        write_synthetic_coco(h36m, **SMALL)


def test_an_interruption_leaves_nothing_half_written(tmp_path, monkeypatch):
    real, begun = h36m_writer.render, []

    def fails_late(*arguments):
        begun.append(list(tmp_path.rglob("*.jpg")))
        if len(begun) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(h36m_writer, "render", fails_late)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "data", workers=1)
    assert len(begun[-1]) == 3
    assert not list(tmp_path.iterdir())


def test_arguments_out_of_range_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="write_synthetic_h36m: val_people is 0, expected at lea"):
        write(tmp_path / "data", val_people=0)
    assert not list(tmp_path.iterdir())
