"""The rendered people: kinematics, pictures, and the dataset that they are written as."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO

from rle_tf.data.rendering import bodies, coco_writer, dataset_folder, renderer
from rle_tf.errors import ConfigError, DataError
from rle_tf.skeletons import COCO17

JOINT = {name: index for index, name in enumerate(COCO17.joints)}
SMALL = {"train_people": 5, "val_people": 3, "seed": 4, "image_size": (96, 128)}


def write(root: Path, **changes) -> Path:
    coco_writer.write_synthetic_coco(root, **{**SMALL, **changes})
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Enough people for statistics, rendered in this process."""
    root = tmp_path_factory.mktemp("synthetic") / "coco"
    return write(root, train_people=150, val_people=50, seed=1, image_size=(128, 160), workers=1)


def load(root: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its timings
        return COCO(str(root / "annotations" / f"person_keypoints_{split}.json"))


@pytest.fixture(scope="module")
def people(dataset) -> list[dict]:
    splits = (load(dataset, split) for split in ("train2017", "val2017"))
    return [annotation for coco in splits for annotation in coco.dataset["annotations"]]


def keypoints_of(people: list[dict]) -> np.ndarray:
    return np.array([person["keypoints"] for person in people]).reshape(-1, 17, 3)


def standing(rng, yaw: float) -> tuple[bodies.Body, bodies.Pose, bodies.Camera]:
    """A person upright in front of a level camera, turned by `yaw` degrees."""
    body = bodies.sample_body(rng)
    angles = bodies.sample_angles(rng, "stand")
    angles["root"] = np.array([yaw, 0.0, 0.0])
    angles["neck"] = np.zeros(3)
    angles["spine"] = np.zeros(3)
    camera = bodies.Camera(
        150.0, np.array([99.5, 99.5]), bodies.look(0, 0), np.array([0, 0.0, 2.0])
    )
    return body, bodies.in_camera(camera, bodies.pose_body(body, angles)), camera


# ---- kinematics


def test_bones_keep_their_length_under_any_pose():
    rng = np.random.default_rng(0)
    body = bodies.sample_body(rng)
    poses = [bodies.sample_pose(rng, body) for _ in range(40)]
    for joint, (parent, _) in bodies.TREE.items():
        lengths = [np.linalg.norm(pose.joints[joint] - pose.joints[parent]) for pose in poses]
        np.testing.assert_allclose(lengths, np.linalg.norm(body.offsets[joint]), rtol=1e-9)
    assert np.ptp([pose.joints["left_wrist"][1] for pose in poses]) > 0.3  # they do move


def test_left_and_right_bones_are_alike_and_bodies_differ():
    rng = np.random.default_rng(1)
    sampled = [bodies.sample_body(rng) for _ in range(60)]
    for joint, offset in sampled[0].offsets.items():
        if joint.startswith("left_"):
            mirrored = sampled[0].offsets["right_" + joint.removeprefix("left_")] * (-1, 1, 1)
            np.testing.assert_array_equal(offset, mirrored)
    heights = [body.height for body in sampled]
    assert 1.5 <= min(heights) < 1.6 and 1.8 < max(heights) <= 1.9
    ratios = [body.offsets["left_knee"][1] / body.offsets["left_elbow"][1] for body in sampled]
    assert np.std(ratios) > 0.02


@pytest.mark.parametrize("activity", bodies.ACTIVITIES)
def test_knees_and_elbows_bend_the_right_way_and_no_further_than_people_can(activity):
    rng = np.random.default_rng(2)
    body = bodies.sample_body(rng)
    for _ in range(40):
        pose = bodies.sample_pose(rng, body, activity)
        for side in ("left", "right"):
            for upper, middle, lower, segment, forward in (
                ("hip", "knee", "ankle", "thigh", -1),
                ("shoulder", "elbow", "wrist", "upper_arm", 1),
            ):
                first, hinge, last = (pose.joints[f"{side}_{j}"] for j in (upper, middle, lower))
                distal = (last - hinge) @ pose.rotations[f"{side}_{segment}"]
                distal /= np.linalg.norm(distal)
                proximal = (hinge - first) / np.linalg.norm(hinge - first)
                bend = np.degrees(
                    np.arccos(
                        np.clip(proximal @ (last - hinge), -9, 9) / np.linalg.norm(last - hinge)
                    )
                )
                assert bend <= bodies.LIMITS_DEG[middle][0][1] + 1e-6
                # A shank folds behind the thigh, a forearm before the upper arm; neither aside.
                assert distal[2] * forward >= -1e-9
                assert abs(distal[0]) < 1e-9
            # The same of the knee without the frames: the hip is not on the toes' side of a shank.
            hip, knee, ankle, toe = (
                pose.joints[f"{side}_{joint}"] for joint in ("hip", "knee", "ankle", "toe")
            )
            shank = (ankle - knee) / np.linalg.norm(ankle - knee)
            ahead = (toe - ankle) - shank * (shank @ (toe - ankle))
            assert (hip - knee) @ ahead <= 1e-9


def test_every_angle_is_within_its_limits():
    rng = np.random.default_rng(3)
    for _ in range(200):
        for joint, angle in bodies.sample_angles(rng).items():
            if joint != "root":
                kind = joint.removeprefix("left_").removeprefix("right_")
                low, high = np.array(bodies.LIMITS_DEG[kind]).T
                assert ((low <= angle) & (angle <= high)).all(), (joint, angle)


def test_activities_look_like_their_names():
    rng = np.random.default_rng(4)
    body = bodies.sample_body(rng)

    def mean_of(activity: str, measure) -> float:
        return np.mean([measure(bodies.sample_pose(rng, body, activity)) for _ in range(25)])

    def head_height(pose):  # above the pelvis
        return pose.joints["head_top"][1]

    def knee_drop(pose):  # of the knees below the pelvis
        return -(pose.joints["left_knee"][1] + pose.joints["right_knee"][1]) / 2

    assert mean_of("stand", head_height) > 0.7 > 0.6 > mean_of("bend", head_height)
    assert abs(mean_of("lie", head_height)) < 0.35
    assert mean_of("stand", knee_drop) > 0.35 > 0.2 > mean_of("sit", knee_drop)


# ---- camera


def test_projection_is_that_of_a_pinhole():
    camera = bodies.Camera(100.0, np.array([50.0, 40.0]), bodies.look(0, 0), np.array([0, 0, 5.0]))
    # Left of a person who faces the camera is right in the image, up is up, near is large.
    world = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 2.5]])
    pixels = camera.project(camera.to_camera(world))
    np.testing.assert_allclose(pixels, [[50, 40], [70, 40], [50, 20], [90, 40]], atol=1e-12)


