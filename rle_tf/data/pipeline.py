"""From records to batches, in tf.data with TensorFlow operations alone.

A sample is a function of its number alone. Numbers run on through the epochs; each epoch is a
permutation of the people, and what is drawn for a sample comes from (seed, number). So a run that
starts in the middle sees what an uninterrupted one would have seen.
"""

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rle_tf import geometry
from rle_tf.data.augment import DRAWS, Augmentation, augment
from rle_tf.data.source import Records
from rle_tf.errors import DataError
from rle_tf.skeletons import Skeleton

LOG = logging.getLogger(__name__)

# Pixels read around what a crop needs, so that bilinear sampling at its edge has neighbours.
REGION_MARGIN_PX = 2

_USABLE = "a whole JPEG, PNG, GIF, BMP or WebP image of the annotated size"

# What reading and decoding raise: damaged; gone; a folder; not ours to read; a network disk away.
_IMAGE_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.FailedPreconditionError,
    tf.errors.PermissionDeniedError,
    tf.errors.DataLossError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


@dataclass(frozen=True)
class InputFormat:
    """What the regressor expects to see.

    Attributes:
        image_size: (height, width) in pixels.
        mean, std: (3,) RGB; a crop enters as (value / 255 - mean) / std.
        box_margin: The factor between a person's box and the crop.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    box_margin: float = 1.25

    def normalise(self, crop: tf.Tensor) -> tf.Tensor:
        """RGB 0..255 (..., 3) as the regressor's input."""
        return (crop / 255 - tf.constant(self.mean)) / tf.constant(self.std)


class _Person(NamedTuple):
    path: tf.Tensor
    image_wh: tf.Tensor
    centre: tf.Tensor
    size_wh: tf.Tensor
    keypoints: tf.Tensor
    labelled: tf.Tensor


