"""Rendered people, read back through the very code that reads COCO and Human3.6M."""

from pathlib import Path
from typing import Literal

from rle_tf.data.coco import CocoSource
from rle_tf.data.h36m import H36mSource
from rle_tf.data.rendering.coco_writer import write_synthetic_coco
from rle_tf.data.rendering.h36m_writer import SPLITS, write_synthetic_h36m


class SyntheticSource(CocoSource):
    """Articulated people rendered into a COCO-format folder the first time they are needed.

    Args:
        root: The dataset's folder.
        split: `train` or `val`.
        train_people, val_people: How many are rendered.
        seed: Decides what is rendered.
        rendered_size: (height, width) of the images, pixels.
        detected: Jittered boxes in place of the true ones, as a detector would give (val).
        min_box_score, oks_nms_threshold: As in `CocoSource`.

    Raises:
        ConfigError: for an argument outside its range.
        DataError: if `root` holds something else, or people rendered with other arguments.
    """

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "val"],
        *,
        train_people: int,
        val_people: int,
        seed: int = 0,
        rendered_size: tuple[int, int] = (160, 160),
        detected: bool = False,
        min_box_score: float = 0.0,
        oks_nms_threshold: float = 0.9,
    ):
        root = Path(root)
        write_synthetic_coco(
            root,
            train_people=train_people,
            val_people=val_people,
            seed=seed,
            image_size=rendered_size,
        )
        super().__init__(
            root / f"annotations/person_keypoints_{split}2017.json",
            root / f"{split}2017",
            detections=root / f"detections/person_detections_{split}2017.json"
            if detected
            else None,
            min_box_score=min_box_score,
            oks_nms_threshold=oks_nms_threshold,
        )


class Synthetic3DSource(H36mSource):
    """The same people in 3D, rendered into a folder in the layout of Human3.6M.

    Args:
        root: The dataset's folder.
        split: `train` (subjects 1, 5, 6, 7, 8) or `val` (9, 11).
        train_people, val_people: How many are rendered, one an image; four cameras see each pose.
        seed: Decides what is rendered.
        rendered_size: (height, width) of the images, pixels.
        images: Whether the pictures are rendered, too; without them there are annotations alone.

    Raises:
        ConfigError: for an argument outside its range.
        DataError: if `root` holds something else, or people rendered with other arguments.
    """

    def __init__(
        self,
        root: Path | str,
        split: Literal["train", "val"],
        *,
        train_people: int,
        val_people: int,
        seed: int = 0,
        rendered_size: tuple[int, int] = (160, 160),
        images: bool = True,
    ):
        root = Path(root)
        write_synthetic_h36m(
            root,
            train_people=train_people,
            val_people=val_people,
            seed=seed,
            image_size=rendered_size,
            images=images,
        )
        annotations, _ = SPLITS[split]
        super().__init__(root / "annotations" / annotations, root / "images" if images else None)