def test_a_camera_that_looks_down_sees_what_is_below_the_horizon_higher_up():
    for pitch in (0.0, 20.0):
        rotation = bodies.look(pitch, 3.0)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
    ahead = np.array([0.0, 0, -1])
    assert (bodies.look(20, 0) @ ahead)[1] < 0 == (bodies.look(0, 0) @ ahead)[1]


def test_left_is_at_the_right_of_the_image_for_who_faces_the_camera_and_flips_with_the_back():
    rng = np.random.default_rng(5)
    for yaw, sign in ((0, 1), (25, 1), (180, -1), (-160, -1)):
        _, pose, camera = standing(rng, yaw)
        x, y = camera.project(pose.coco()).T
        for part in ("shoulder", "hip", "eye", "ear"):
            assert sign * (x[JOINT[f"left_{part}"]] - x[JOINT[f"right_{part}"]]) > 0
        assert y[JOINT["nose"]] < y[JOINT["left_shoulder"]] < y[JOINT["left_hip"]]
        assert y[JOINT["left_hip"]] < y[JOINT["left_knee"]] < y[JOINT["left_ankle"]]


# ---- rendering


def test_a_round_cone_is_drawn_where_and_as_near_as_it_is():
    """Against points of its surface, and the other way round."""
    rng = np.random.default_rng(6)
    camera = bodies.Camera(300.0, np.array([99.5, 99.5]), np.eye(3), np.zeros(3))
    slopes = ((np.arange(200) - 99.5) / 300).astype(np.float32)
    turn = bodies.look(30, 40)
    for stretch in (None, (turn, np.array([1.0, 1.0, 0.6]))):
        end_on = np.array([[0.02, 0, 0.2], [0, 0.01, -0.2]])  # along the view, either way round
        for ends in (end_on, end_on[::-1], *rng.uniform(-0.25, 0.25, (3, 2, 3))):
            a, b = ends + (0, 0, 2.5)
            part = renderer._Part(
                a, b, 0.2, 0.1, renderer._plain(np.full(3, 200.0)), stretch=stretch
            )
            layer = renderer.Layer(
                np.full((200, 200), np.inf, np.float32), np.zeros((200, 200, 3), np.uint8)
            )
            light = renderer.Light(np.array([0, 0, -1.0]), 0.5)
            renderer._draw_part(part, light, (slopes, slopes), layer, camera)
            share = rng.uniform(0, 1, (40_000, 1))
            normals = rng.normal(size=(40_000, 3))
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
            spheres = normals * (0.2 - 0.1 * share)
            if stretch is not None:
                frame, factors = stretch
                spheres = (spheres * factors) @ frame.T
            points = a + share * (b - a) + spheres
            columns, rows = np.rint(camera.project(points)).astype(int).T
            # A pixel's centre is up to half a pixel beside the point: of a convex surface, the
            # pixel next to it on the inner side is nearer than the point.
            shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            around = np.min([np.roll(layer.depth, shift, (0, 1)) for shift in shifts], axis=0)
            assert (around[rows, columns] < points[:, 2] + 1e-3).all()
            # What is drawn touches the nearest of the spheres along the axis.
            rows, columns = np.nonzero(layer.mask)
            rays = np.stack([slopes[columns], slopes[rows], np.ones(len(rows))], axis=1)
            drawn = rays * layer.depth[rows, columns, None]
            outside = []
            for share in np.linspace(0, 1, 101):
                apart = drawn - (a + share * (b - a))
                if stretch is not None:
                    apart = apart @ frame / factors
                outside.append(np.linalg.norm(apart, axis=1) - (0.2 - 0.1 * share))
            np.testing.assert_allclose(np.min(outside, axis=0), 0, atol=1e-3)


