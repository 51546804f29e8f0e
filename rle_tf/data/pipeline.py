"""From records to batches, in tf.data with TensorFlow operations alone.

A sample is a function of its number alone. Numbers run on through the epochs; each epoch is a
permutation of the people, and what is drawn for a sample comes from (seed, number). So a run that
starts in the middle sees what an uninterrupted one would have seen.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from rle_tf.data.augment import Augmentation
from rle_tf.data.source import InputFormat, Records, Source
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


@dataclass(frozen=True)
class Shard:
    """Which part of every batch is made here.

    A batch's samples go to the replicas in order, the same number to each; what a sample is does
    not depend on how many there are.

    Attributes:
        worker, workers: This process, from 0, and how many there are.
        replicas: Devices of this process, which take its share of a batch in turn.
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1

    def numbers(self, first: int, last: int, batch_size: int) -> tf.data.Dataset:
        """This worker's of the numbers from first to last, which are counted in whole batches."""
        share = batch_size // self.workers
        offset = first + self.worker * share
        local = tf.data.Dataset.range((last - first) // batch_size * share)
        return local.map(lambda index: offset + index // share * batch_size + index % share)

    def of_replica(self, batch_size: int) -> int:
        """The samples of each batch that a replica gets."""
        return batch_size // (self.workers * self.replicas)


ONE_REPLICA = Shard()


# AutoGraph would look through all that they call for Python's `if` and `for` on tensors, of which
# there are none: two seconds before the first batch.
as_written = tf.autograph.experimental.do_not_convert


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
    shard: Shard = ONE_REPLICA,
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
        shard: Which part of each batch is made; B is then that of a replica. By default all.

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
    drawn = _drawing(parts, seed, input_format)

    @as_written
    def sample(number: tf.Tensor):
        row, draws, sample_seed = drawn(number)
        person = tf.nest.map_structure(lambda column: column[row], columns)
        return input_format.example(person, skeleton, augmentation, draws, sample_seed)

    numbers = shard.numbers(start, np.iinfo(np.int64).max, batch_size)
    batches = numbers.map(sample, num_parallel_calls=tf.data.AUTOTUNE).batch(
        shard.of_replica(batch_size), drop_remainder=True
    )
    return batches.prefetch(tf.data.AUTOTUNE)


def _drawing(parts: tuple[int, ...], seed: int, input_format: InputFormat) -> Callable:
    """number -> (row of the records, random numbers, seed): all that chance decides of a sample."""
    with tf.device("/CPU:0"):
        sizes = tf.constant(parts, tf.int64)
        offsets = tf.cumsum(sizes, exclusive=True)
    largest = max(parts)

    def drawn(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        turn, part = number // len(parts), number % len(parts)
        epoch, position = turn // largest, turn % largest
        people = sizes[part]
        once = tf.random.experimental.index_shuffle(
            position, seed=tf.stack([seed, epoch * len(parts) + part]), max_index=largest - 1
        )
        draws, sample_seed = chance(number, seed, input_format)
        replaced = tf.cast(draws[-1] * tf.cast(people, tf.float32), tf.int64)
        row = offsets[part] + tf.where(people == largest, once, tf.minimum(replaced, people - 1))
        return row, draws[:-1], sample_seed

    return drawn


def chance(number: tf.Tensor, seed: int, input_format: InputFormat) -> tuple[tf.Tensor, tf.Tensor]:
    """The random numbers of sample `number`: (draws + 1,) float32 in [0, 1), the last of which
    chooses people, and a (2,) int64 seed of its own."""
    sample_seed = tf.stack([seed, number])
    return tf.random.stateless_uniform([input_format.draws + 1], seed=sample_seed), sample_seed


class PhotographedPeople:
    """The training people of a source, read from its photographs.

    Attributes:
        skeleton, dims, parts: Of the people, as those of the source and its records.
    """

    def __init__(self, source: Source):
        self.source = source
        self.skeleton, self.parts = source.skeleton, tuple(source.parts)
        self.dims = source.records.keypoints.shape[-1]

    def batches(
        self,
        input_format: InputFormat,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        shard: Shard = ONE_REPLICA,
    ) -> tf.data.Dataset:
        """`training_batches` of them."""
        return training_batches(
            self.source.records,
            self.skeleton,
            input_format,
            augmentation,
            batch_size=batch_size,
            seed=seed,
            start=start,
            parts=self.parts,
            shard=shard,
        )

    def images(
        self, step: int, input_format: InputFormat, batch_size: int, seed: int, workers: int = 1
    ) -> list[str]:
        """Names of the photographs of a batch, counted from 0, which is the same however many
        workers make it; none where no images are read."""
        if not input_format.reads_images:
            return []
        drawn = _drawing(self.parts, seed, input_format)
        numbers = tf.range(step * batch_size, (step + 1) * batch_size, dtype=tf.int64)
        with tf.device("/CPU:0"):
            rows = tf.map_fn(lambda number: drawn(number)[0], numbers).numpy()
        return self.source.records.image_paths[rows].tolist()

    def named_errors(self, input_format: InputFormat) -> AbstractContextManager[None]:
        """`named_image_errors` of them."""
        return named_image_errors(self.source.records, input_format)


def evaluation_batches(
    records: Records,
    skeleton: Skeleton,
    input_format: InputFormat,
    *,
    batch_size: int,
    shard: Shard = ONE_REPLICA,
) -> tf.data.Dataset:
    """The people in order, each once, unaugmented; the last batch may be smaller.

    Args:
        records, skeleton, input_format, batch_size: As in `training_batches`.
        shard: Which part of each batch is made. People that the replicas cannot share evenly are
            left out, at most one less than there are replicas.

    Returns:
        Batches as `training_batches` makes them.

    Raises:
        DataError: as `training_batches`.
    """
    columns = _columns(records, input_format)

    @as_written
    def sample(row: tf.Tensor):
        person = tf.nest.map_structure(lambda column: column[row], columns)
        return input_format.example(person, skeleton, None, None, None)

    def batches(first: int, last: int, size: int) -> tf.data.Dataset:
        rows = shard.numbers(first, last, size)
        examples = rows.map(sample, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(shard.of_replica(size))

    replicas = shard.workers * shard.replicas
    count = len(records) // replicas * replicas
    whole = count // batch_size * batch_size
    dataset = batches(0, whole, batch_size)
    if count > whole:
        dataset = dataset.concatenate(batches(whole, count, count - whole))
    return dataset.prefetch(tf.data.AUTOTUNE)


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
