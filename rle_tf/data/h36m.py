"""People of Human3.6M: cameras, depths and the score of protocol 2."""

import os
from copy import copy
from itertools import chain
from pathlib import Path, PureWindowsPath

import numpy as np
from PIL import Image

from rle_tf import metrics
from rle_tf.data.annotations import (
    check_box,
    check_image_files,
    clipped_boxes,
    image_columns,
    is_id,
    is_number,
    read_detections,
    read_image_table,
    read_json,
)
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError
from rle_tf.geometry import camera_to_image, image_to_camera
from rle_tf.skeletons import H36M18

# Subject, action and subaction of the sequences whose annotations are off (the authors' list).
EXCLUDED_SEQUENCES = ((9, 5, 2), (9, 10, 2), (9, 13, 1))

# The joints that are annotated, and scored: the skeleton's without the thorax.
ANNOTATED_JOINTS = 17
_SHOULDERS = [H36M18.joints.index(f"{side}_shoulder") for side in ("left", "right")]
# Along both legs, the bones that vary least from person to person.
_LEG_BONES = [
    (H36M18.joints.index(f"{side}_{upper}"), H36M18.joints.index(f"{side}_{lower}"))
    for side in ("left", "right")
    for upper, lower in (("hip", "knee"), ("knee", "ankle"))
]
# Of a thigh or shank, mean over both legs: from a child to a giant.
_LEG_BONE_MM = (150.0, 700.0)

# Between the size that is annotated and that of the images.
_SIZE_TOLERANCE = 0.01

# Pixels or millimetres, below any sigma that is learned.
KNOWN_WITHIN = 1e-3

_KEYS = {"subject": int, "action_name": str, "action_idx": int, "subaction_idx": int}
_PERSON_CATEGORY = 1  # COCO's
# Far beyond sense for what is in a pose or a camera, and nothing overflows below it.
_LARGEST = 1e9
_OTHER_SKELETONS = {
    16: "these may be Human3.6M's without the neck, as for 16-joint code in the style of "
    "VideoPose3D: take annotations of all 17",
    32: "these may be Human3.6M's as recorded: take joints 0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, "
    "17, 18, 19, 25, 26, 27",
}