def training_batches(
    records: Records,
    skeleton: Skeleton,
    input_format: InputFormat,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
) -> tf.data.Dataset:
    """An endless dataset of augmented `(image, target)` batches.

    Args:
        records: N people.
        skeleton: Theirs.
        input_format: Size and normalisation of the images.
        augmentation: What is drawn.
        batch_size: B; every batch is full. Batches run on over the end of an epoch, so nobody is
            left out.
        seed: Decides order and augmentation.
        start: The number of samples already used, for a resumed run.

    Returns:
        Batches of image (B, H, W, 3) float32 and target {"keypoints": (B, K, D), "weight":
        (B, K, D)} float32 in unit coordinates. Joints outside the crop keep weight 1, as in the
        authors' code.

    Raises:
        DataError: if there is nobody. While iterating, an image that cannot be read is an error
            of TensorFlow's; see `named_image_errors`.
    """
    columns = _columns(records, input_format)
    people = len(records)

    def sample(number: tf.Tensor):
        epoch, position = number // people, number % people
        row = tf.random.experimental.index_shuffle(
            position, seed=tf.stack([seed, epoch]), max_index=people - 1
        )
        draws = tf.random.stateless_uniform([DRAWS], seed=tf.stack([seed, number]))
        person = _Person(*(column[row] for column in columns))
        return _example(person, skeleton, input_format, augmentation, draws)

    numbers = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    batches = numbers.map(sample, num_parallel_calls=tf.data.AUTOTUNE).batch(
        batch_size, drop_remainder=True
    )
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    records: Records, skeleton: Skeleton, input_format: InputFormat, *, batch_size: int
) -> tf.data.Dataset:
    """The people in order, each once, unaugmented; the last batch may be smaller.

    Returns:
        Batches as `training_batches` makes them.

    Raises:
        DataError: as `training_batches`.
    """
    columns = _columns(records, input_format)

    def sample(row: tf.Tensor):
        person = _Person(*(column[row] for column in columns))
        return _example(person, skeleton, input_format, None, None)

    rows = tf.data.Dataset.range(len(records))
    batches = rows.map(sample, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    return batches.prefetch(tf.data.AUTOTUNE)


def read_crop(
    path: tf.Tensor, image_wh: tf.Tensor, matrix: tf.Tensor, image_size: tuple[int, int]
) -> tf.Tensor:
    """A crop of an image file; of a JPEG only the region that the crop needs is decoded.

    Args:
        path: () string, a JPEG, PNG, GIF, BMP or WebP file. Grey and CMYK images become RGB.
        image_wh: () of int32, the size that the annotations state.
        matrix: (2, 3) affine matrix from image pixels to crop pixels.
        image_size: (height, width) of the crop.

    Returns:
        (height, width, 3) float32, RGB 0..255.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, if the file cannot be decoded or has another
            size than stated; `named_image_errors` turns it into a `DataError` with the name.
    """
    height, width = image_size
    corners = geometry.transform_points(
        geometry.invert(matrix),
        tf.constant([[0, 0], [width, 0], [0, height], [width, height]], tf.float32),
    )
    low = tf.cast(tf.floor(tf.reduce_min(corners, axis=0)), tf.int32) - REGION_MARGIN_PX
    high = tf.cast(tf.math.ceil(tf.reduce_max(corners, axis=0)), tf.int32) + REGION_MARGIN_PX
    # A crop may lie outside its image altogether (a strong augmentation): one pixel is read then.
    low = tf.clip_by_value(low, 0, image_wh - 1)
    high = tf.maximum(tf.minimum(high, image_wh), low + 1)

    data = tf.io.read_file(path)
    region = tf.cond(
        tf.io.is_jpeg(data),
        lambda: _decode_jpeg_region(data, path, image_wh, low, high),
        lambda: _decode_region(data, path, image_wh, low, high),
    )
    offset = tf.concat([tf.eye(2), tf.cast(low, tf.float32)[:, None]], axis=1)
    return geometry.warp(region, geometry.compose(matrix, offset), image_size)


def check_images(records: Records) -> dict[str, str]:
    """Decodes every image once and says which cannot be used, and why: {path: reason}."""
    sizes = dict(zip(records.image_paths, records.image_wh.tolist(), strict=True))

    def reason(path: str) -> str | None:
        try:
            with tf.device("/CPU:0"):
                image = tf.io.decode_image(tf.io.read_file(path), 3, expand_animations=False)
        except tf.errors.OpError as error:
            # Without the names of TensorFlow's nodes around it.
            text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message, flags=re.DOTALL).strip()
            return f"cannot be read ({text.removeprefix(f'{path}; ').rstrip('.')})"
        height, width, _ = image.shape
        if [width, height] != sizes[path]:
            stated = "x".join(map(str, sizes[path]))
            return f"has {width}x{height} pixels where the annotations say {stated}"
        return None

    with ThreadPoolExecutor() as pool:
        reasons = zip(sizes, pool.map(reason, sizes), strict=True)
        return {path: why for path, why in reasons if why}


def usable_rows(records: Records) -> np.ndarray:
    """(N,) bool: whose images can be decoded. The others are counted and named in the log.

    Raises:
        DataError: if no image can.
    """
    bad = check_images(records)
    usable = np.array([path not in bad for path in records.image_paths], bool)
    for path, why in bad.items():
        LOG.warning("skipping image %s: %s", path, why)
    if bad:
        LOG.warning(
            "skipped %d images with %d people; %d people are left",
            len(bad), int((~usable).sum()), int(usable.sum()),
        )  # fmt: skip
    if bad and not usable.any():
        path, why = next(iter(bad.items()))
        raise DataError(
            f"{path}: {why}, and none of the {len(bad)} images can be used; expected {_USABLE}"
        )
    return usable


@contextmanager
def named_image_errors(records: Records) -> Iterator[None]:
    """Turns a failure of TensorFlow to read an image into a `DataError` that names the file."""
    try:
        yield
    except _IMAGE_ERRORS as error:
        # A decoder does not say which file it was given, so they are looked through once more.
        LOG.warning(
            "TensorFlow failed, at an image perhaps; checking those of %d people", len(records)
        )
        bad = check_images(records)
        if not bad:
            raise
        path, why = next(iter(bad.items()))
        others = f" ({len(bad)} images have such faults)" if len(bad) > 1 else ""
        raise DataError(
            f"{path}: {why}{others}; expected {_USABLE} "
            "(a run that is started with data.on_bad_image: skip leaves such images out)"
        ) from error


