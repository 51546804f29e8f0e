"""People of MPII Human Pose, whose annotations were rewritten in COCO's format."""

import math
from itertools import compress
from pathlib import Path

from rle_tf.data.annotations import image_columns
from rle_tf.data.coco import CocoSource
from rle_tf.data.source import Poses
from rle_tf.geometry import clip_boxes
from rle_tf.skeletons import MPII16


class MpiiSource(CocoSource):
    """Annotated people of MPII, 16 joints, without depth. Those without a box are left out, counted
    in the log.

    Args:
        annotations: `annot_mpii.json`, in the layout of COCO's keypoints.
        images: The folder that its `file_name`s are relative to.

    Raises:
        DataError: as `CocoSource`.
    """

    # MPII labels joints that a photograph cuts off, too.
    edge_tolerance_px = math.inf

    def __init__(self, annotations: Path | str, images: Path | str):
        super().__init__(annotations, images, skeleton=MPII16)

    def _usable(
        self, people: list[dict], wheres: list[str], image_table: dict
    ) -> tuple[list[dict], list[str]]:
        _, image_wh = image_columns([entry["image_id"] for entry in people], image_table)
        boxes = clip_boxes([entry["bbox"] for entry in people], image_wh)
        boxes[[entry["area"] <= 0 for entry in people]] = 0
        used = self._with_area(boxes, wheres, "people")
        return list(compress(people, used)), list(compress(wheres, used))

    def score(self, poses: Poses) -> dict[str, float]:
        """`CocoSource.joint_scores`: no OKS sigmas are published for MPII, so there is no AP."""
        return self.joint_scores(poses)