class H36mSource:
    """Annotated people of Human3.6M, in the layout that the RLE paper's code publishes.

    The annotation file holds a list `images` (`id`, `file_name`, `width`, `height`, `subject`,
    `action_name`, `action_idx`, `subaction_idx`) and a list `annotations`, one an image
    (`image_id`, `bbox`, `keypoints_world` (17, 3) in millimetres, `cam_param` with `R`, `t`, `f`
    and `c`). A point X of the world is R (X - t) in the camera, and pixel f x / z + c there; lens
    distortion is left out. The thorax, joint 18, is the middle of the shoulders.

    Records have x, y in pixels and the depth relative to the pelvis in millimetres. The sequences
    of `EXCLUDED_SEQUENCES` are left out.

    Args:
        annotations: `Sample_*_Human36M_protocol_2.json`.
        images: The folder that `file_name`s are relative to, or None where no image is looked at.
        detections: A JSON list in COCO's result format, whose best box of a person (category 1,
            where the entry has one) in each image takes the place of the annotated one.

    Raises:
        DataError: for a missing file, a file of another format, or an entry that cannot be used;
            the message names file and entry.
    """

    skeleton = H36M18

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str | None,
        *,
        detections: Path | str | None = None,
    ):
        self.annotations = Path(annotations)
        folder = Path(images) if images is not None else Path("images")
        dataset = read_json(self.annotations, dict, "a Human3.6M dataset")
        for key in ("images", "annotations"):
            if not isinstance(dataset.get(key), list):
                raise DataError(
                    f"{self.annotations}: no list '{key}'; expected a Human3.6M dataset with "
                    "'images' and 'annotations'"
                )
        table = read_image_table(dataset["images"], self.annotations, folder)
        sequences = self._sequences(dataset["images"])
        people = self._people(dataset["annotations"], sequences)
        if not people:
            raise DataError(
                f"{self.annotations}: {len(dataset['annotations'])} annotations, of which none is "
                "used: those of the excluded sequences are left out; expected people to look at"
            )
        wheres = [f"{self.annotations}: annotation {entry['id']}" for entry in people]
        image_ids = [entry["image_id"] for entry in people]
        paths, image_wh = image_columns(image_ids, table)
        if images is not None:
            self._check_images(folder, paths)
            image_wh = self._true_sizes(paths, image_wh)
        boxes = [entry["bbox"] for entry in people]
        boxes_xyxy = clipped_boxes(boxes, image_wh, wheres)

        self.actions = np.array([sequences[image_id][1] for image_id in image_ids], str)
        self.joints_mm, cameras = _seen_joints(people, wheres)
        keypoints = camera_to_image(self.joints_mm, cameras)
        _check_boxes_hold_people(keypoints, boxes_xyxy, wheres)
        box_scores = np.zeros(len(people))
        if detections:
            boxes_xyxy, box_scores = self._detected(Path(detections), table, image_ids, image_wh)
        self.records = Records(
            image_paths=paths,
            image_wh=image_wh,
            boxes_xyxy=boxes_xyxy,
            keypoints=keypoints.astype(np.float32),
            labelled=np.ones(keypoints.shape[:2], bool),
            cameras=cameras,
            areas=np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1),
            image_ids=np.array(image_ids, np.int64),
            person_ids=np.array([entry["id"] for entry in people], np.int64),
            box_scores=box_scores,
        )

    @property
    def parts(self) -> tuple[int, ...]:
        return (len(self.records),)

    def take(self, rows: np.ndarray | slice) -> "H36mSource":
        """The same source with some of its people, who alone are scored."""
        taken = copy(self)
        taken.records = self.records.take(rows)
        taken.joints_mm, taken.actions = self.joints_mm[rows], self.actions[rows]
        return taken

    def to_camera(self, poses: Poses) -> np.ndarray:
        """Poses of the records as (N, 18, 3) millimetres in the camera's axes (x right, y down, z
        away), by the camera and the true depth of the root."""
        return image_to_camera(poses.keypoints, self.records.cameras)

    def results(self, poses: Poses) -> list[dict]:
        """The predictions: `image_id`, `keypoints_mm` (17, 3) in the camera's axes relative to
        the pelvis, and `score`."""
        joints_mm = self.to_camera(poses)[:, :ANNOTATED_JOINTS]
        joints_mm = (joints_mm - joints_mm[:, [H36M18.root]]).round(2).tolist()
        return [
            {"image_id": int(image_id), "keypoints_mm": joints, "score": float(score)}
            for image_id, joints, score in zip(
                self.records.image_ids, joints_mm, poses.person_scores, strict=True
            )
        ]

    def score(self, poses: Poses) -> dict[str, float]:
        """Protocol 2: errors of the 17 joints in the camera's millimetres, the root's depth given.

        Returns:
            What `metrics.pose3d_scores` gives, with `within_1_sigma` and `within_2_sigma`
            (`metrics.coverage`, over x and y in pixels and depths in millimetres) after the means.
        """
        scores = metrics.pose3d_scores(
            self.to_camera(poses)[:, :ANNOTATED_JOINTS],
            self.joints_mm[:, :ANNOTATED_JOINTS],
            self.actions,
            H36M18.root,
        )
        # Coordinate by coordinate, without what is known by definition and has a sigma of next to
        # nothing: the root's depth, and all of a lifter's root.
        predicted, annotated, sigmas = (
            values.reshape(len(values), -1, 1)
            for values in (poses.keypoints, self.records.keypoints, poses.sigmas)
        )
        labelled = np.repeat(self.records.labelled, 3, axis=1) & ~(sigmas[..., 0] < KNOWN_WITHIN)
        for factor in (1, 2):
            scores[f"within_{factor}_sigma"] = metrics.coverage(
                predicted, annotated, sigmas, labelled, factor
            )
        return scores

    def _sequences(self, entries: list) -> dict[int, tuple[tuple[int, int, int], str]]:
        """{image id: ((subject, action, subaction), action's name)}."""
        sequences = {}
        for index, entry in enumerate(entries):
            where = f"{self.annotations}: images[{index}] (id {entry['id']})"
            for key, kind in _KEYS.items():
                if type(entry.get(key)) is not kind:
                    raise DataError(
                        f"{where} has {key} {entry.get(key)!r}; expected "
                        f"{'a whole number' if kind is int else 'text'}"
                    )
            subject, action, subaction = key = (
                entry["subject"], entry["action_idx"], entry["subaction_idx"],
            )  # fmt: skip
            named = f"s_{subject:02}_act_{action:02}_subact_{subaction:02}_"
            if not PureWindowsPath(entry["file_name"]).name.startswith(named):
                raise DataError(
                    f"{where} is of subject {subject}, action {action}, subaction {subaction} and "
                    f"has file_name '{entry['file_name']}'; expected a file named {named}*: is it "
                    "an image of another protocol?"
                )
            sequences[entry["id"]] = (key, entry["action_name"])
        return sequences

    def _people(self, entries: list, sequences: dict) -> list[dict]:
        """The annotations that are used, sound but for the values of their arrays."""
        people, seen = [], {}
        for index, entry in enumerate(entries):
            where = f"{self.annotations}: annotations[{index}]"
            if not isinstance(entry, dict) or not is_id(entry.get("id")):
                raise DataError(
                    f"{where} is {entry!r:.200}; expected an object with 'id', 'image_id', 'bbox', "
                    "'keypoints_world' and 'cam_param'"
                )
            where = f"{self.annotations}: annotation {entry['id']}"
            image_id, camera = entry.get("image_id"), entry.get("cam_param")
            if not is_id(image_id) or image_id not in sequences:
                raise DataError(
                    f"{where} is of image {image_id!r}, which 'images' does not list; expected "
                    f"one of its {len(sequences)} ids"
                )
            if image_id in seen:
                raise DataError(
                    f"{where} is of image {image_id}, as annotation {seen[image_id]} is; expected "
                    "one person an image"
                )
            seen[image_id] = entry["id"]
            check_box(entry.get("bbox"), where)
            missing = [k for k in "Rtfc" if not isinstance(camera, dict) or k not in camera]
            if missing:
                raise DataError(
                    f"{where} has a cam_param without {', '.join(missing)}; expected R (3, 3), "
                    "t (3) in millimetres, f (2) and c (2) in pixels"
                )
            if sequences[image_id][0] not in EXCLUDED_SEQUENCES:
                people.append(entry)
        return people

    def _detected(
        self, path: Path, table: dict, image_ids: list[int], image_wh: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        best = {}
        for entry, where in read_detections(path, table, self.annotations):
            image_id = entry["image_id"]
            if entry.get("category_id", _PERSON_CATEGORY) != _PERSON_CATEGORY:
                continue
            if image_id not in best or entry["score"] > best[image_id][0]["score"]:
                best[image_id] = (entry, where)
        missed = [image_id for image_id in image_ids if image_id not in best]
        if missed:
            raise DataError(
                f"{path}: no detection of a person in {len(missed)} of {len(image_ids)} images, "
                f"the first is image {missed[0]} of {self.annotations}; expected one in each, as "
                "all frames are scored (a box of the whole image where the detector found nobody)"
            )
        entries, wheres = zip(*(best[image_id] for image_id in image_ids), strict=True)
        boxes = clipped_boxes([entry["bbox"] for entry in entries], image_wh, list(wheres))
        return boxes, np.array([entry["score"] for entry in entries], np.float64)

    def _check_images(self, folder: Path, image_paths: np.ndarray) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; expected the images that "
                            f"{self.annotations} names")  # fmt: skip
        # Whole sequences that are absent are a mistake of another kind than a lost file.
        present = {path.name for path in folder.iterdir()}
        paths = [Path(path) for path in image_paths]
        named = {path.relative_to(folder).parts[0] for path in paths}
        if absent := sorted(named - present):
            subjects = sorted({name.split("_act_")[0] for name in present if "_act_" in name})
            raise DataError(
                f"{self.annotations}: names images of {len(named)} sequences, of which "
                f"{len(absent)} are not in {folder}, the first is {absent[0]}; found "
                f"{len(present)} sequences there, of subjects "
                f"{', '.join(name.removeprefix('s_') for name in subjects) or 'none'}; expected "
                "annotations and images of the same protocol"
            )
        check_image_files(image_paths, self.annotations)

    def _true_sizes(self, image_paths: np.ndarray, image_wh: np.ndarray) -> np.ndarray:
        """(N, 2) sizes as the first readable frame of each sequence has them.

        Some videos have 1000 rows where the published annotations say 1002.
        """
        sizes = {}
        for path, stated in zip(image_paths, image_wh.tolist(), strict=True):
            sequence = os.path.dirname(path)
            if sequence in sizes:
                continue
            try:
                with Image.open(path) as image:
                    sizes[sequence] = image.size
            except (OSError, SyntaxError):  # which is told when it is decoded
                continue
            if np.abs(np.divide(sizes[sequence], stated) - 1).max() > _SIZE_TOLERANCE:
                found, expected = ("x".join(map(str, wh)) for wh in (sizes[sequence], stated))
                raise DataError(
                    f"{path}: has {found} pixels where {self.annotations} says {expected}; "
                    "expected annotations and images of the same protocol"
                )
        found = [
            sizes.get(os.path.dirname(path), stated)
            for path, stated in zip(image_paths, image_wh.tolist(), strict=True)
        ]
        return np.array(found, np.int32).reshape(-1, 2)