def _columns(records: Records, input_format: InputFormat) -> _Person:
    if not len(records):
        raise DataError("no people to look at: the annotations have nobody with a labelled joint, "
                        "or the detections are empty")  # fmt: skip
    crops = geometry.crop_boxes(
        records.boxes_xyxy, input_format.image_size, input_format.box_margin
    )
    with tf.device("/CPU:0"):
        return _Person(
            path=tf.constant(records.image_paths.astype(str)),
            image_wh=tf.constant(records.image_wh),
            centre=tf.constant((crops[:, :2] + crops[:, 2:]) / 2),
            size_wh=tf.constant(crops[:, 2:] - crops[:, :2]),
            keypoints=tf.constant(records.keypoints),
            labelled=tf.constant(records.labelled),
        )


def _example(
    person: _Person,
    skeleton: Skeleton,
    input_format: InputFormat,
    augmentation: Augmentation | None,
    draws: tf.Tensor | None,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    path, image_wh, centre, size_wh, keypoints, labelled = person
    rotation_deg, flipped = tf.constant(0.0), tf.constant(False)
    if augmentation is not None:
        keypoints, labelled, centre, size_wh, rotation_deg, flipped = augment(
            keypoints, labelled, centre, size_wh, image_wh[0], skeleton, augmentation, draws
        )
    matrix = geometry.crop_affine(centre, size_wh, rotation_deg, input_format.image_size)
    from_file = tf.cond(
        flipped,
        lambda: geometry.compose(matrix, geometry.mirror(image_wh[0])),
        lambda: matrix,
    )
    crop = read_crop(path, image_wh, from_file, input_format.image_size)
    image = input_format.normalise(crop)
    return image, encode_target(keypoints, labelled, matrix, input_format.image_size)


def encode_target(
    keypoints: tf.Tensor, labelled: tf.Tensor, matrix: tf.Tensor, image_size: tuple[int, int]
) -> dict[str, tf.Tensor]:
    """The regression target of one person.

    Args:
        keypoints: (K, D), x and y in image pixels, a third coordinate in millimetres.
        labelled: (K,) bool.
        matrix: (2, 3) affine matrix from image pixels to crop pixels.
        image_size: (height, width) of the crop.

    Returns:
        {"keypoints": (K, D), "weight": (K, D)} float32: x, y = crop pixel / (W, H) - 0.5 and
        z = mm / 2000; weight 1 where labelled.
    """
    height, width = image_size
    xy = geometry.transform_points(matrix, keypoints[:, :2]) / (width, height) - 0.5
    unit = tf.concat([xy, keypoints[:, 2:] / geometry.DEPTH_MM], axis=1)
    weight = tf.repeat(tf.cast(labelled, tf.float32)[:, None], unit.shape[-1], axis=1)
    return {"keypoints": tf.where(weight > 0, unit, 0.0), "weight": weight}


def _check_size(shape_hwc: tf.Tensor, path: tf.Tensor, image_wh: tf.Tensor) -> tf.Operation | None:
    found_wh = shape_hwc[1::-1]
    return tf.debugging.Assert(
        tf.reduce_all(found_wh == image_wh),
        [path, "width and height found", found_wh, "expected", image_wh],
    )


def _decode_jpeg_region(data, path, image_wh, low, high) -> tf.Tensor:
    with tf.control_dependencies([_check_size(tf.io.extract_jpeg_shape(data), path, image_wh)]):
        window = tf.stack([low[1], low[0], high[1] - low[1], high[0] - low[0]])
        # The accurate transform: the fast one is several grey levels off.
        return tf.image.decode_and_crop_jpeg(
            data, window, channels=3, dct_method="INTEGER_ACCURATE"
        )


def _decode_region(data, path, image_wh, low, high) -> tf.Tensor:
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, (None, None, 3))
    with tf.control_dependencies([_check_size(tf.shape(image), path, image_wh)]):
        return tf.identity(image[low[1] : high[1], low[0] : high[0]])
