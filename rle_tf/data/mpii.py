"""People of MPII Human Pose, whose annotations were rewritten in COCO's format."""

import math
from pathlib import Path

from rle_tf.data.coco import CocoSource
from rle_tf.data.source import Poses
from rle_tf.skeletons import MPII16


class MpiiSource(CocoSource):
    """Annotated people of MPII, 16 joints, without depth.

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

    def score(self, poses: Poses) -> dict[str, float]:
        """`CocoSource.joint_scores`: no OKS sigmas are published for MPII, so there is no AP."""
        return self.joint_scores(poses)
