"""Places without people, for a model that is to say so."""

from copy import copy

import numpy as np

from rle_tf.data.coco import CocoSource
from rle_tf.data.source import Records
from rle_tf.errors import DataError

# Of the shorter side of a photograph: the longer side of a box.
_SIZES = (0.15, 0.5)
# What a crop may show, as a square about the box: a margin of 1.25 and a scale of 1.3.
_SEEN = 1.25 * 1.3
_TRIES = 200


def background(source: CocoSource, count: int, seed: int = 0) -> Records:
    """Boxes in a source's photographs about which nobody annotated is to be seen, crowds included.

    Each has the pose of somebody else, drawn at random and placed in it as that person is in its
    own box: of a place where nobody is, nothing is known but how people stand in boxes, and the
    likeliest sigma is as wide as that.

    Args:
        source: Whose photographs and people.
        count: How many.
        seed: Decides which; a run's own seed does not, so that runs compare.

    Raises:
        DataError: if the photographs are full of people.
    """
    records, rng = source.records, np.random.default_rng(seed)
    taken: dict[int, list] = {}
    for annotation in source.ground_truth.dataset["annotations"]:
        taken.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    rows, donors, boxes = [], [], []
    for _ in range(_TRIES * count):
        if len(rows) == count:
            break
        row, donor = rng.integers(len(records), size=2)
        wh = records.image_wh[row]
        size = records.boxes_xyxy[donor, 2:] - records.boxes_xyxy[donor, :2]
        size = size / size.max() * rng.uniform(*_SIZES) * wh.min()
        low = rng.uniform(0, 1, 2) * (wh - 1 - size)
        others = np.array(taken[records.image_ids[row]])
        centre, reach = low + size / 2, _SEEN * size.max() / 2
        beside = (centre - reach > others[:, :2] + others[:, 2:]) | (centre + reach < others[:, :2])
        if beside.any(axis=1).all():
            rows.append(row)
            donors.append(donor)
            boxes.append([*low, *(low + size)])
    if len(rows) < count:
        raise DataError(
            f"{source.annotations}: found room for {len(rows)} boxes beside all people; expected "
            f"{count}"
        )
    places, people, boxes = (
        records.take(np.array(rows, int)),
        records.take(np.array(donors, int)),
        np.array(boxes).reshape(-1, 4),
    )
    theirs = people.boxes_xyxy
    scale = (boxes[:, 2:] - boxes[:, :2]) / (theirs[:, 2:] - theirs[:, :2])
    keypoints = boxes[:, None, :2] + (people.keypoints - theirs[:, None, :2]) * scale[:, None]
    return Records(
        **{
            **vars(places),
            "boxes_xyxy": boxes,
            "keypoints": keypoints.astype(np.float32),
            "labelled": people.labelled,
            "areas": people.areas * scale.prod(axis=1),
            "person_ids": np.full(count, -1, np.int64),
        }
    )


def with_background(source: CocoSource, share: float, seed: int = 0) -> CocoSource:
    """A source to train on, with places without people: `share` times as many as people."""
    mixed = copy(source)
    mixed.records = source.records.join(
        background(source, round(share * len(source.records)), seed)
    )
    return mixed
