"""Training augmentation: each choice a pure function of its inputs and uniform random numbers.

The random numbers come in as arguments (float32 in [0, 1)), so a sample's augmentation is decided
by its seed alone, wherever and in whatever order it is computed.
"""

import math

import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rle_tf.geometry import invert, mirror, transform_points
from rle_tf.skeletons import Skeleton


class Augmentation(BaseModel):
    """How training crops vary. The defaults are the paper's 2D recipe.

    Attributes:
        flip_probability: Of mirroring left and right.
        scale_range: The crop's side is multiplied by a factor drawn from it: uniformly, or
        scale_std: where given, from a normal density about 1 and clipped to the range.
        rotation_deg: The crop is turned by an angle drawn from plus and minus this: uniformly, or
        rotation_std_deg: where given, from a normal density about 0 and clipped.
        rotation_probability: Of turning it at all.
        half_body_probability: Of looking at the upper or the lower half of the body alone, where
            the skeleton says which joints are the upper one.
        half_body_min_joints: Only people with more labelled joints than this are halved.
        half_body_margin: The factor on the half's own box.
        colour: Each channel is multiplied by a factor drawn from 1 plus and minus this.
        occlusion_area: A rectangle of noise hides up to this share of the person's box.
        joint_occlusion: Probability that one labelled joint is hidden by a square of noise, of
            blotches, of one grey, or of another part of the crop, `JOINT_OCCLUDER` of the crop
            wide: sigma learns from it what a hidden joint looks like.
        whole_occlusion: Share of those squares that hide the whole crop, and move the pose by up to
            `WHOLE_SHIFT` of it: where there is nothing to see sigma is to be wide, and a box alone
            tells much of a pose.
        keep_outside: Whether joints outside the crop (and depths beyond +-1 m) are supervised.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    flip_probability: float = Field(0.5, ge=0, le=1)
    scale_range: tuple[float, float] = (0.75, 1.25)
    scale_std: float | None = Field(None, gt=0)
    rotation_deg: float = Field(45.0, ge=0, le=180)
    rotation_std_deg: float | None = Field(None, gt=0)
    rotation_probability: float = Field(0.5, ge=0, le=1)
    half_body_probability: float = Field(0.3, ge=0, le=1)
    half_body_min_joints: int = Field(3, ge=0)
    half_body_margin: float = Field(1.5, gt=0)
    colour: float = Field(0.0, ge=0, lt=1)
    occlusion_area: float = Field(0.0, ge=0, le=1)
    joint_occlusion: float = Field(0.0, ge=0, le=1)
    whole_occlusion: float = Field(0.0, ge=0, lt=1)
    keep_outside: bool = True

    @model_validator(mode="after")
    def _whole_squares_are_squares(self):
        if self.whole_occlusion and not self.joint_occlusion:
            raise ValueError(
                "whole_occlusion is a share of joint_occlusion's squares; expected both"
            )
        return self

    @model_validator(mode="after")
    def _scale_range_ascends(self):
        low, high = self.scale_range
        if not 0 < low <= high < math.inf:
            raise ValueError(f"scale_range {list(self.scale_range)} must be positive and ascend")
        return self


# Rectangles that are drawn until one lies inside the image.
OCCLUSION_TRIES = 8
# Shares of the crop's width between which the square over a joint is wide.
JOINT_OCCLUDER = (0.1, 0.5)
# Shares of the crop by which a pose moves, at most, of which nothing is to be seen.
WHOLE_SHIFT = 0.3
# Blotches a side of the crop.
BLOTCHES = 8
# How many uniform random numbers a sample takes: the view's, the colour's, the rectangles', and
# those of the square over a joint.
VIEW_DRAWS = 6
_COLOUR = slice(VIEW_DRAWS, VIEW_DRAWS + 3)
_OCCLUSION = slice(_COLOUR.stop, _COLOUR.stop + 4 * OCCLUSION_TRIES)
_JOINT = slice(_OCCLUSION.stop, _OCCLUSION.stop + 7)
DRAWS = _JOINT.stop


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


def scale(
    size_wh: tf.Tensor, scale_range: tuple[float, float], std: float | None, draw: tf.Tensor
) -> tf.Tensor:
    """A box size (2,) times a factor from `scale_range`: uniform, or normal about 1, clipped."""
    low, high = scale_range
    if std is None:
        return size_wh * (low + (high - low) * draw)
    return size_wh * tf.clip_by_value(1 + std * tf.math.ndtri(draw), low, high)


def rotation(
    limit_deg: float,
    std_deg: float | None,
    probability: float,
    draw_applied: tf.Tensor,
    draw_angle: tf.Tensor,
) -> tf.Tensor:
    """An angle in degrees in +-`limit_deg` with that probability, else 0: uniform, or normal
    about 0, clipped."""
    if std_deg is None:
        angle = limit_deg * (2 * draw_angle - 1)
    else:
        angle = tf.clip_by_value(std_deg * tf.math.ndtri(draw_angle), -limit_deg, limit_deg)
    return tf.where(draw_applied < probability, angle, 0.0)


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


def _halves(skeleton: Skeleton, augmentation: Augmentation) -> bool:
    return bool(skeleton.upper_body and augmentation.half_body_probability)


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
        draws: (`DRAWS`,) float32 in [0, 1), of which the first `VIEW_DRAWS` are used.

    Returns:
        `(keypoints, labelled, centre, size_wh, rotation_deg, flipped)`. Where `flipped`, the
        first three are of the mirrored image.
    """
    if _halves(skeleton, augmentation):
        halved = (draws[0] < augmentation.half_body_probability) & (
            tf.reduce_sum(tf.cast(labelled, tf.int32)) > augmentation.half_body_min_joints
        )
        margin = augmentation.half_body_margin
        centre, size_wh = tf.cond(
            halved,
            lambda: half_body(keypoints, labelled, centre, size_wh, skeleton, margin, draws[1]),
            lambda: (centre, size_wh),
        )
    size_wh = scale(size_wh, augmentation.scale_range, augmentation.scale_std, draws[2])
    rotation_deg = rotation(
        augmentation.rotation_deg,
        augmentation.rotation_std_deg,
        augmentation.rotation_probability,
        draws[3],
        draws[4],
    )
    flipped = draws[5] < augmentation.flip_probability
    keypoints, labelled, centre = tf.cond(
        flipped,
        lambda: flip(keypoints, labelled, centre, image_width, skeleton.flip_permutation),
        lambda: (keypoints, labelled, centre),
    )
    return keypoints, labelled, centre, size_wh, rotation_deg, flipped


