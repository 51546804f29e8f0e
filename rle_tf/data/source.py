"""What a data source gives: people to look at, and a score for what was seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rle_tf.errors import DataError
from rle_tf.skeletons import Skeleton


@dataclass(frozen=True)
class Records:
    """N people, one row each, as columns.

    Attributes:
        image_paths: (N,) str.
        image_wh: (N, 2) int32, width and height that the annotations state.
        boxes_xyxy: (N, 4) float64, image pixels, inside the image.
        keypoints: (N, K, D) float32. x and y in image pixels; a third coordinate, where there is
            one, in millimetres relative to the root.
        labelled: (N, K) bool. Where it is false the keypoints mean nothing.
        areas: (N,) float64, the person's area in pixels, what OKS measures distances by.
        image_ids: (N,) int64.
        person_ids: (N,) int64, the annotation's id, -1 for a detection.
        box_scores: (N,) float64, the detector's confidence, 0 for an annotated box.
    """

    image_paths: np.ndarray
    image_wh: np.ndarray
    boxes_xyxy: np.ndarray
    keypoints: np.ndarray
    labelled: np.ndarray
    areas: np.ndarray
    image_ids: np.ndarray
    person_ids: np.ndarray
    box_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.image_paths)

    def take(self, rows: np.ndarray | slice) -> "Records":
        """The records of some rows: indices, a mask or a slice."""
        return Records(*(column[rows] for column in vars(self).values()))


@dataclass(frozen=True)
class Poses:
    """What a regressor says of N people, in image pixels.

    Attributes:
        keypoints_px: (N, K, 2) float64.
        sigma_px: (N, K, 2) float64, the error to be expected along x and y: sigma times the
            spread of the flow that it was trained with.
        joint_scores: (N, K) float64, 1 - mean sigma in unit coordinates.
        person_scores: (N,) float64.
        crop_boxes_xyxy: (N, 4) float64, where the regressor looked.
    """

    keypoints_px: np.ndarray
    sigma_px: np.ndarray
    joint_scores: np.ndarray
    person_scores: np.ndarray
    crop_boxes_xyxy: np.ndarray


class Source(Protocol):
    """People of one dataset and the dataset's own way to score predictions for them."""

    skeleton: Skeleton
    records: Records

    def take(self, rows: np.ndarray | slice) -> "Source":
        """The same source with some of its records."""
        ...

    def results(self, poses: Poses) -> list[dict]:
        """The predictions in the dataset's submission format."""
        ...

    def score(self, poses: Poses) -> dict[str, float]:
        """The dataset's metrics; `poses` are of `records`, row by row."""
        ...


def check_image_files(image_paths: list[Path], named_by: Path) -> None:
    """Raises `DataError` if an image that an annotation file names is not on disk."""
    # One listing a folder instead of a question a file: full COCO on a network disk.
    present = {
        folder: {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        for folder in {path.parent for path in image_paths}
    }
    absent = [path for path in image_paths if path.name not in present[path.parent]]
    if absent:
        raise DataError(
            f"{named_by}: {len(absent)} of {len(image_paths)} images are missing, the first is "
            f"{absent[0]}; expected every image that has people to look at"
        )
