"""Rendered people as a Human3.6M dataset on disk: four cameras around one person.

The bodies' world is metres with y up; the written one is millimetres with z up.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rle_tf.data.rendering.bodies import (
    ACTIVITIES,
    Body,
    Camera,
    Pose,
    in_camera,
    look,
    rotation,
    sample_body,
    sample_pose,
)
from rle_tf.data.rendering.dataset_folder import (
    check_arguments,
    run,
    worthwhile_workers,
    write_folder,
    write_json,
)
from rle_tf.data.rendering.renderer import render, sample_outfit
from rle_tf.data.rendering.scenes import SUPERSAMPLING, compose, sample_light, supersampled
from rle_tf.skeletons import H36M18

RENDERER_VERSION = 1  # raise it with any change that alters what is written
# Protocol 2 by split: the annotation file and the subjects.
SPLITS = {
    "train": ("Sample_trainmin_train_Human36M_protocol_2.json", (1, 5, 6, 7, 8)),
    "val": ("Sample_64_test_Human36M_protocol_2.json", (9, 11)),
}
CAMERAS = 4
# A worker takes about a second to start: fewer people than this are not worth one.
_PEOPLE_PER_WORKER = {True: 75, False: 5000}  # with and without pictures
# Clothes change with the sequence, so sequences are short.
_FRAMES_PER_SEQUENCE = 8
_JOINTS = H36M18.joints[:17]
_FIRST_ACTION = 2  # as in Human3.6M
_TO_WRITTEN = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # y up to z up, a proper rotation
_ATTEMPTS = 200  # at a pose that is inside all images; one or two are the rule

# What chance decides: each has a stream of its own, so that no one moves the others.
_BODY, _INTRINSICS, _RING, _FRAME, _OUTFIT, _PICTURE = range(6)

# How far the body reaches around a joint, metres, for a person of average height and girth.
_REACH = {
    "head_top": 0.05, "nose": 0.03, "eye": 0.03, "ear": 0.035, "neck": 0.05, "thorax": 0.06,
    "torso": 0.11, "pelvis": 0.11, "shoulder": 0.055, "elbow": 0.043, "wrist": 0.03,
    "hand": 0.032, "hip": 0.1, "knee": 0.058, "ankle": 0.038, "heel": 0.037, "toe": 0.032,
}  # fmt: skip


def _rng(seed: int, stream: int, *place: int) -> np.random.Generator:
    return np.random.default_rng([seed, stream, *place])


def _cameras(seed: int, subject: int, size: tuple[int, int]) -> list[Camera]:
    """The ring of cameras around the origin of the bodies' world while a subject is there."""
    height, width = size
    cameras = []
    for index in range(CAMERAS):
        # The lens stays the same for all subjects; where the camera stands does not.
        lens, place = _rng(seed, _INTRINSICS, index), _rng(seed, _RING, subject, index)
        focal = min(size) * lens.uniform(1.7, 1.8)
        middle = np.array([width - 1, height - 1]) / 2 + min(size) * lens.uniform(-0.02, 0.02, 2)
        turn = rotation("y", 45 + 90 * index + place.uniform(-12, 12))
        distance, above = place.uniform(4.3, 5.2), place.uniform(1.1, 2.0)
        aim = 1.03 + place.uniform(-0.04, 0.04)
        pitch = math.degrees(math.atan2(above - aim, distance))
        position = turn @ (0, above, distance)
        cameras.append(Camera(focal, middle, look(pitch, place.normal(0, 1)) @ turn.T, position))
    return cameras