def _seen_joints(people: list[dict], wheres: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 18, 3) joints in the cameras' axes, millimetres, and `Records.cameras` (N, 5)."""
    for entry, where in zip(people, wheres, strict=True):
        joints = entry.get("keypoints_world")
        if not isinstance(joints, list) or len(joints) != ANNOTATED_JOINTS:
            found = f"{len(joints)} joints" if isinstance(joints, list) else f"{joints!r:.80}"
            other = _OTHER_SKELETONS.get(len(joints) if isinstance(joints, list) else 0)
            raise DataError(
                f"{where} has keypoints_world of {found}; expected "
                f"{ANNOTATED_JOINTS} joints of 3 coordinates: "
                f"{', '.join(H36M18.joints[:ANNOTATED_JOINTS])}" + (f" ({other})" if other else "")
            )
    world_mm = _stacked(
        [entry["keypoints_world"] for entry in people], (ANNOTATED_JOINTS, 3), wheres,
        "keypoints_world",
    )  # fmt: skip
    rotation, position_mm, focal_px, centre_px = (
        _stacked([entry["cam_param"][key] for entry in people], shape, wheres, f"cam_param.{key}")
        for key, shape in (("R", (3, 3)), ("t", (3,)), ("f", (2,)), ("c", (2,)))
    )
    _check_length_unit(world_mm, wheres)
    error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
    turned = (error > 1e-3) | (np.linalg.det(rotation) < 0)
    if turned.any():
        row = int(np.argmax(turned))
        raise DataError(
            f"{wheres[row]} has a cam_param.R that is no rotation: R R^T is off the identity by "
            f"{error[row]:.3g} and its determinant is {np.linalg.det(rotation[row]):.3g}; expected "
            "an orthonormal matrix of determinant 1"
        )
    if (focal_px <= 0).any():
        row = int(np.argmax((focal_px <= 0).any(axis=1)))
        raise DataError(
            f"{wheres[row]} has cam_param.f {focal_px[row].tolist()}; expected focal lengths in "
            "pixels, above 0"
        )
    thorax_mm = world_mm[:, _SHOULDERS].mean(axis=1, keepdims=True)
    world_mm = np.concatenate([world_mm, thorax_mm], axis=1)
    joints_mm = (world_mm - position_mm[:, None]) @ rotation.transpose(0, 2, 1)
    behind = joints_mm[..., 2] <= 0
    if behind.any():
        row, joint = np.argwhere(behind)[0]
        raise DataError(
            f"{wheres[row]} has {H36M18.joints[joint]} {-joints_mm[row, joint, 2]:.0f} mm behind "
            "the camera; expected everybody in front of it (camera = R (world - t), z forward, in "
            f"millimetres; {int(behind.any(axis=1).sum())} annotations have this)"
        )
    return joints_mm, np.concatenate([focal_px, centre_px, joints_mm[:, H36M18.root, 2:]], axis=1)