def test_the_face_is_seen_from_the_front_and_not_from_behind():
    rng = np.random.default_rng(7)
    light = renderer.Light(np.array([0, 0, -1.0]), 0.5)
    for yaw, visible in ((0, True), (180, False)):
        for _ in range(3):
            body, pose, camera = standing(rng, yaw)
            outfit = renderer.sample_outfit(rng)
            layer = renderer.render(body, pose, outfit, camera, light, (200, 200))
            joints = pose.coco()
            columns, rows = np.rint(camera.project(joints)).astype(int).T
            hidden_by = joints[:, 2] - layer.depth[rows, columns]
            for name in ("nose", "left_eye", "right_eye"):
                assert (hidden_by[JOINT[name]] < 0.04) == visible, (name, yaw)
            # Joints are inside the body: the surface is in front of them, or at a face's feature.
            assert (hidden_by > -0.03).all()


def test_left_and_right_wear_the_same():
    """A person and the mirror image of the person are drawn as mirror images."""
    rng = np.random.default_rng(8)
    body, outfit = bodies.sample_body(rng), renderer.sample_outfit(rng)
    plain = {"shirt": outfit.shoes, "trousers": outfit.shoes, "hair": outfit.shoes}
    outfit = renderer.Outfit(**{**vars(outfit), **plain})  # patterns go round one way
    angles = bodies.sample_angles(rng, "walk")
    mirrored = {}
    for joint, angle in angles.items():
        side, _, kind = joint.partition("_")
        if side in ("left", "right"):
            mirrored[f"{'right' if side == 'left' else 'left'}_{kind}"] = angle
        elif joint == "root":
            mirrored[joint] = angle * (-1, 1, -1)
        else:
            mirrored[joint] = angle * (1, -1, -1)
    camera = bodies.Camera(
        150.0, np.array([99.5, 99.5]), bodies.look(0, 0), np.array([0, 0.0, 2.5])
    )
    light = renderer.Light(np.array([0, -0.6, -0.8]), 0.5)
    poses = [bodies.in_camera(camera, bodies.pose_body(body, a)) for a in (angles, mirrored)]
    first, second = (
        renderer.render(body, pose, outfit, camera, light, (200, 200)) for pose in poses
    )
    assert first.mask.sum() > 1000
    same = first.mask == second.mask[:, ::-1]
    assert same.mean() > 0.9995
    both = first.mask & second.mask[:, ::-1]
    np.testing.assert_allclose(first.depth[both], second.depth[:, ::-1][both], atol=0.02)
    differing = np.abs(first.colour[both].astype(int) - second.colour[:, ::-1][both]) > 3
    assert differing.mean() < 0.005
    flipped = poses[1].coco()[list(COCO17.flip_permutation)] * (-1, 1, 1)
    np.testing.assert_allclose(poses[0].coco(), flipped, atol=1e-12)


# ---- the dataset