def _sequence(subjects: tuple[int, ...], pose: int) -> tuple[int, str, int, int]:
    """(subject, activity, subaction, frame) of the pose of an index in its split.

    Activities change first and subjects go round, so that a few poses have many of both.
    """
    round_, action = divmod(pose, len(ACTIVITIES))
    subject = subjects[(action + round_) % len(subjects)]
    take, frame = divmod(round_ // len(subjects), _FRAMES_PER_SEQUENCE)
    # Readers of Human3.6M leave out sequences of S9 that are subactions 2 of these actions.
    return subject, list(ACTIVITIES)[action], take + 1 + (take > 0), frame + 1


def _box_xywh(body: Body, joints: np.ndarray, camera: Camera, reach: np.ndarray) -> np.ndarray:
    """(4,) box around a person whose (J, 3) joints are in camera axes, as of a silhouette."""
    centres = camera.project(joints)
    radii = (camera.focal_px * body.height / 1.7) * (reach / joints[:, 2])[:, None]
    # Joints are measured from the first pixel's centre, boxes from its corner.
    low, high = (centres - radii).min(0) + 0.5, (centres + radii).max(0) + 0.5
    return np.concatenate([low, high - low])


def _place(
    rng: np.random.Generator,
    body: Body,
    activity: str,
    cameras: list[Camera],
    size: tuple[int, int],
) -> Pose:
    """A pose on the floor near the middle of the ring, with all of its joints in all images."""
    height, width = size
    margin = 0.015 * min(size)
    for _ in range(_ATTEMPTS):
        pose = sample_pose(rng, body, activity)
        points = np.stack(list(pose.joints.values()))
        angle, radius = rng.uniform(0, 2 * math.pi), 0.4 * math.sqrt(rng.random())
        offset = np.array(
            [radius * math.cos(angle), 0.03 - points[:, 1].min(), radius * math.sin(angle)]
        )
        points += offset
        pixels = np.stack([camera.project(camera.to_camera(points)) for camera in cameras])
        if ((pixels >= margin) & (pixels <= np.array([width, height]) - 1 - margin)).all():
            break
    return Pose({name: point + offset for name, point in pose.joints.items()}, pose.rotations)


def _write_frame(
    job: tuple[Path, str, int, int, int, tuple[int, int], bool],
) -> list[tuple[dict, dict]]:
    """One pose as the first `views` cameras see it: (image, annotation) entries without ids.

    What is written depends on the seed, the split and the pose's index alone, so any process may
    do it; the entries are the same with pictures and without.
    """
    folder, split, index, views, seed, size, pictures = job
    number, subjects = list(SPLITS).index(split), SPLITS[split][1]
    subject, activity, subaction, frame = _sequence(subjects, index)
    action = _FIRST_ACTION + list(ACTIVITIES).index(activity)
    body = sample_body(_rng(seed, _BODY, subject))
    cameras = _cameras(seed, subject, size)
    pose = _place(_rng(seed, _FRAME, number, index), body, activity, cameras, size)
    joints = np.stack(list(pose.joints.values()))
    kinds = (name.removeprefix("left_").removeprefix("right_") for name in pose.joints)
    reach = np.array([_REACH[kind] for kind in kinds])
    named = np.stack([pose.joints[name] for name in _JOINTS])
    world_mm = (1000 * named @ _TO_WRITTEN.T).round(3).tolist()
    entries = []
    for view, camera in enumerate(cameras[:views]):
        sequence = f"s_{subject:02d}_act_{action:02d}_subact_{subaction:02d}_ca_{view + 1:02d}"
        name = f"{sequence}/{sequence}_{frame:06d}.jpg"
        entries.append(
            (
                {
                    "file_name": name,
                    "width": size[1],
                    "height": size[0],
                    "subject": subject,
                    "action_name": activity,
                    "action_idx": action,
                    "subaction_idx": subaction,
                    "cam_idx": view + 1,
                    "frame_idx": frame,
                },
                {
                    "bbox": _box_xywh(body, camera.to_camera(joints), camera, reach)
                    .round(2)
                    .tolist(),
                    "keypoints_world": world_mm,
                    "cam_param": {
                        "R": (camera.rotation @ _TO_WRITTEN.T).tolist(),
                        "t": (1000 * _TO_WRITTEN @ camera.position).tolist(),
                        "f": [camera.focal_px] * 2,
                        "c": camera.centre_px.tolist(),
                    },
                },
            )
        )
        if pictures:
            rng = _rng(seed, _PICTURE, number, index, view)
            outfit = sample_outfit(_rng(seed, _OUTFIT, subject, action, subaction))
            fine = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
            seen = in_camera(camera, pose)
            layer = render(body, seen, outfit, supersampled(camera), sample_light(rng), fine)
            picture, _ = compose(rng, [layer], [outfit])
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=90)
    return entries


