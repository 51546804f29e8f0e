"""People of a COCO keypoint dataset: standard folders, standard JSON, standard score."""

import logging
from copy import copy
from functools import cached_property
from pathlib import Path

import numpy as np

from rle_tf import metrics
from rle_tf.data.annotations import (
    are_numbers,
    check_box,
    check_image_files,
    clipped_boxes,
    image_columns,
    is_id,
    is_number,
    no_garbage,
    read_detections,
    read_image_table,
    read_json,
)
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError
from rle_tf.geometry import clip_boxes
from rle_tf.skeletons import COCO17, Skeleton

LOG = logging.getLogger(__name__)


class CocoSource:
    """Annotated or detected people in the COCO keypoint layout.

    Without `detections` the records are the annotated people that have at least one labelled
    joint and are no crowd, with their annotated boxes: for training, and for evaluation with
    ground-truth boxes. With it they are the detector's boxes, and nothing is labelled.

    Args:
        annotations: `person_keypoints_*.json`.
        images: The folder that the annotations' `file_name`s are relative to.
        skeleton: The joints, in the order of the annotations.
        detections: A JSON list in COCO's result format (`image_id`, `category_id`, `bbox`,
            `score`).
        min_box_score: Detections below it are left out.
        oks_nms_threshold: Of two detections of one image that are closer than this OKS, the
            weaker one goes.

    Raises:
        DataError: for a missing file, a file of another format, or an entry that cannot be used;
            the message names file and entry.
    """

    # Keypoints are annotated on pixels, and some tools write the far edge as `width`.
    edge_tolerance_px = 1.0

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        *,
        skeleton: Skeleton = COCO17,
        detections: Path | str | None = None,
        min_box_score: float = 0.0,
        oks_nms_threshold: float = 0.9,
    ):
        self.annotations = Path(annotations)
        self.images = Path(images)
        self.skeleton = skeleton
        self.detections = Path(detections) if detections else None
        self.min_box_score = min_box_score
        self.oks_nms_threshold = oks_nms_threshold
        if self.detections and not skeleton.oks_sigmas:
            raise DataError(
                f"{self.detections}: detections of people with the joints of '{skeleton.name}', "
                "which has no oks_sigmas to tell doubles by; expected annotated boxes, or a "
                "skeleton with them"
            )

        self._load()

    @no_garbage()
    def _load(self) -> None:
        dataset = read_json(self.annotations, dict, "a COCO keypoint dataset")
        for key in ("images", "annotations", "categories"):
            if not isinstance(dataset.get(key), list):
                raise DataError(
                    f"{self.annotations}: no list '{key}'; expected a COCO keypoint dataset with "
                    "'images', 'annotations' and 'categories'"
                )
        if not self.images.is_dir():
            raise DataError(f"{self.images}: no such folder; expected the images that "
                            f"{self.annotations} names")  # fmt: skip
        self.category_id = self._category(dataset["categories"])
        image_table = read_image_table(dataset["images"], self.annotations, self.images)
        # With detections too: their score needs sound annotations, and is taken hours later.
        self.records = self._annotated(dataset["annotations"], image_table)
        if self.detections:
            self.records = self._detected(image_table)
        check_image_files(sorted(set(self.records.image_paths)), self.annotations)

    @property
    def parts(self) -> tuple[int, ...]:
        return (len(self.records),)

    def take(self, rows: np.ndarray | slice) -> "CocoSource":
        """The same source with some of its records; scores still count everybody annotated."""
        taken = copy(self)
        taken.records = self.records.take(rows)
        return taken

    @cached_property
    def ground_truth(self):
        """The annotations of the category with the joints, as a `pycocotools.coco.COCO`."""
        dataset = read_json(self.annotations, dict, "a COCO keypoint dataset")
        # The two keys that can be told from others are set, as not every tool writes them.
        annotations = [
            {
                **entry,
                "iscrowd": int(bool(entry.get("iscrowd"))),
                "num_keypoints": sum(value > 0 for value in entry["keypoints"][2::3]),
            }
            for entry in dataset["annotations"]
            if entry["category_id"] == self.category_id
        ]
        categories = [c for c in dataset["categories"] if c.get("id") == self.category_id]
        return metrics.coco_from_dict(
            {**dataset, "annotations": annotations, "categories": categories}
        )

    def results(self, poses: Poses) -> list[dict]:
        """The predictions in COCO's result format, one dict a person; detections after OKS-NMS."""
        rows = np.arange(len(self.records))
        if self.detections:
            rows = self._after_nms(poses)
        joints = np.concatenate([poses.keypoints[..., :2], poses.joint_scores[..., None]], axis=-1)
        flat = joints.reshape(len(joints), 3 * len(self.skeleton.joints)).round(3).tolist()
        return [
            {
                "image_id": int(self.records.image_ids[row]),
                "category_id": self.category_id,
                "keypoints": flat[row],
                "score": float(poses.person_scores[row]),
            }
            for row in rows
        ]

    def score(self, poses: Poses) -> dict[str, float]:
        """COCO's AP and AR and, where the people are annotated, how far their joints are off.

        Returns:
            `AP`, `AP50`, ..., `ARL`; `PCK@0.1` (of the longer side of the box), `error_px`,
            `error_px/JOINT`, and `within_1_sigma` and `within_2_sigma` (`metrics.coverage`). NaN
            where there is no ground truth (no person of that size, say). AP and AR are left out
            where the skeleton has no `oks_sigmas`.
        """
        if not self.skeleton.oks_sigmas:
            return self.joint_scores(poses)
        average_precision = metrics.coco_keypoint_ap(
            self.ground_truth, self.results(poses), np.asarray(self.skeleton.oks_sigmas)
        )
        return average_precision | self.joint_scores(poses)

    def joint_scores(self, poses: Poses) -> dict[str, float]:
        """How far joints are off, as in `score`; nothing where nobody is annotated."""
        records = self.records
        if not records.labelled.any():
            return {}
        predicted, annotated = poses.keypoints[..., :2], records.keypoints[..., :2]
        sides = records.boxes_xyxy[:, 2:] - records.boxes_xyxy[:, :2]
        error = metrics.per_joint_error(
            predicted, annotated, records.labelled, records.areas, sides.max(axis=1)
        )
        scores = {"PCK@0.1": error["mean_pck"], "error_px": error["mean_error_px"]}
        for factor in (1, 2):
            scores[f"within_{factor}_sigma"] = metrics.coverage(
                predicted, annotated, poses.sigmas[..., :2], records.labelled, factor
            )
        joints = zip(self.skeleton.joints, error["error_px"], strict=True)
        return scores | {f"error_px/{joint}": float(value) for joint, value in joints}

    def _after_nms(self, poses: Poses) -> np.ndarray:
        width, height = (poses.crop_boxes_xyxy[:, 2:] - poses.crop_boxes_xyxy[:, :2]).T
        areas = width * height
        joints = np.concatenate([poses.keypoints[..., :2], poses.joint_scores[..., None]], axis=-1)
        kept = []
        for image_id in np.unique(self.records.image_ids):
            rows = np.flatnonzero(self.records.image_ids == image_id)
            kept.append(
                rows[
                    metrics.oks_nms(
                        joints[rows],
                        poses.person_scores[rows],
                        areas[rows],
                        np.asarray(self.skeleton.oks_sigmas),
                        self.oks_nms_threshold,
                    )
                ]
            )
        return np.concatenate(kept) if kept else np.zeros(0, int)

    def _category(self, categories: list) -> int:
        joints = list(self.skeleton.joints)
        named = [entry for entry in categories if isinstance(entry, dict) and "keypoints" in entry]
        for entry in named:
            if entry["keypoints"] == joints and is_id(entry.get("id")):
                return entry["id"]
        found = "; ".join(f"{c.get('id')!r} '{c.get('name')}' with {c['keypoints']}" for c in named)
        raise DataError(
            f"{self.annotations}: no category with an id has the joints of skeleton "
            f"'{self.skeleton.name}'; found {found or 'none with keypoints'}, expected {joints}"
        )

    def _annotated(self, annotations: list, image_table: dict) -> Records:
        people, wheres = [], []
        for index, entry in enumerate(annotations):
            if not isinstance(entry, dict) or "category_id" not in entry:
                raise DataError(
                    f"{self.annotations}: annotations[{index}] is {entry!r:.200}; expected an "
                    "object with 'id', 'image_id', 'category_id', 'bbox', 'area' and 'keypoints'"
                )
            if entry["category_id"] != self.category_id:
                continue
            if not is_id(entry.get("id")):
                raise DataError(
                    f"{self.annotations}: annotations[{index}] has id {entry.get('id')!r}; "
                    "expected a whole number"
                )
            where = f"{self.annotations}: annotation {entry['id']}"
            self._check_annotation(entry, image_table, where)
            if not entry.get("iscrowd") and any(entry["keypoints"][2::3]):
                people.append(entry)
                wheres.append(where)
        people, wheres = self._usable(people, wheres, image_table)
        image_ids = [entry["image_id"] for entry in people]
        paths, image_wh = image_columns(image_ids, image_table)
        boxes = clipped_boxes([entry["bbox"] for entry in people], image_wh, wheres)
        for where, entry in zip(wheres, people, strict=True):
            if entry["area"] <= 0:
                raise DataError(
                    f"{where} has area {entry['area']}; expected the person's area in pixels, "
                    "which OKS measures distances by"
                )
        columns = self._checked_keypoints(
            [entry["keypoints"] for entry in people], image_wh, wheres
        )
        return Records(
            image_paths=paths,
            image_wh=image_wh,
            boxes_xyxy=boxes,
            keypoints=columns[..., :2].astype(np.float32),
            labelled=columns[..., 2] > 0,
            cameras=np.full((len(people), 5), np.nan),
            areas=np.array([entry["area"] for entry in people], np.float64),
            image_ids=np.array(image_ids, np.int64),
            person_ids=np.array([entry["id"] for entry in people], np.int64),
            box_scores=np.zeros(len(people)),
        )

    def _usable(
        self, people: list[dict], wheres: list[str], image_table: dict
    ) -> tuple[list[dict], list[str]]:
        """The people to look at: everybody, as OKS needs every box and area to be sound."""
        return people, wheres

    def _check_annotation(self, entry: dict, image_table: dict, where: str) -> None:
        """What COCOeval needs of everybody, crowds and people without labels included."""
        joints = len(self.skeleton.joints)
        image_id, values = entry.get("image_id"), entry.get("keypoints")
        if not is_id(image_id) or image_id not in image_table:
            raise DataError(
                f"{where} is of image {image_id!r}, which 'images' does not list; expected one of "
                f"its {len(image_table)} ids"
            )
        if not isinstance(values, list) or len(values) != 3 * joints:
            found = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
            raise DataError(
                f"{where} has keypoints of {found}; expected {3 * joints} numbers, x, y and "
                f"visibility of the {joints} joints of '{self.skeleton.name}'"
            )
        if not are_numbers(values):
            wrong = next(index for index, value in enumerate(values) if not is_number(value))
            raise DataError(
                f"{where} has {values[wrong]!r:.80} at keypoints[{wrong}], "
                f"{('x', 'y', 'the visibility')[wrong % 3]} of "
                f"{self.skeleton.joints[wrong // 3]}; expected a finite number"
            )
        check_box(entry.get("bbox"), where)
        if not is_number(entry.get("area")):
            raise DataError(
                f"{where} has area {entry.get('area')!r}; expected the person's area in pixels, "
                "which OKS measures distances by"
            )

    def _checked_keypoints(self, keypoints: list, image_wh: np.ndarray, wheres: list) -> np.ndarray:
        shape = (len(keypoints), len(self.skeleton.joints), 3)
        columns = np.array(keypoints, np.float64).reshape(shape)
        xy, labelled = columns[..., :2], columns[..., 2] > 0
        limit = image_wh[:, None] + self.edge_tolerance_px
        problems = {
            "a visibility of 0, 1 or 2": ~np.isin(columns[..., 2], (0, 1, 2)),
            "a place inside the image": labelled
            & ((xy < -self.edge_tolerance_px) | (xy > limit)).any(-1),
        }
        for expected, wrong in problems.items():
            if wrong.any():
                row, joint = np.argwhere(wrong)[0]
                width, height = image_wh[row]
                raise DataError(
                    f"{wheres[row]} has {self.skeleton.joints[joint]} at "
                    f"{columns[row, joint].tolist()} (x, y, visibility) in an image of "
                    f"{width}x{height}; expected {expected} "
                    f"({int(wrong.any(1).sum())} annotations have this)"
                )
        return columns

    def _detected(self, image_table: dict) -> Records:
        people, wheres = [], []
        for entry, where in read_detections(self.detections, image_table, self.annotations):
            category_id = entry.get("category_id", self.category_id)
            if category_id == self.category_id and entry["score"] >= self.min_box_score:
                people.append(entry)
                wheres.append(where)
        image_ids = [entry["image_id"] for entry in people]
        if len(set(image_ids)) < len(image_table) / 2:
            LOG.warning(
                "%s: has people in %d of %d images; those annotated in the others count as missed",
                self.detections, len(set(image_ids)), len(image_table),
            )  # fmt: skip
        paths, image_wh = image_columns(image_ids, image_table)
        boxes = clip_boxes(np.array([e["bbox"] for e in people], float).reshape(-1, 4), image_wh)
        joints = len(self.skeleton.joints)
        return Records(
            image_paths=paths,
            image_wh=image_wh,
            boxes_xyxy=boxes,
            keypoints=np.zeros((len(people), joints, 2), np.float32),
            labelled=np.zeros((len(people), joints), bool),
            cameras=np.full((len(people), 5), np.nan),
            areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
            image_ids=np.array(image_ids, np.int64),
            person_ids=np.full(len(people), -1, np.int64),
            box_scores=np.array([entry["score"] for entry in people], np.float64),
        ).take(self._with_area(boxes, wheres, "detections"))

    def _with_area(self, boxes_xyxy: np.ndarray, wheres: list[str], kind: str) -> np.ndarray:
        """(N,) bool: the boxes that hold pixels. Detectors give others: a pixel wide, outside."""
        has_area = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
        if not has_area.all():
            LOG.warning(
                "left out %d of %d %s, which have no area inside their images; the first is %s",
                (~has_area).sum(), len(has_area), kind, wheres[int(np.argmin(has_area))],
            )  # fmt: skip
        return has_area
