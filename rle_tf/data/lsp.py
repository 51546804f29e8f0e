"""Leeds Sports Pose and its extension: photographs of one person each, 14 joints."""

import logging
from copy import copy
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from rle_tf import metrics
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError
from rle_tf.geometry import clip_boxes
from rle_tf.skeletons import LSP14

LOG = logging.getLogger(__name__)

# Of the longer side, on each side: joints lie inside a person, hands and feet beyond them.
_MARGIN = 0.1
# PCK's length is from the left shoulder to the right hip.
_TORSO = (LSP14.joints.index("left_shoulder"), LSP14.joints.index("right_hip"))


class LspSource:
    """People of LSP extended (Johnson and Everingham, CVPR 2011): `images/im00001.jpg` and so on,
    and `joints.mat`.

    A person's box is that of the annotated joints, grown by a tenth of its longer side on each
    side. People of whom fewer than two joints are annotated have none and are left out, counted in
    the log.

    Args:
        joints: `joints.mat`, whose `joints` is (14, 3, N): x, y in pixels, and 1 where they are
            annotated.
        images: The folder of the photographs.
        first, last: Which of them, from 1, both included; by default all.

    Raises:
        DataError: for a missing file, a file of another layout, or an entry that cannot be used.
    """

    def __init__(
        self, joints: Path | str, images: Path | str, first: int = 1, last: int | None = None
    ):
        self.joints, self.images, self.skeleton = Path(joints), Path(images), LSP14
        table = _read_joints(self.joints)
        people = len(table)
        last = people if last is None else last
        if not 1 <= first <= last <= people:
            raise DataError(
                f"{self.joints}: asked for people {first} to {last}; expected a range in 1 to "
                f"{people}, those it has"
            )
        self.records = self._records(table[first - 1 : last], first)

    @property
    def parts(self) -> tuple[int, ...]:
        return (len(self.records),)

    def take(self, rows: np.ndarray | slice) -> "LspSource":
        """The same source with some of its records."""
        taken = copy(self)
        taken.records = self.records.take(rows)
        return taken

    def results(self, poses: Poses) -> list[dict]:
        """A dict a person: `image`, `keypoints` (14 lists of x, y and score) and `score`."""
        joints = np.concatenate([poses.keypoints, poses.joint_scores[..., None]], axis=-1)
        return [
            {"image": Path(path).name, "keypoints": person.round(3).tolist(), "score": float(score)}
            for path, person, score in zip(
                self.records.image_paths, joints, poses.person_scores, strict=True
            )
        ]

    def score(self, poses: Poses) -> dict[str, float]:
        """PCK by the torso, as `metrics.torso_scores`, and how far joints are off, in pixels."""
        records = self.records
        return metrics.torso_scores(
            poses.keypoints,
            records.keypoints,
            poses.sigmas,
            records.labelled,
            self.skeleton.joints,
            _TORSO,
        )

    def _records(self, table: np.ndarray, first: int) -> Records:
        keypoints, labelled = table[..., :2], table[..., 2] > 0
        numbers = np.arange(first, first + len(table))
        paths = [self.images / f"im{number:05d}.jpg" for number in numbers]
        image_wh = np.array([_image_wh(path, self.joints) for path in paths], np.int32)
        # What stands where nothing is annotated means nothing.
        keypoints = np.where(labelled[..., None], keypoints, 0)
        low = np.where(labelled[..., None], keypoints, np.inf).min(axis=1)
        high = np.where(labelled[..., None], keypoints, -np.inf).max(axis=1)
        seen = labelled.sum(axis=1) >= 2
        low, high = np.where(seen[:, None], low, 0), np.where(seen[:, None], high, 0)
        grow = _MARGIN * (high - low).max(axis=1, keepdims=True)
        boxes = clip_boxes(
            np.concatenate([low - grow, high - low + 2 * grow + 1], axis=1), image_wh
        )
        sizes = boxes[:, 2:] - boxes[:, :2]
        used = seen & (sizes > 0).all(axis=1)
        if not used.all():
            LOG.info("%s: %d people without a box are left out", self.joints, (~used).sum())
        everybody = Records(
            image_paths=np.array([str(path) for path in paths], object),
            image_wh=image_wh,
            boxes_xyxy=boxes,
            keypoints=keypoints.astype(np.float32),
            labelled=labelled,
            cameras=np.full((len(table), 5), np.nan),
            areas=sizes.prod(axis=1),
            image_ids=numbers,
            person_ids=numbers,
            box_scores=np.zeros(len(table)),
        )
        return everybody.take(used)


def _read_joints(path: Path) -> np.ndarray:
    """(N, 14, 3) float64 of `joints.mat`."""
    expected = "LSP extended's joints.mat, whose 'joints' is (14, 3, N)"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    try:
        content = loadmat(path, variable_names=["joints"])
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(
            f"{path}: cannot be read as a .mat file ({error}); expected {expected}"
        ) from None
    joints = content.get("joints")
    if (
        joints is None
        or joints.ndim != 3
        or joints.shape[:2] != (14, 3)
        or joints.dtype.kind not in "fiu"
    ):
        found = "no 'joints'" if joints is None else f"'joints' {joints.shape} of {joints.dtype}"
        raise DataError(f"{path}: holds {found}; expected {expected} and numbers")
    joints = joints.astype(np.float64).transpose(2, 0, 1)
    flags = joints[..., 2]
    for wrong, what in [
        (~np.isin(flags, (0, 1)), "a flag that is neither 0 nor 1"),
        ((flags == 1) & ~np.isfinite(joints[..., :2]).all(axis=-1), "a place that is not finite"),
    ]:
        if wrong.any():
            person, joint = np.argwhere(wrong)[0]
            raise DataError(
                f"{path}: person {person + 1}, {LSP14.joints[joint]} is "
                f"{joints[person, joint].tolist()}, {what}; expected x, y and 1, or 0 where it is "
                "not annotated"
            )
    return joints


def _image_wh(path: Path, joints: Path) -> tuple[int, int]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the photographs that {joints} is of")
    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None
