"""Training people packed for machines that are far from the photographs: TFRecord shards.

A record holds one person: labels, and as much of the photograph as the strongest augmentation can
ask for. It gives the training image that the photograph gives, within the error of its JPEG. An
index names the shards with their checksums. Folders are any paths of `tf.io.gfile`.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, ValidationError

from rle_tf.data.augment import Augmentation, reach
from rle_tf.data.crops import REGION_MARGIN_PX, CropFormat, read_region
from rle_tf.data.pipeline import ONE_REPLICA, Shard, as_written, chance, named_image_errors
from rle_tf.data.source import InputFormat, Records, Source
from rle_tf.errors import ConfigError, DataError
from rle_tf.skeleton_file import read_skeleton, skeleton_content
from rle_tf.skeletons import Skeleton

FORMAT = 1
INDEX, PLAN = "index.json", "plan.json"
# Where so much of a photograph is needed, its file goes in as it is and loses nothing.
WHOLE = 0.7
# People that wait to be drawn, beside the order of the shards.
SHUFFLED = 2048
# Shards that are read at once.
OPEN_SHARDS = 16

_BYTES = tf.io.FixedLenFeature([], tf.string)
_FEATURES = {
    "photo": _BYTES,
    "name": _BYTES,
    "box_xyxy": _BYTES,  # of 64 bits, which crops are computed from
    "keypoints": _BYTES,
    "labelled": _BYTES,
    "photo_wh": tf.io.FixedLenFeature([2], tf.int64),
    "low": tf.io.FixedLenFeature([2], tf.int64),
    "image_wh": tf.io.FixedLenFeature([2], tf.int64),
}


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Plan(_File):
    """What a folder of records is made of.

    Attributes:
        format: Of the records.
        skeleton: As `rle_tf.skeleton_file.read_skeleton` reads it.
        dims: Coordinates of a joint.
        parts: People in each part, which take turns in training.
        shards: Of each part.
        quality: Of JPEGs.
        aspect: Width to height of the crops that the records are large enough for, and
        box_margin, augmentation: how far these reach.
        people: SHA-256 of all labels and names of photographs.
    """

    format: int = FORMAT
    skeleton: str | dict
    dims: int
    parts: tuple[int, ...]
    shards: int
    quality: int
    aspect: float
    box_margin: float
    augmentation: Augmentation
    people: str


class ShardFile(_File):
    """A file of the folder.

    Attributes:
        name, part: Its name, and the part of the people that it is of.
        people, bytes: How many.
        sha256: Of the file.
    """

    name: str
    part: int
    people: int
    bytes: int
    sha256: str


class Index(_File):
    """What `index.json` holds, which is written last: a folder that has it is whole."""

    plan: Plan
    shards: tuple[ShardFile, ...]


def write_records(
    source: Source,
    crop_format: CropFormat,
    augmentation: Augmentation,
    out: str,
    *,
    shards: int,
    quality: int = 95,
    on_shard: Callable[[], object] = lambda: None,
) -> Index:
    """Packs the people of a source; goes on where an earlier call for the same was stopped.

    Args:
        source: Training people.
        crop_format: Of the models that are to be trained on them.
        augmentation: The strongest that they are to be trained with.
        out: A folder, new or of an earlier call.
        shards: Files that each part of the people is spread over.
        quality: Of JPEGs, up to 100.
        on_shard: Called after each.

    Raises:
        DataError: if the folder holds something else, or an image cannot be read.
    """
    records, parts = source.records, tuple(source.parts)
    if not 1 <= shards <= min(parts, default=0):
        raise DataError(
            f"shards: found {shards}, of {min(parts, default=0)} people in the smallest part; "
            "expected at least one, and no more than people"
        )
    plan = Plan(
        skeleton=skeleton_content(source.skeleton),
        dims=records.keypoints.shape[-1],
        parts=parts,
        shards=shards,
        quality=quality,
        aspect=crop_format.image_size[1] / crop_format.image_size[0],
        box_margin=crop_format.box_margin,
        augmentation=augmentation,
        people=_digest(records),
    )
    files, offset = [], 0
    with _named_write_errors(out):
        _claim(out, plan)
    if tf.io.gfile.exists(tf.io.gfile.join(out, INDEX)):
        packed = PackedPeople(out)
        packed.verify(on_shard)
        return packed.index
    for part, people in enumerate(parts):
        for shard in range(shards):
            name = f"people-{part}-{shard:05}-of-{shards:05}.tfrecord"
            path = tf.io.gfile.join(out, name)
            # Neighbours are often of one photograph: they go to different shards.
            rows = np.arange(offset + shard, offset + people, shards)
            if not tf.io.gfile.exists(path):
                _write_shard(path, source, rows, crop_format, augmentation, quality)
            size, sha256 = _checksum(path)
            files.append(
                ShardFile(name=name, part=part, people=len(rows), bytes=size, sha256=sha256)
            )
            on_shard()
        offset += people
    index = Index(plan=plan, shards=tuple(files))
    with _named_write_errors(out):
        _write_text(tf.io.gfile.join(out, INDEX), index.model_dump_json(indent=1))
    return index


@contextmanager
def _named_write_errors(path: str) -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:  # no rights, no room, no such bucket
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: cannot be written: {reason}") from None


def _digest(records: Records) -> str:
    digest = hashlib.sha256("\n".join(records.image_paths).encode())
    for column in (records.image_wh, records.boxes_xyxy, records.keypoints, records.labelled):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _claim(out: str, plan: Plan) -> None:
    path = tf.io.gfile.join(out, PLAN)
    if tf.io.gfile.exists(path):
        found = _read(path, Plan)
        if found != plan:
            ours, theirs = plan.model_dump(mode="json"), found.model_dump(mode="json")
            changed = [key for key in ours if ours[key] != theirs[key]]
            raise DataError(
                f"{out}: holds records of something else ({', '.join(changed)} differ); expected "
                "the same to go on with, or a new folder"
            )
        return
    if tf.io.gfile.isdir(out) and tf.io.gfile.listdir(out):
        raise DataError(f"{out}: holds other files; expected a new folder")
    tf.io.gfile.makedirs(out)
    _write_text(path, plan.model_dump_json(indent=1))


def _write_text(path: str, text: str) -> None:
    unfinished = f"{path}.unfinished"
    with tf.io.gfile.GFile(unfinished, "w") as file:
        file.write(text + "\n")
    tf.io.gfile.rename(unfinished, path, overwrite=True)


def _write_shard(path, source, rows, crop_format, augmentation, quality) -> None:
    records = source.records.take(rows)
    columns = crop_format.columns(records)

    @as_written
    def pack(row: tf.Tensor):
        person = tf.nest.map_structure(lambda column: column[row], columns)
        seen_low, seen_high = reach(
            person.keypoints,
            person.labelled,
            person.centre,
            person.size_wh,
            source.skeleton,
            augmentation,
        )
        low = tf.cast(tf.floor(seen_low), tf.int32) - REGION_MARGIN_PX
        low = tf.clip_by_value(low, 0, person.image_wh - 1)
        high = tf.cast(tf.math.ceil(seen_high), tf.int32) + REGION_MARGIN_PX
        high = tf.clip_by_value(high, low + 1, person.image_wh)
        region, data, is_jpeg = read_region(person.path, person.image_wh, low, high)
        share = tf.reduce_prod(high - low) / tf.reduce_prod(person.image_wh)
        return tf.cond(
            is_jpeg & (share >= WHOLE),
            lambda: (data, person.image_wh, tf.zeros_like(low)),
            lambda: (
                tf.io.encode_jpeg(region, quality=quality, chroma_downsampling=False),
                high - low,
                low,
            ),
        )

    packed = tf.data.Dataset.range(len(rows)).map(pack, num_parallel_calls=tf.data.AUTOTUNE)
    unfinished = f"{path}.unfinished"
    photographs = packed.as_numpy_iterator()
    with _named_write_errors(unfinished), tf.io.TFRecordWriter(unfinished) as writer:
        for row in range(len(rows)):
            with named_image_errors(records, crop_format):
                photo, photo_wh, low = next(photographs)
            writer.write(
                _example(
                    photo=photo,
                    name=records.image_paths[row].encode(),
                    box_xyxy=records.boxes_xyxy[row].astype("<f8").tobytes(),
                    keypoints=records.keypoints[row].astype("<f4").tobytes(),
                    labelled=records.labelled[row].astype("u1").tobytes(),
                    photo_wh=photo_wh,
                    low=low,
                    image_wh=records.image_wh[row],
                )
            )
    with _named_write_errors(path):
        tf.io.gfile.rename(unfinished, path, overwrite=True)


def _example(**values: bytes | np.ndarray) -> bytes:
    features = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, bytes)
        else tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        for key, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _checksum(path: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _read(path: str, model: type[BaseModel]):
    try:
        with tf.io.gfile.GFile(path, "r") as file:
            return model.model_validate_json(file.read())
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: cannot be read: {reason}; expected a folder that rle-tf records has finished"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole"
        raise DataError(
            f"{path}: {where}: {problem['msg']}; expected what rle-tf records writes"
        ) from None


class PackedPeople:
    """The training people of a folder of `write_records`.

    Attributes:
        skeleton, dims, parts: Of the people, as those of a `Source` and its records.

    Raises:
        DataError: if the folder is not whole.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.index = _read(tf.io.gfile.join(folder, INDEX), Index)
        plan = self.index.plan
        if plan.format != FORMAT:
            raise DataError(f"{folder}: holds records of format {plan.format}; expected {FORMAT}")
        self.skeleton: Skeleton = read_skeleton(plan.skeleton)
        self.dims, self.parts = plan.dims, plan.parts
        for shard in self.index.shards:
            path = tf.io.gfile.join(folder, shard.name)
            found = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else 0
            if found != shard.bytes:
                raise DataError(f"{path}: holds {found} bytes; expected {shard.bytes}")

    def verify(self, on_shard: Callable[[], object] = lambda: None) -> None:
        """Reads all shards and compares their checksums.

        Args:
            on_shard: Called after each.

        Raises:
            DataError: names the first that is gone or has changed.
        """
        for shard in self.index.shards:
            path = tf.io.gfile.join(self.folder, shard.name)
            if not tf.io.gfile.exists(path):
                found = "no such file"
            elif _checksum(path)[1] != shard.sha256:
                found = f"has another checksum than {INDEX} says, it is damaged"
            else:
                on_shard()
                continue
            raise DataError(f"{path}: {found}; remove it and {INDEX}, and pack once more")

    def check(self, crop_format: CropFormat, augmentation: Augmentation) -> None:
        """Raises `ConfigError` where crops could need more of a photograph than records hold."""
        plan, packed = self.index.plan, self.index.plan.augmentation
        aspect = crop_format.image_size[1] / crop_format.image_size[0]
        limits = {
            "data.box_margin": (crop_format.box_margin, plan.box_margin),
            "data.augmentation.scale_range[1]": (
                augmentation.scale_range[1], packed.scale_range[1],
            ),
            "data.augmentation.rotation_deg": (
                augmentation.rotation_deg if augmentation.rotation_probability else 0.0,
                packed.rotation_deg if packed.rotation_probability else 0.0,
            ),
            "data.augmentation.half_body_margin": (
                augmentation.half_body_margin if augmentation.half_body_probability else 0.0,
                packed.half_body_margin if packed.half_body_probability else 0.0,
            ),
        }  # fmt: skip
        for key, (found, most) in limits.items():
            if found > most:
                raise ConfigError(
                    f"{key}: found {found}; the records in {self.folder} reach as far as {most}"
                )
        if aspect != plan.aspect:
            raise ConfigError(
                f"data.image_size: found a width to height of {aspect:.4g}; the records in "
                f"{self.folder} are for {plan.aspect:.4g}"
            )

    def batches(
        self,
        crop_format: CropFormat,
        augmentation: Augmentation,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        shard: Shard = ONE_REPLICA,
    ) -> tf.data.Dataset:
        """An endless dataset as `training_batches` makes it, read in order.

        An epoch has everybody once (but for the few that workers cannot share evenly), in an order
        that is drawn from the shards' and a buffer's; of a mix the smaller part starts anew when it
        is through. Each worker reads shards of its own.

        Args:
            crop_format, augmentation, batch_size, seed, shard: As in `training_batches`.
            start: A multiple of the batch size.

        Raises:
            ConfigError: as `check`.
            DataError: if the workers cannot share the shards evenly.
        """
        self.check(crop_format, augmentation)

        @as_written
        def sample(number: tf.Tensor, record: tf.Tensor):
            person = self._parse(record, crop_format)
            draws, sample_seed = chance(number, seed, crop_format)
            return crop_format.example(person, self.skeleton, augmentation, draws[:-1], sample_seed)

        people = self._numbered(batch_size, seed, start, shard)
        examples = people.map(sample, num_parallel_calls=tf.data.AUTOTUNE)
        batches = examples.batch(shard.of_replica(batch_size), drop_remainder=True)
        return batches.prefetch(tf.data.AUTOTUNE)

    def images(
        self, step: int, input_format: InputFormat, batch_size: int, seed: int, workers: int = 1
    ) -> list[str]:
        """Names of the photographs of a batch, counted from 0, that so many workers make."""
        found = []
        for worker in range(workers):
            shard = Shard(worker, workers)
            people = self._numbered(batch_size, seed, step * batch_size, shard)
            names = people.map(
                lambda _, record: tf.io.parse_single_example(record, _FEATURES)["name"]
            )
            found += names.take(batch_size // workers).as_numpy_iterator()
        return [name.decode() for name in found]

    @contextmanager
    def named_errors(self, input_format: InputFormat) -> Iterator[None]:
        """Turns TensorFlow's failure to read a record into a `DataError` that names the shard."""
        try:
            yield
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError):
            self.verify()
            raise

    def _numbered(self, batch_size: int, seed: int, start: int, shard: Shard) -> tf.data.Dataset:
        """(number of the sample, its record), endlessly."""
        numbers = shard.numbers(start, np.iinfo(np.int64).max, batch_size)
        before = start // shard.workers
        count = len(self.parts)
        streams = [
            self._stream(part, (before - part + count - 1) // count, seed, shard)
            for part in range(count)
        ]
        turns = tf.data.Dataset.range(before, np.iinfo(np.int64).max).map(lambda n: n % count)
        records = streams[0]
        if count > 1:
            records = tf.data.Dataset.choose_from_datasets(streams, turns)
        return tf.data.Dataset.zip(numbers, records)

    def _stream(self, part: int, first: int, seed: int, shard: Shard) -> tf.data.Dataset:
        """The records of a part from the `first` on, epoch after epoch."""
        files = [file for file in self.index.shards if file.part == part]
        if len(files) % shard.workers:
            raise DataError(
                f"{self.folder}: has {len(files)} shards; expected a multiple of the "
                f"{shard.workers} workers (rle-tf records --shards)"
            )
        # As many for each worker, so that they stay in step: the shares differ by a few people.
        people = min(
            sum(file.people for file in files[worker :: shard.workers])
            for worker in range(shard.workers)
        )
        paths = [
            tf.io.gfile.join(self.folder, file.name)
            for file in files[shard.worker :: shard.workers]
        ]

        def epoch(number: tf.Tensor) -> tf.data.Dataset:
            # Of this function's graph: the order is of `seed` alone, whatever the global one is.
            tf.random.set_seed(1)
            drawn = tf.stack([tf.cast(seed, tf.int64), number * len(self.parts) + part])
            order = tf.random.experimental.index_shuffle(
                tf.range(len(paths), dtype=tf.int64),
                drawn,
                tf.cast(len(paths) - 1, tf.int64),
            )
            records = tf.data.Dataset.from_tensor_slices(tf.gather(paths, order)).interleave(
                tf.data.TFRecordDataset,
                cycle_length=min(OPEN_SHARDS, len(paths)),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            (buffer_seed,) = tf.unstack(
                tf.random.stateless_uniform([1], drawn, maxval=2**31 - 1, dtype=tf.int64)
            )
            mixed = records.shuffle(SHUFFLED, seed=buffer_seed, reshuffle_each_iteration=False)
            skipped = tf.where(number == first // people, tf.cast(first % people, tf.int64), 0)
            return mixed.take(people).skip(skipped)

        epochs = tf.data.Dataset.range(first // people, np.iinfo(np.int64).max)
        return epochs.flat_map(epoch)

    def _parse(self, record: tf.Tensor, crop_format: CropFormat):
        found = tf.io.parse_single_example(record, _FEATURES)
        joints = len(self.skeleton.joints)
        box = tf.io.decode_raw(found["box_xyxy"], tf.float64)
        keypoints = tf.io.decode_raw(found["keypoints"], tf.float32)
        labelled = tf.io.decode_raw(found["labelled"], tf.uint8)
        return crop_format.packed(
            found["photo"],
            *(tf.cast(found[key], tf.int32) for key in ("photo_wh", "low", "image_wh")),
            tf.ensure_shape(box, (4,)),
            tf.reshape(keypoints, (joints, self.dims)),
            tf.reshape(labelled, (joints,)) > 0,
        )
