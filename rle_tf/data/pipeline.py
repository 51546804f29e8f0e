"""From records to batches, in tf.data with TensorFlow operations alone.

A sample is a function of its number alone. Numbers run on through the epochs; each epoch is a
permutation of the people, and what is drawn for a sample comes from (seed, number). So a run that
starts in the middle sees what an uninterrupted one would have seen.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from rle_tf.data.augment import Augmentation
from rle_tf.data.source import InputFormat, Records
from rle_tf.errors import DataError
from rle_tf.skeletons import Skeleton

LOG = logging.getLogger(__name__)

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


def epoch_size(parts: Sequence[int]) -> int:
    """Samples an epoch: the largest part once, and as many of each of the others."""
    return len(parts) * max(parts)


def training_batches(
    records: Records,
    skeleton: Skeleton,
    input_format: InputFormat,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    parts: Sequence[int] | None = None,
) -> tf.data.Dataset:
    """An endless dataset of augmented `(input, target)` batches.

    Args:
        records: N people.
        skeleton: Theirs.
        input_format: What the regressor sees of them.
        augmentation: What is drawn.
        batch_size: B; every batch is full. Batches run on over the end of an epoch, so nobody is
            left out.
        seed: Decides order and augmentation.
        start: The number of samples already used, for a resumed run.
        parts: Numbers of people in consecutive parts of the records, which take turns. An epoch
            has everybody of a largest part once; from a smaller one people are drawn with
            replacement. By default there is one part.

    Returns:
        Batches of image (B, H, W, 3) float32, or of what else the format says, and target
        {"keypoints": (B, K, D), "weight": (B, K, D)} float32 in the regressor's coordinates.

    Raises:
        DataError: if there is nobody, or the parts are not those of the records. While iterating,
            an image that cannot be read is an error of TensorFlow's; see `named_image_errors`.
    """
    parts = (len(records),) if parts is None else tuple(parts)
    columns = _columns(records, input_format)
    if min(parts, default=0) < 1 or sum(parts) != len(records):
        raise DataError(
            f"parts of {list(parts)} people, of {len(records)} in all; expected parts that have "
            "people and add up to all of them"
        )
    with tf.device("/CPU:0"):
        sizes = tf.constant(parts, tf.int64)
        offsets = tf.cumsum(sizes, exclusive=True)
    largest = max(parts)

    def sample(number: tf.Tensor):
        turn, part = number // len(parts), number % len(parts)
        epoch, position = turn // largest, turn % largest
        people = sizes[part]
        once = tf.random.experimental.index_shuffle(
            position, seed=tf.stack([seed, epoch * len(parts) + part]), max_index=largest - 1
        )
        sample_seed = tf.stack([seed, number])
        draws = tf.random.stateless_uniform([input_format.draws + 1], seed=sample_seed)
        drawn = tf.cast(draws[-1] * tf.cast(people, tf.float32), tf.int64)
        row = offsets[part] + tf.where(people == largest, once, tf.minimum(drawn, people - 1))
        person = tf.nest.map_structure(lambda column: column[row], columns)
        return input_format.example(person, skeleton, augmentation, draws[:-1], sample_seed)

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
        person = tf.nest.map_structure(lambda column: column[row], columns)
        return input_format.example(person, skeleton, None, None, None)

    rows = tf.data.Dataset.range(len(records))
    batches = rows.map(sample, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    return batches.prefetch(tf.data.AUTOTUNE)


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
def named_image_errors(records: Records, input_format: InputFormat) -> Iterator[None]:
    """Turns a failure of TensorFlow to read an image into a `DataError` that names the file."""
    try:
        yield
    except _IMAGE_ERRORS as error:
        if not input_format.reads_images:
            raise
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


def _columns(records: Records, input_format: InputFormat) -> tuple[tf.Tensor, ...]:
    if not len(records):
        raise DataError("no people to look at: the annotations have nobody with a labelled joint, "
                        "or the detections are empty")  # fmt: skip
    with tf.device("/CPU:0"):
        return input_format.columns(records)