def test_layout_is_that_of_coco(dataset):
    ids = []
    for split, expected in (("train2017", 150), ("val2017", 50)):
        coco = load(dataset, split)
        assert len(coco.getAnnIds(catIds=coco.getCatIds(["person"]), iscrowd=False)) == expected
        category = coco.loadCats(1)[0]
        assert tuple(category["keypoints"]) == COCO17.joints
        assert np.min(category["skeleton"]) == 1 and np.max(category["skeleton"]) == 17
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(dataset / split / image["file_name"]) as picture:
                assert picture.format == "JPEG" and picture.mode == "RGB"
                assert picture.size == (image["width"], image["height"]) == (160, 128)
            assert 1 <= len(coco.getAnnIds(imgIds=image["id"])) <= 3
        assert len(list((dataset / split).iterdir())) == len(coco.getImgIds())
        ids += coco.getImgIds()
    assert len(set(ids)) == len(ids)


def test_annotations_agree_with_themselves(dataset):
    for split in ("train2017", "val2017"):
        coco = load(dataset, split)
        for person in coco.dataset["annotations"]:
            keypoints = np.array(person["keypoints"]).reshape(17, 3)
            labelled = keypoints[:, 2] > 0
            assert person["num_keypoints"] == labelled.sum() >= 1
            assert (keypoints[~labelled] == 0).all()
            assert (keypoints[labelled, :2] >= 0).all()
            assert (keypoints[labelled, :2] <= (159, 127)).all()
            x, y, width, height = person["bbox"]
            assert x >= 0 and y >= 0 and x + width <= 160 and y + height <= 128
            visible = keypoints[keypoints[:, 2] == 2, :2]
            assert (visible >= np.array([x, y]) - 1.5).all()
            assert (visible <= np.array([x + width, y + height]) + 0.5).all()
            assert 0.1 * width * height < person["area"] <= width * height
            # The polygon's box is the box, but for its rows being some pixels apart.
            outline = np.array(person["segmentation"][0]).reshape(-1, 2)
            np.testing.assert_allclose(outline[:, 1].min(), y, atol=1e-9)
            np.testing.assert_allclose(outline[:, 1].max(), y + height, atol=1e-9)
            assert (outline[:, 0] >= x).all() and (outline[:, 0] <= x + width).all()
            filled = mask.area(coco.annToRLE(person))
            assert 0.75 * person["area"] < filled < width * height + 1


def test_people_vary(people):
    keypoints = keypoints_of(people)
    visibility = keypoints[..., 2]
    hidden, unlabelled = (visibility == 1).mean(), (visibility == 0).mean()
    assert 0.15 < hidden < 0.45 and 0.02 < unlabelled < 0.2
    for joint in range(17):  # none is always seen or never
        assert 0.25 < (visibility[:, joint] == 2).mean() < 0.97, COCO17.joints[joint]

    shoulders = (visibility[:, [JOINT["left_shoulder"], JOINT["right_shoulder"]]] > 0).all(1)
    facing = (
        keypoints[shoulders, JOINT["left_shoulder"], 0]
        > keypoints[shoulders, JOINT["right_shoulder"], 0]
    )
    assert 0.3 < facing.mean() < 0.7

    boxes = np.array([person["bbox"] for person in people])
    assert np.ptp(boxes[:, 3]) > 70 and np.std(boxes[:, 0]) > 15
    narrow, wide = np.quantile(boxes[:, 2] / boxes[:, 3], [0.1, 0.9])
    assert narrow < 0.45 and wide > 0.7
    areas = np.array([person["area"] for person in people])
    assert np.quantile(areas, 0.9) > 4 * np.quantile(areas, 0.1)


def test_who_shows_the_face_has_the_left_eye_at_the_right(people):
    checked = 0
    for person in keypoints_of(people):
        face = person[[JOINT[name] for name in ("left_eye", "right_eye", "nose")]]
        shoulders = person[[JOINT["left_shoulder"], JOINT["right_shoulder"]]]
        if (face[:, 2] == 2).all() and (shoulders[:, 2] > 0).all():
            upright = shoulders[:, 1].mean() - face[:2, 1].mean()
            if upright > abs(shoulders[:, 0].mean() - face[:2, 0].mean()):
                assert face[0, 0] > face[1, 0]
                checked += 1
    assert checked > 20