def _write_dataset(
    folder: Path,
    people: dict[str, int],
    seed: int,
    size: tuple[int, int],
    pictures: bool,
    workers: int,
) -> None:
    """Writes everything but the manifest into a folder that is not there yet."""
    poses = {split: -(-count // CAMERAS) for split, count in people.items()}
    jobs = [
        (folder, split, index, min(CAMERAS, people[split] - CAMERAS * index), seed, size, pictures)
        for split in SPLITS
        for index in range(poses[split])
    ]
    written = run(_write_frame, jobs, workers, "write_synthetic_h36m")
    for split, (file_name, _) in SPLITS.items():
        entries = [entry for _ in range(poses[split]) for entry in next(written)]
        content = {
            "images": [{"id": index} | image for index, (image, _) in enumerate(entries)],
            "annotations": [
                {"id": index, "image_id": index} | annotation
                for index, (_, annotation) in enumerate(entries)
            ],
        }
        write_json(folder / "annotations" / file_name, content)


def write_synthetic_h36m(
    root: Path,
    *,
    train_people: int,
    val_people: int,
    seed: int,
    image_size: tuple[int, int] = (160, 160),
    images: bool = True,
    workers: int | None = None,
) -> None:
    """Writes rendered people in the layout of Human3.6M, protocol 2.

    The folder then holds `annotations/` with `Sample_trainmin_train_Human36M_protocol_2.json`
    (subjects 1, 5, 6, 7, 8) and `Sample_64_test_Human36M_protocol_2.json` (subjects 9, 11),
    `images/` (JPEG) and `synthetic.json`, which says how it was made. Each pose is seen by four
    cameras around it, the last one of a split by fewer where the people are no multiple of four.
    A subject keeps the body, a sequence (subject, action, subaction) the clothes. In pixels:
    `camera = R (world - t)`, `pixel = f * camera_xy / camera_z + c`; millimetres, z up.

    The same arguments give the same bytes, whatever the number of workers. A folder that already
    holds this dataset is left as it is. Nothing stands at `root` before all of it is written.
    Large datasets are made in spawned processes: as always with those, a script calls this under
    `if __name__ == "__main__":`.

    Args:
        root: The dataset's folder: absent, empty, or written with the same arguments.
        train_people: People, which is images, in the train split, at least 1.
        val_people: The same for the val split.
        seed: Not negative.
        image_size: (height, width) of each image, pixels, each at least 64.
        images: Whether the pictures are drawn. Without them the annotations are the same.
        workers: Processes to work in; 1 is this one. None takes one a core, fewer where the
            people are few.

    Raises:
        ConfigError: An argument is outside its range.
        DataError: `root` is a file or holds something else, or a worker process died.
    """
    check_arguments(
        "write_synthetic_h36m",
        train_people=train_people,
        val_people=val_people,
        seed=seed,
        image_size=image_size,
        workers=workers,
    )
    if workers is None:
        workers = worthwhile_workers(train_people + val_people, _PEOPLE_PER_WORKER[images])
    manifest = {
        "layout": "Human3.6M",
        "renderer": RENDERER_VERSION,
        "train_people": train_people,
        "val_people": val_people,
        "seed": seed,
        "image_size": list(image_size),
        "images": images,
    }
    write = partial(
        _write_dataset,
        people=dict(zip(SPLITS, (train_people, val_people), strict=True)),
        seed=seed,
        size=tuple(image_size),
        pictures=images,
        workers=workers,
    )
    write_folder(root, manifest, write)