def _stacked(values: list, shape: tuple[int, ...], wheres: list[str], key: str) -> np.ndarray:
    """(N, *shape) float64 of N nested lists of numbers."""
    # All at once, as there are millions; who is at fault is looked for where somebody is.
    if not values:
        return np.zeros((0, *shape))
    try:
        numbers = values
        for _ in shape:
            numbers = chain.from_iterable(numbers)
        # NumPy would make numbers of booleans and of text.
        if set(map(type, numbers)) <= {int, float}:
            array = np.array(values, np.float64)
            if array.shape[1:] == shape and (np.abs(array) <= _LARGEST).all():
                return array
    except (TypeError, ValueError, OverflowError):
        pass
    flaws = (_flaw(value, shape, key) for value in values)
    where, flaw = next((where, flaw) for where, flaw in zip(wheres, flaws, strict=True) if flaw)
    raise DataError(f"{where} has {flaw}")


def _flaw(value, shape: tuple[int, ...], name: str) -> str:
    """Which part of a nested list is no number or no list of the length; "" where none is."""
    if not shape:
        if is_number(value) and abs(value) <= _LARGEST:
            return ""
        return f"{value!r:.80} at {name}; expected a number within +-{_LARGEST:.0e}"
    length, *inner = shape
    if not isinstance(value, list) or len(value) != length:
        expected = " lists of ".join(map(str, shape))
        return f"{value!r:.80} at {name}; expected a list of {expected} numbers"
    flaws = (_flaw(part, tuple(inner), f"{name}[{index}]") for index, part in enumerate(value))
    return next(filter(None, flaws), "")