def test_detections_are_like_a_detectors(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = load(dataset, "val2017")
        path = dataset / "detections" / "person_detections_val2017.json"
        found = truth.loadRes(str(path))
    entries = json.loads(path.read_text())
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    scores = np.array([entry["score"] for entry in entries])
    assert ((scores > 0) & (scores <= 1)).all() and np.std(scores) > 0.1
    boxes = np.array([entry["bbox"] for entry in entries])
    assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= (160.01, 128.01)).all()

    def overlap(a, b) -> float:
        low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
        shared = np.prod(np.maximum(high - low, 0))
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    best = []
    for person in truth.dataset["annotations"]:
        there = found.loadAnns(found.getAnnIds(imgIds=person["image_id"]))
        boxes = [np.array(entry["bbox"]) for entry in there]
        best.append(max((overlap(np.array(person["bbox"]), box) for box in boxes), default=0.0))
    assert (np.array(best) > 0.6).mean() > 0.85
    assert max(best) < 1  # none is the truth itself


# ---- writing


def test_the_same_arguments_give_the_same_bytes_however_many_workers(tmp_path):
    first = contents(write(tmp_path / "a", workers=1))
    assert first == contents(write(tmp_path / "b", workers=2))
    other = contents(write(tmp_path / "c", seed=5))
    assert other["synthetic.json"] != first["synthetic.json"]
    pictures = [name for name in first if name.endswith(".jpg")]
    assert pictures and all(first[name] != other.get(name) for name in pictures)
    assert len({first[name] for name in pictures}) == len(pictures)


def test_a_dataset_of_the_same_arguments_is_left_alone(tmp_path):
    root = write(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_empty_folder_is_written_into(tmp_path):
    (tmp_path / "data").mkdir()
    assert "synthetic.json" in contents(write(tmp_path / "data"))


def test_a_dataset_of_other_arguments_is_refused(tmp_path):
    root = write(tmp_path / "data")
    before = contents(root)
    with pytest.raises(DataError, match=r'data.synthetic\.json.*"seed": 4.*"seed": 9.*another fol'):
        write(root, seed=9)
    assert contents(root) == before


@pytest.mark.parametrize("manifest", ["{", "[]"])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, manifest):
    root = tmp_path / "data"
    root.mkdir()
    (root / "synthetic.json").write_text(manifest)
    with pytest.raises(DataError, match=r"synthetic\.json.*found.*expected.*another folder"):
        write(root)


def test_other_files_are_refused_and_kept(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"data: found holiday\.jpg.*empty or absent.*another fol"):
        write(root)
    assert contents(root) == {"holiday.jpg": b"mine"}
    with pytest.raises(DataError, match=r"holiday\.jpg: found a file.*choose another folder"):
        write(root / "holiday.jpg")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("existing", [True, False])
def test_an_interruption_leaves_nothing_half_written(tmp_path, monkeypatch, error, existing):
    root = tmp_path / "data"
    if existing:
        root.mkdir()
    real, calls = coco_writer._write_image, []

    def fails_late(job):
        calls.append(list(tmp_path.rglob("*.jpg")))
        if len(calls) == 4:
            raise error
        return real(job)

    monkeypatch.setattr(coco_writer, "_write_image", fails_late)
    with pytest.raises(error):
        write(root, workers=1)
    assert len(calls[-1]) == 3  # it had begun
    assert list(tmp_path.iterdir()) == ([root] if existing else [])
    assert not existing or not list(root.iterdir())
    monkeypatch.undo()
    assert "synthetic.json" in contents(write(root))


def test_another_process_that_writes_the_same_meanwhile_is_no_error(tmp_path, monkeypatch):
    finished = write(tmp_path / "finished")
    root, real = tmp_path / "data", dataset_folder.write_json

    def while_another_writes(path, content):
        real(path, content)
        if path.name == "synthetic.json":
            shutil.copytree(finished, root)

    monkeypatch.setattr(dataset_folder, "write_json", while_another_writes)
    write(root)
    assert contents(root) == contents(finished)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "finished"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_people": 0}, "train_people is 0, expected at least 1"),
        ({"val_people": -2}, "val_people is -2, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"image_size": (160, 8)}, r"image_size\[1\] is 8, expected at least 64"),
        ({"workers": 0}, "workers is 0, expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "data", **change)
    assert not list(tmp_path.iterdir())


def test_workers_start_without_tensorflow():
    loaded = "print([name for name in sys.modules if 'tensorflow' in name])"
    code = f"import sys, rle_tf.data.rendering.coco_writer; {loaded}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
