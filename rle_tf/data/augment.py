"""Training augmentation: each choice a pure function of its inputs and uniform random numbers.

The random numbers come in as arguments (float32 in [0, 1)), so a sample's augmentation is decided
by its seed alone, wherever and in whatever order it is computed.
"""

import math

import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rle_tf.geometry import mirror, transform_points
from rle_tf.skeletons import Skeleton


class Augmentation(BaseModel):
    """How training crops vary. The defaults are the paper's 2D recipe.

    Attributes:
        flip_probability: Of mirroring left and right.
        scale_range: The crop's side is multiplied by a factor drawn uniformly from it.
        rotation_deg: The crop is turned by an angle drawn uniformly from plus and minus this.
        rotation_probability: Of turning it at all.
        half_body_probability: Of looking at the upper or the lower half of the body alone.
        half_body_min_joints: Only people with more labelled joints than this are halved.
        half_body_margin: The factor on the half's own box.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    flip_probability: float = Field(0.5, ge=0, le=1)
    scale_range: tuple[float, float] = (0.75, 1.25)
    rotation_deg: float = Field(45.0, ge=0, le=180)
    rotation_probability: float = Field(0.5, ge=0, le=1)
    half_body_probability: float = Field(0.3, ge=0, le=1)
    half_body_min_joints: int = Field(3, ge=0)
    half_body_margin: float = Field(1.5, gt=0)

    @model_validator(mode="after")
    def _scale_range_ascends(self):
        low, high = self.scale_range
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scale_range {list(self.scale_range)} must be positive and ascend")
        return self


# How many uniform random numbers `augment` takes.
DRAWS = 6


def flip(
    keypoints: tf.Tensor,
    labelled: tf.Tensor,
    centre: tf.Tensor,
    image_width: tf.Tensor,
    permutation: tuple[int, ...],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A person of the mirrored image: x mirrored, left and right joints exchanged.

    Args:
        keypoints: (K, D) x and y in image pixels; further coordinates stay.
        labelled: (K,) bool.
        centre: (2,) of the box, image pixels.
        image_width: () of the image.
        permutation: `Skeleton.flip_permutation`.

    Returns:
        `(keypoints, labelled, centre)` of the same shapes.
    """
    matrix = mirror(image_width)
    keypoints = tf.concat([transform_points(matrix, keypoints[:, :2]), keypoints[:, 2:]], axis=1)
    return (
        tf.gather(keypoints, permutation),
        tf.gather(labelled, permutation),
        transform_points(matrix, centre),
    )


def scale(size_wh: tf.Tensor, scale_range: tuple[float, float], draw: tf.Tensor) -> tf.Tensor:
    """A box size (2,) times a factor drawn uniformly from `scale_range`."""
    low, high = scale_range
    return size_wh * (low + (high - low) * draw)


def rotation(
    limit_deg: float, probability: float, draw_applied: tf.Tensor, draw_angle: tf.Tensor
) -> tf.Tensor:
    """An angle in degrees, uniform in +-`limit_deg` with that probability, else 0."""
    return tf.where(draw_applied < probability, limit_deg * (2 * draw_angle - 1), 0.0)


def half_body(
    keypoints: tf.Tensor,
    labelled: tf.Tensor,
    centre: tf.Tensor,
    size_wh: tf.Tensor,
    skeleton: Skeleton,
    margin: float,
    draw: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The box about the labelled joints of one half of the body.

    Upper and lower half are equally likely; where the drawn half has fewer than three labelled
    joints the other one is taken, and where neither has three the box stays as it is.
    The half's box is about the mean of its joints, as in the authors' code: one that lies far
    from the others may be outside.

    Args:
        keypoints: (K, D), x and y in image pixels.
        labelled: (K,) bool.
        centre: (2,) and `size_wh` (2,): the box, of the input's aspect, which is kept.
        skeleton: Says which joints are the upper half.
        margin: The factor on the half's own box.
        draw: () in [0, 1).

    Returns:
        `(centre, size_wh)` of the half.
    """
    upper = tf.reduce_any(
        tf.range(len(skeleton.joints))[:, None] == tf.constant(skeleton.upper_body), axis=1
    )
    halves = tf.stack([labelled & upper, labelled & ~upper])
    usable = tf.reduce_sum(tf.cast(halves, tf.int32), axis=1) > 2
    lower_drawn = tf.cast(draw >= 0.5, tf.int32)
    choice = tf.where(usable[lower_drawn], lower_drawn, 1 - lower_drawn)
    chosen = tf.boolean_mask(keypoints[:, :2], halves[choice])
    extent = tf.reduce_max(chosen, axis=0) - tf.reduce_min(chosen, axis=0)
    aspect = size_wh[0] / size_wh[1]
    # One pixel at least: joints may lie on top of one another.
    width = tf.maximum(tf.maximum(extent[0], extent[1] * aspect), 1.0) * margin
    half_size = tf.stack([width, width / aspect])
    found = usable[choice]
    return (
        tf.where(found, tf.reduce_mean(chosen, axis=0), centre),
        tf.where(found, half_size, size_wh),
    )


def augment(
    keypoints: tf.Tensor,
    labelled: tf.Tensor,
    centre: tf.Tensor,
    size_wh: tf.Tensor,
    image_width: tf.Tensor,
    skeleton: Skeleton,
    augmentation: Augmentation,
    draws: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """One training view of a person: half body, then scale, rotation and flip.

    Args:
        keypoints: (K, D), x and y in image pixels.
        labelled: (K,) bool.
        centre: (2,) and `size_wh` (2,): the crop box in image pixels.
        image_width: () int32.
        skeleton: Flip pairs and halves.
        augmentation: What to draw from.
        draws: (`DRAWS`,) float32 in [0, 1).

    Returns:
        `(keypoints, labelled, centre, size_wh, rotation_deg, flipped)`. Where `flipped`, the
        first three are of the mirrored image.
    """
    halved = (draws[0] < augmentation.half_body_probability) & (
        tf.reduce_sum(tf.cast(labelled, tf.int32)) > augmentation.half_body_min_joints
    )
    centre, size_wh = tf.cond(
        halved,
        lambda: half_body(
            keypoints,
            labelled,
            centre,
            size_wh,
            skeleton,
            augmentation.half_body_margin,
            draws[1],
        ),
        lambda: (centre, size_wh),
    )
    size_wh = scale(size_wh, augmentation.scale_range, draws[2])
    rotation_deg = rotation(
        augmentation.rotation_deg, augmentation.rotation_probability, draws[3], draws[4]
    )
    flipped = draws[5] < augmentation.flip_probability
    keypoints, labelled, centre = tf.cond(
        flipped,
        lambda: flip(keypoints, labelled, centre, image_width, skeleton.flip_permutation),
        lambda: (keypoints, labelled, centre),
    )
    return keypoints, labelled, centre, size_wh, rotation_deg, flipped