def _check_length_unit(joints_mm: np.ndarray, wheres: list[str]) -> None:
    bones = [np.linalg.norm(joints_mm[:, a] - joints_mm[:, b], axis=-1) for a, b in _LEG_BONES]
    length = np.mean(bones, axis=0)
    low, high = _LEG_BONE_MM
    wrong = (length < low) | (length > high)
    if wrong.any():
        row = int(np.argmax(wrong))
        factors = {1000: "metres", 10: "centimetres", 0.001: "micrometres"}
        unit = next((u for f, u in factors.items() if low < length[row] * f < high), None)
        raise DataError(
            f"{wheres[row]} has thighs and shanks of {length[row]:.3g} on average"
            + (f", as in {unit}" if unit else "")
            + f"; expected millimetres, {low:.0f} to {high:.0f} ({int(wrong.sum())} annotations "
            "have this)"
        )


def _check_boxes_hold_people(keypoints: np.ndarray, boxes: np.ndarray, wheres: list[str]) -> None:
    """The pelvis is in the box or close to it, else camera, pose and box are not of one image."""
    root, size = keypoints[:, H36M18.root, :2], boxes[:, 2:] - boxes[:, :2]
    apart = ((root < boxes[:, :2] - size) | (root > boxes[:, 2:] + size)).any(axis=1)
    if apart.any():
        row = int(np.argmax(apart))
        raise DataError(
            f"{wheres[row]} has its pelvis projected to {root[row].round().tolist()} and a bbox "
            f"from {boxes[row, :2].tolist()} to {boxes[row, 2:].tolist()}; expected camera, pose "
            f"and box of one image ({int(apart.sum())} annotations have this)"
        )
