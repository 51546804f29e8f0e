"""What a data source gives: people to look at, and a score for what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from rle_tf.skeletons import Skeleton

# Of a density that is wide by one sigma itself.
UNIT_SPREAD = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Records:
    """N people, one row each, as columns.

    Attributes:
        image_paths: (N,) str.
        image_wh: (N, 2) int32, width and height that the annotations state.
        boxes_xyxy: (N, 4) float64, image pixels, inside the image.
        keypoints: (N, K, D) float32. x and y in image pixels; a third coordinate, where there is
            one, in millimetres relative to the root. A depth that is not supervised is NaN.
        labelled: (N, K) bool. Where it is false the keypoints mean nothing.
        cameras: (N, 5) float64: focal length x, y and principal point x, y in pixels, depth of
            the root in millimetres; NaN where the camera is not known.
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
    cameras: np.ndarray
    areas: np.ndarray
    image_ids: np.ndarray
    person_ids: np.ndarray
    box_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.image_paths)

    def take(self, rows: np.ndarray | slice) -> "Records":
        """The records of some rows: indices, a mask or a slice."""
        return Records(*(column[rows] for column in vars(self).values()))

    def join(self, others: "Records") -> "Records":
        """These records and then those of others, with the same joints."""
        columns = zip(vars(self).values(), vars(others).values(), strict=True)
        return Records(*(np.concatenate(pair) for pair in columns))


@dataclass(frozen=True)
class Poses:
    """What a regressor says of N people.

    Attributes:
        keypoints: (N, K, D) float64, in the units of `Records.keypoints`: x and y in image pixels,
            a third coordinate in millimetres relative to the root.
        sigmas: (N, K, D) float64, in the same units: the error to be expected along each
            coordinate, sigma times its spread (of a calibration, or of the density that it was
            trained with).
        joint_scores: (N, K) float64, 1 - mean sigma in unit coordinates: the paper's.
        person_scores: (N,) float64.
        crop_boxes_xyxy: (N, 4) float64, where the regressor looked.
        confidences: (N, K) float64, the calibrated probability that a joint is off by less than a
            tenth of the person's size; None where the regressor is not calibrated.
    """

    keypoints: np.ndarray
    sigmas: np.ndarray
    joint_scores: np.ndarray
    person_scores: np.ndarray
    crop_boxes_xyxy: np.ndarray
    confidences: np.ndarray | None = None

    def take(self, rows: np.ndarray | slice) -> "Poses":
        """The poses of some rows: indices, a mask or a slice."""
        return Poses(*(None if column is None else column[rows] for column in vars(self).values()))

    def of_joints(self, places: Sequence[int], dims: int) -> "Poses":
        """The poses with joint `places[i]` as joint i, and `dims` coordinates of each at most."""
        places = list(places)
        return replace(
            self,
            keypoints=self.keypoints[:, places, :dims],
            sigmas=self.sigmas[:, places, :dims],
            joint_scores=self.joint_scores[:, places],
            confidences=None if self.confidences is None else self.confidences[:, places],
        )


class Source(Protocol):
    """People of one dataset and the dataset's own way to score predictions for them.

    `parts` are the numbers of people in consecutive parts of `records`, which take turns in
    training; one part, but for a mix.
    """

    skeleton: Skeleton
    records: Records
    parts: tuple[int, ...]

    def take(self, rows: np.ndarray | slice) -> "Source":
        """The same source with some of its records."""
        ...

    def results(self, poses: Poses) -> list[dict]:
        """The predictions in the dataset's submission format."""
        ...

    def score(self, poses: Poses) -> dict[str, float]:
        """The dataset's metrics; `poses` are of `records`, row by row."""
        ...


class InputFormat(Protocol):
    """What a kind of regressor sees of a person, and how what it says is to be read.

    Attributes:
        reads_images: Whether image files are opened.
        draws: How many random numbers an augmented example takes.
        mirror_shift: x of a mirrored input is -x - this, in the regressor's coordinates.
    """

    reads_images: bool
    draws: int
    mirror_shift: float

    def columns(self, records: Records) -> tuple[tf.Tensor, ...]:
        """What `example` needs of the people, a row each."""
        ...

    def example(self, person, skeleton, augmentation, draws, seed):
        """(input, target) of one row of `columns`: a pure function of its arguments.

        Args:
            person: The row.
            skeleton: Its joints.
            augmentation: An `Augmentation`, or None for the person as it is.
            draws: (`draws`,) float32 in [0, 1).
            seed: (2,) int64, for what takes more random numbers.
        """
        ...

    def mirror(self, inputs: tf.Tensor, permutation: tuple[int, ...]) -> tf.Tensor:
        """A batch of inputs mirrored left to right; `permutation` is the skeleton's."""
        ...

    def decode(
        self, output: dict[str, np.ndarray], records: Records, spread: Sequence[float]
    ) -> Poses:
        """The regressor's {"mu": (N, K, D), "sigma": (N, K, D)} for N people as their poses."""
        ...

    def check(self, regressor: keras.Model) -> None:
        """Raises `ModelError` if a regressor takes another input."""
        ...
