"""Sources under another skeleton, and two sources as one: people of both take turns."""

from copy import copy

import numpy as np

from rle_tf.data.source import Poses, Records, Source
from rle_tf.errors import DataError
from rle_tf.skeletons import Skeleton, joint_map


class MappedSource:
    """A source whose people have the joints of another skeleton.

    Joints go by their names. Those that the source does not have are not supervised, as depths are
    not that it does not have.

    Args:
        source: Whose people.
        skeleton: What they get.
        dims: Coordinates of a joint; by default the source's.

    Raises:
        DataError: if the skeletons have no joint in common.
    """

    def __init__(self, source: Source, skeleton: Skeleton, dims: int | None = None):
        self.source, self.skeleton = source, skeleton
        places = joint_map(source.skeleton, skeleton)
        if all(place is None for place in places):
            raise DataError(
                f"skeletons '{skeleton.name}' and '{source.skeleton.name}' have no joint in "
                "common; expected sources of people to mix"
            )
        self.records = _mapped(source.records, places, dims)

    @property
    def parts(self) -> tuple[int, ...]:
        return self.source.parts

    def take(self, rows: np.ndarray | slice) -> "MappedSource":
        """The same source with some of its records."""
        taken = copy(self)
        taken.source, taken.records = self.source.take(rows), self.records.take(rows)
        return taken

    @property
    def lacking(self) -> list[str]:
        """The source's joints that are not in the skeleton, and its depths where they are left
        out. With any, it cannot be scored."""
        places = joint_map(self.skeleton, self.source.skeleton)
        names = zip(self.source.skeleton.joints, places, strict=True)
        dims, kept = (r.keypoints.shape[-1] for r in (self.source.records, self.records))
        return [name for name, place in names if place is None] + ["depths"] * (kept < dims)

    def results(self, poses: Poses) -> list[dict]:
        """The source's results, of its own joints.

        Raises:
            DataError: if the skeleton does not have them all; `score` as well.
        """
        return self.source.results(self._own(poses))

    def score(self, poses: Poses) -> dict[str, float]:
        """The source's score, of its own joints."""
        return self.source.score(self._own(poses))

    def _own(self, poses: Poses) -> Poses:
        if self.lacking:
            raise DataError(
                f"skeleton '{self.skeleton.name}' has no {', '.join(self.lacking)}; expected all "
                f"joints of '{self.source.skeleton.name}', whose people are to be scored"
            )
        places = joint_map(self.skeleton, self.source.skeleton)
        return poses.of_joints(places, self.source.records.keypoints.shape[-1])


class MixSource:
    """Half of every epoch is of the first source and half of the second.

    The larger one gives everybody once an epoch; from the smaller one as many are drawn with
    replacement. Both appear with one skeleton and one number of coordinates: joints go by their
    names, and what a source does not have (joints, depths) is not supervised.

    Args:
        first: The source that the mix is for.
        second: Another one.
        skeleton: Of the mix; by default the first's. The number of coordinates is the first's.

    Raises:
        DataError: if no joint of one of them is in the skeleton.
    """

    def __init__(self, first: Source, second: Source, skeleton: Skeleton | None = None):
        self.skeleton = skeleton or first.skeleton
        dims = first.records.keypoints.shape[-1]
        same = self.skeleton == first.skeleton
        self.first = first if same else MappedSource(first, self.skeleton)
        self.second = MappedSource(second, self.skeleton, dims)
        self.records = self.first.records.join(self.second.records)
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
        of_first = self.of_first[rows]
        taken = copy(self)
        taken.records, taken.of_first = self.records.take(rows), of_first
        taken.first = self.first.take(rows[of_first])
        taken.second = self.second.take(rows[~of_first] - len(self.first.records))
        return taken

    def results(self, poses: Poses) -> list[dict]:
        """The first source's results for its own people."""
        return self.first.results(poses.take(self.of_first))

    def score(self, poses: Poses) -> dict[str, float]:
        """Each source's score for its own people; keys of the second begin with `second_`. The
        second is left out where the skeleton lacks joints of it."""
        scores = self.first.score(poses.take(self.of_first))
        if self.of_first.all() or self.second.lacking:
            return scores
        second = self.second.score(poses.take(~self.of_first))
        return scores | {f"second_{name}": value for name, value in second.items()}


def _mapped(records: Records, places: tuple[int | None, ...], dims: int | None) -> Records:
    """Records whose joint i is joint `places[i]` of those given, or not labelled."""
    shared = [(new, old) for new, old in enumerate(places) if old is not None]
    new, old = (list(indices) for indices in zip(*shared, strict=True))
    people, _, known = records.keypoints.shape
    dims = known if dims is None else dims
    keypoints = np.full((people, len(places), dims), np.nan, np.float32)
    keypoints[..., :2] = 0
    labelled = np.zeros((people, len(places)), bool)
    kept = min(dims, known)
    keypoints[:, new, :kept] = records.keypoints[:, old, :kept]
    labelled[:, new] = records.labelled[:, old]
    return Records(**{**vars(records), "keypoints": keypoints, "labelled": labelled})