def reach(
    keypoints: tf.Tensor,
    labelled: tf.Tensor,
    centre: tf.Tensor,
    size_wh: tf.Tensor,
    skeleton: Skeleton,
    augmentation: Augmentation,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What of the image any view that `augment` could draw of a person sees.

    Args:
        keypoints, labelled, centre, size_wh, skeleton, augmentation: As in `augment`.

    Returns:
        (2,) float32 each: the lowest and the highest x and y in image pixels, which may lie
        outside the image.
    """
    views = [(centre, size_wh)]
    if _halves(skeleton, augmentation):
        margin = augmentation.half_body_margin
        views += [
            half_body(keypoints, labelled, centre, size_wh, skeleton, margin, tf.constant(draw))
            for draw in (0.0, 0.5)  # the upper and the lower half
        ]
    centres, sizes = (tf.stack(column) for column in zip(*views, strict=True))
    limit = math.radians(augmentation.rotation_deg if augmentation.rotation_probability else 0)
    half = sizes * augmentation.scale_range[1] / 2
    # A rectangle that turns is widest where its diagonal lies flat.
    widest = tf.minimum(limit, tf.atan2(half[:, ::-1], half))
    extent = half * tf.cos(widest) + half[:, ::-1] * tf.sin(widest)
    return tf.reduce_min(centres - extent, axis=0), tf.reduce_max(centres + extent, axis=0)


def colour(image: tf.Tensor, strength: float, draws: tf.Tensor) -> tf.Tensor:
    """An image (H, W, 3) 0..255 whose channels are multiplied by factors from 1 +- `strength`.

    Args:
        image: float32.
        strength: In [0, 1).
        draws: (`DRAWS`,) float32 in [0, 1).
    """
    factors = 1 + strength * (2 * draws[_COLOUR] - 1)
    # A row of them, as in `CropFormat.example`.
    return tf.clip_by_value(image * tf.tile(factors[None], (image.shape[1], 1)), 0, 255)


def occlusion_box(
    box_xyxy: tf.Tensor, image_wh: tf.Tensor, largest_area: float, draws: tf.Tensor
) -> tf.Tensor:
    """A rectangle over a person's box, as the authors' 3D recipe draws it.

    Its area is a share of the box's, uniform up to `largest_area`; its height to its width is
    uniform in [0.3, 1 / 0.3]; it lies anywhere in the box, or where it is longer than the box
    about it. It is drawn anew until it is inside the image; where it never is, it is empty.

    Args:
        box_xyxy: (4,) image pixels.
        image_wh: (2,) int32.
        largest_area: In [0, 1].
        draws: (`DRAWS`,) float32 in [0, 1).

    Returns:
        (4,) float32 edges left, top, right, bottom, whole image pixels; right and bottom are
        outside.
    """
    share, ratio, *place = tf.unstack(tf.reshape(draws[_OCCLUSION], (OCCLUSION_TRIES, 4)), axis=1)
    extent = box_xyxy[2:] - box_xyxy[:2]
    area = share * largest_area * tf.reduce_prod(extent)
    ratio = 0.3 + (1 / 0.3 - 0.3) * ratio
    size_wh = tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)], axis=1)
    low = box_xyxy[:2] + tf.stack(place, axis=1) * (extent - size_wh - 1)
    low = tf.floor(low)
    high = low + tf.floor(size_wh)
    inside = tf.reduce_all((low >= 0) & (high < tf.cast(image_wh, tf.float32)), axis=1)
    first = tf.argmax(tf.cast(inside, tf.int32))
    box = tf.concat([low[first], high[first]], axis=0)
    return tf.where(inside[first], box, 0.0)


def _places(crop: tf.Tensor, matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """x and y in the image of each pixel of a crop, (H, W) each.

    Apart, and as a sum of a row and a column: TensorFlow is slow at pairs of numbers.
    """
    height, width = crop.shape[:2]
    inverse, across, down = invert(matrix), tf.range(float(width)), tf.range(float(height))[:, None]
    return tuple(row[0] * across + (row[1] * down + row[2]) for row in tf.unstack(inverse))


def occlude(
    crop: tf.Tensor,
    matrix: tf.Tensor,
    box_xyxy: tf.Tensor,
    image_wh: tf.Tensor,
    largest_area: float,
    draws: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    """A crop with a rectangle of noise over the person.

    The rectangle is upright in the image, so it turns with the crop; the noise is uniform in every
    pixel of the crop, where the authors' is in those of the image.

    Args:
        crop: (H, W, 3) float32, 0..255.
        matrix: (2, 3) affine matrix from image pixels to crop pixels.
        box_xyxy, image_wh, largest_area, draws: As in `occlusion_box`.
        seed: (2,) of the noise.
    """
    box = occlusion_box(box_xyxy, image_wh, largest_area, draws)
    # A pixel reaches half a pixel to each side of its centre.
    x, y = (places + 0.5 for places in _places(crop, matrix))
    left, top, right, bottom = tf.unstack(box)
    hidden = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    # Another seed than that of the draws, whose first numbers would be in the noise again.
    noise = tf.random.stateless_uniform(crop.shape, seed=seed + [1, 0], maxval=255.0)
    return tf.where(hidden[..., None], noise, crop)


def occlude_joint(
    crop: tf.Tensor,
    matrix: tf.Tensor,
    image_wh: tf.Tensor,
    places: tf.Tensor,
    labelled: tf.Tensor,
    probability: float,
    whole_share: float,
    draws: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """A crop with a square over one of the labelled joints inside it; without any, the crop.

    Args:
        crop: (H, W, 3) float32, 0..255.
        matrix: (2, 3) affine matrix from image pixels to crop pixels.
        image_wh: (2,) int32.
        places: (K, 2) x and y of the joints in crop pixels.
        labelled: (K,) bool.
        probability: Of hiding one at all.
        whole_share: Of the squares, those that hide the whole crop, as far as the image reaches in
            it: what is outside stays black.
        draws: (`DRAWS`,) float32 in [0, 1).
        seed: (2,) of the noise.

    Returns:
        The crop, and (2,) x and y in crop pixels by which the joints move: 0 unless all is hidden.
    """
    hides, joint, side, kind, level, *shift = tf.unstack(draws[_JOINT])
    height, width = crop.shape[:2]
    size = tf.constant([width, height], tf.float32)
    inside = tf.where(labelled & tf.reduce_all((places >= 0) & (places <= size - 1), axis=1))[:, 0]
    count = tf.size(inside)
    row = tf.cast(joint * tf.cast(count, tf.float32), tf.int32)
    # One place more than there are joints, far outside: where none is inside nothing is hidden.
    centre = tf.concat([tf.gather(places, inside), [[-1e6, -1e6]]], axis=0)[row]
    whole = (side < whole_share) & (count > 0)
    low, high = JOINT_OCCLUDER
    side = width * (low + (high - low) * (side - whole_share) / (1 - whole_share))
    across = tf.abs(tf.range(float(width)) - centre[0]) < side / 2
    down = tf.abs(tf.range(float(height)) - centre[1]) < side / 2
    hidden = across & down[:, None]
    if whole_share:

        def image():
            x, y = _places(crop, matrix)
            right, bottom = tf.unstack(tf.cast(image_wh, tf.float32) - 1)
            return (x >= 0) & (x <= right) & (y >= 0) & (y <= bottom)

        hidden = tf.cond(whole, image, lambda: hidden)

    def noise(shape):
        # Another seed than those of the draws and of the rectangle's noise.
        return tf.random.stateless_uniform(shape, seed=seed + [2, 0], maxval=255.0)

    def cover():
        return tf.switch_case(
            # Of the whole crop no other part is left.
            tf.cast(tf.where(whole, 3.0, 4.0) * kind, tf.int32),
            (
                lambda: noise(crop.shape),
                lambda: tf.image.resize(noise((BLOTCHES, BLOTCHES, 3)), (height, width)),
                lambda: tf.fill(crop.shape, 255 * level),
                lambda: tf.roll(crop, tf.cast(tf.stack(shift) * size[::-1], tf.int32), axis=(0, 1)),
            ),
        )

    moved = tf.where(whole, WHOLE_SHIFT * size * (2 * tf.stack(shift) - 1), 0.0)
    return tf.cond(
        hides < probability,
        lambda: (tf.where(hidden[..., None], cover(), crop), moved),
        lambda: (crop, tf.zeros(2)),
    )
