"""Two sources as one, for training: people of both take turns."""

from copy import copy

import numpy as np

from rle_tf.data.source import Poses, Records, Source
from rle_tf.errors import DataError
from rle_tf.skeletons import joint_map


class MixSource:
    """Half of every epoch is of the first source and half of the second.

    The larger one gives everybody once an epoch; from the smaller one as many are drawn with
    replacement. Skeleton and number of coordinates are the first's: joints of the second go by
    their names, and what it does not have (joints, depths) is not supervised. Scores are of the
    first source's people.

    Args:
        first: The source that the mix is for.
        second: Another one.

    Raises:
        DataError: if no joint of the second is one of the first's.
    """

    def __init__(self, first: Source, second: Source):
        self.first, self.skeleton = first, first.skeleton
        mapped = _mapped(second, first)
        self.records = Records(
            *(
                np.concatenate([ours, theirs])
                for ours, theirs in zip(
                    vars(first.records).values(), vars(mapped).values(), strict=True
                )
            )
        )
        self.of_first = np.arange(len(self.records)) < len(first.records)

    @property
    def parts(self) -> tuple[int, ...]:
        parts = (int(self.of_first.sum()), int((~self.of_first).sum()))
        if 0 in parts:
            raise DataError(
                f"a mix of {parts[0]} and {parts[1]} people; expected people of both sources"
            )
        return parts

    def take(self, rows: np.ndarray | slice) -> "MixSource":
        """The same mix with some of its records, in the order of the mix: the first source's, then
        the second's."""
        rows = np.sort(np.arange(len(self.records))[rows])
        taken = copy(self)
        taken.records, taken.of_first = self.records.take(rows), self.of_first[rows]
        taken.first = self.first.take(rows[taken.of_first])
        return taken

    def results(self, poses: Poses) -> list[dict]:
        """The first source's results for its own people."""
        return self.first.results(poses.take(self.of_first))

    def score(self, poses: Poses) -> dict[str, float]:
        """The first source's score for its own people."""
        return self.first.score(poses.take(self.of_first))


def _mapped(source: Source, to: Source) -> Records:
    """The records of a source with the joints and the coordinates of another's."""
    places = joint_map(source.skeleton, to.skeleton)
    shared = [(ours, theirs) for ours, theirs in enumerate(places) if theirs is not None]
    if not shared:
        raise DataError(
            f"skeletons '{to.skeleton.name}' and '{source.skeleton.name}' have no joint in common; "
            "expected sources of people to mix"
        )
    ours, theirs = (list(indices) for indices in zip(*shared, strict=True))
    records, dims = source.records, to.records.keypoints.shape[-1]
    people, _, known = records.keypoints.shape
    keypoints = np.full((people, len(places), dims), np.nan, np.float32)
    keypoints[..., :2] = 0
    labelled = np.zeros((people, len(places)), bool)
    kept = min(dims, known)
    keypoints[:, ours, :kept] = records.keypoints[:, theirs, :kept]
    labelled[:, ours] = records.labelled[:, theirs]
    return Records(**{**vars(records), "keypoints": keypoints, "labelled": labelled})
