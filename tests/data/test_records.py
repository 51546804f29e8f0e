"""Packed people give the training images that their photographs give."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.data.augment import Augmentation, augment, reach
from rle_tf.data.coco import CocoSource
from rle_tf.data.crops import CropFormat
from rle_tf.data.mix import MixSource
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.pipeline import Shard, chance, training_batches
from rle_tf.data.records import INDEX, PLAN, PackedPeople, write_records
from rle_tf.errors import ConfigError, DataError
from rle_tf.skeletons import COCO17

CROPS = CropFormat((64, 48), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VIEW = Augmentation(colour=0.2, occlusion_area=0.2, rotation_probability=1.0)
PEOPLE = 7


@pytest.fixture
def source(write_coco) -> CocoSource:
    return CocoSource(*write_coco(people=PEOPLE))


@pytest.fixture
def packed(source, tmp_path) -> PackedPeople:
    write_records(source, CROPS, VIEW, str(tmp_path / "records"), shards=3)
    return PackedPeople(str(tmp_path / "records"))


def stream(people: PackedPeople, count: int, start: int = 0, **keys) -> list:
    """The first batches, one person each."""
    keys = {"batch_size": 1, "seed": 5} | keys
    batches = people.batches(CROPS, VIEW, start=start, **keys)
    return list(batches.take(count).as_numpy_iterator())


def names(people: PackedPeople, count: int, start: int = 0, seed: int = 5) -> list[str]:
    """The photographs of the first batches, one person each."""
    records = people._numbered(1, seed, start, Shard()).take(count).as_numpy_iterator()
    examples = [tf.train.Example.FromString(record) for _, record in records]
    return [each.features.feature["name"].bytes_list.value[0].decode() for each in examples]


def same_people(ours, theirs) -> None:
    for (image, target), (other_image, other_target) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(target["keypoints"], other_target["keypoints"])


@pytest.mark.parametrize("quality", [95, 100])
def test_records_give_the_images_of_the_photographs(source, tmp_path, quality):
    """Of the same person and seed: the same target to the bit, the same image within JPEG error."""
    out = str(tmp_path / "records")
    write_records(source, CROPS, VIEW, out, shards=2, quality=quality)
    people = PackedPeople(out)
    rows = {name: row for row, name in enumerate(source.records.image_paths)}
    columns = CROPS.columns(source.records)
    count = 3 * PEOPLE
    errors = []
    packed = stream(people, count)
    for number, name in enumerate(names(people, count)):
        person = tf.nest.map_structure(lambda column, row=rows[name]: column[row], columns)
        draws, seed = chance(tf.constant(number, tf.int64), 5, CROPS)
        image, target = CROPS.example(person, COCO17, VIEW, draws[:-1], seed)
        packed_image, packed_target = packed[number]
        np.testing.assert_array_equal(packed_target["keypoints"][0], target["keypoints"])
        np.testing.assert_array_equal(packed_target["weight"][0], target["weight"])
        errors.append(np.abs(packed_image[0] - image).mean() * 255 / 2)  # in grey levels
    assert max(errors) < {95: 2.0, 100: 0.8}[quality]


def test_a_photograph_that_is_needed_as_a_whole_loses_nothing(source, tmp_path):
    """The people of the fixture fill most of their photographs."""
    wide = Augmentation(scale_range=(0.5, 3.0), colour=0.1)
    out = str(tmp_path / "records")
    write_records(source, CROPS, wide, out, shards=1)
    people = PackedPeople(out)
    [record] = tf.data.TFRecordDataset(
        str(tmp_path / "records" / people.index.shards[0].name)
    ).take(1)
    example = tf.train.Example.FromString(record.numpy()).features.feature
    photo, name = (example[key].bytes_list.value[0] for key in ("photo", "name"))
    assert photo == Path(name.decode()).read_bytes()


def test_an_epoch_has_everybody_once_in_an_order_of_its_own(packed, source):
    everybody = sorted(source.records.image_paths)
    epochs = [names(packed, PEOPLE, start=epoch * PEOPLE) for epoch in range(3)]
    assert all(sorted(epoch) == everybody for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert names(packed, PEOPLE, seed=6) != epochs[0] or names(packed, PEOPLE, seed=7) != epochs[0]


@pytest.mark.parametrize("global_seed", [0, 1])
def test_the_order_is_of_its_own_seed(packed, global_seed):
    expected = names(packed, PEOPLE)
    keras.utils.set_random_seed(global_seed)
    assert names(packed, PEOPLE) == expected


def test_names_of_a_batch(packed):
    assert packed.images(1, CROPS, 3, 5) == names(packed, 3, start=3)
    assert len(set(packed.images(0, CROPS, 6, 5, workers=3))) == 6


def test_a_run_that_goes_on_sees_what_it_would_have_seen(packed):
    whole = stream(packed, 2 * PEOPLE)
    for start in (1, PEOPLE - 1, PEOPLE, PEOPLE + 3):
        same_people(stream(packed, 2 * PEOPLE - start, start), whole[start:])


def test_workers_share_the_people(packed):
    """Each reads shards of its own: in an epoch nobody is seen twice, by whichever worker."""
    found = []
    for worker in range(3):
        shard = Shard(worker, 3)
        batches = packed._numbered(3, 5, 0, shard).take(2).as_numpy_iterator()
        for number, record in batches:
            assert number % 3 == worker
            name = tf.train.Example.FromString(record).features.feature["name"]
            found.append(name.bytes_list.value[0])
    assert len(set(found)) == 6
    with pytest.raises(DataError, match="has 3 shards; expected a multiple of the 4 workers"):
        packed.batches(CROPS, VIEW, batch_size=4, seed=0, shard=Shard(0, 4))


def test_replicas_get_their_part_of_a_batch(packed):
    whole = packed.batches(CROPS, VIEW, batch_size=4, seed=5).take(2)
    parts = packed.batches(CROPS, VIEW, batch_size=4, seed=5, shard=Shard(replicas=2)).take(4)
    np.testing.assert_array_equal(
        np.concatenate([image for image, _ in whole]), np.concatenate([image for image, _ in parts])
    )


def test_parts_of_a_mix_take_turns(write_coco, write_mpii, tmp_path, monkeypatch):
    first = CocoSource(*write_coco(people=4))
    (tmp_path / "people.json").rename(tmp_path / "coco.json")
    (tmp_path / "photographs").rename(tmp_path / "coco_photographs")
    first = CocoSource(tmp_path / "coco.json", tmp_path / "coco_photographs")
    mix = MixSource(first, MpiiSource(*write_mpii(people=2)))
    out = str(tmp_path / "records")
    write_records(mix, CROPS, VIEW, out, shards=2)
    people = PackedPeople(out)
    assert people.parts == (4, 2) and people.skeleton == mix.skeleton
    seen = ["coco_" in name for name in names(people, 8)]
    assert seen == [True, False] * 4
    seconds = names(people, 8)[1::2]
    assert len(set(seconds[:2])) == len(set(seconds[2:])) == 2
    same_people(stream(people, 5, 3), stream(people, 8)[3:])


def test_reach_holds_every_view():
    rng = np.random.default_rng(0)
    keypoints = tf.constant(rng.uniform(20, 80, (17, 2)), tf.float32)
    labelled = tf.ones(17, bool)
    centre, size = tf.constant([50.0, 40.0]), tf.constant([45.0, 60.0])
    for view in (VIEW, Augmentation(rotation_deg=180, rotation_probability=1.0), Augmentation(
        half_body_probability=0.0, rotation_probability=0.0
    )):  # fmt: skip
        low, high = (
            value.numpy() for value in reach(keypoints, labelled, centre, size, COCO17, view)
        )
        lows, highs = [], []
        for seed in range(300):
            draws = tf.random.stateless_uniform([CROPS.draws], seed=[seed, 0])
            _, _, at, wh, degrees, flipped = augment(
                keypoints, labelled, centre, size, tf.constant(100), COCO17, view, draws
            )
            angle = np.radians(float(degrees))
            half = wh.numpy() / 2
            extent = np.abs(np.cos(angle)) * half + np.abs(np.sin(angle)) * half[::-1]
            at = at.numpy()
            if flipped:
                at = np.array([99 - at[0], at[1]])
            lows.append(at - extent)
            highs.append(at + extent)
        assert (np.min(lows, axis=0) >= low - 1e-3).all()
        assert (np.max(highs, axis=0) <= high + 1e-3).all()
        # And not much more than that.
        assert (np.min(lows, axis=0) - low < 12).all() and (high - np.max(highs, axis=0) < 12).all()


def test_packing_goes_on_where_it_stopped(source, tmp_path):
    out = tmp_path / "records"
    done = []

    def stop():
        done.append(None)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(source, CROPS, VIEW, str(out), shards=3, on_shard=stop)
    assert not (out / INDEX).exists()
    with pytest.raises(
        DataError, match=r"index\.json: cannot be read: .*rle-tf records has finished"
    ):
        PackedPeople(str(out))
    first = sorted(out.glob("*.tfrecord"))[0]
    before = first.stat().st_mtime_ns
    (out / "people-0-00002-of-00003.tfrecord.unfinished").write_bytes(b"half")
    index = write_records(source, CROPS, VIEW, str(out), shards=3)
    assert first.stat().st_mtime_ns == before
    assert sum(shard.people for shard in index.shards) == PEOPLE
    PackedPeople(str(out)).verify()


def test_any_file_system_that_tensorflow_has(source, packed):
    folder = f"ram://{packed.folder}"
    write_records(source, CROPS, VIEW, folder, shards=3)
    remote = PackedPeople(folder)
    remote.verify()
    same_people(stream(remote, 10), stream(packed, 10))
    assert tf.io.gfile.exists(f"{folder}/{INDEX}")


def test_a_folder_of_something_else_is_left_alone(source, packed, tmp_path):
    with pytest.raises(DataError, match=r"holds records of something else \(quality differ\)"):
        write_records(source, CROPS, VIEW, packed.folder, shards=3, quality=80)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="other: holds other files; expected a new folder"):
        write_records(source, CROPS, VIEW, str(other), shards=3)
    assert not (other / PLAN).exists()


@pytest.mark.parametrize("shards", [0, PEOPLE + 1])
def test_shards_have_somebody(source, tmp_path, shards):
    with pytest.raises(DataError, match=f"shards: found {shards}, of 7 people"):
        write_records(source, CROPS, VIEW, str(tmp_path / "records"), shards=shards)


def test_damaged_records_are_named(packed):
    path = Path(packed.folder) / packed.index.shards[1].name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=rf"{path.name}: holds {len(whole) - 9} bytes; expected"):
        PackedPeople(packed.folder)
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    people = PackedPeople(packed.folder)
    with (
        pytest.raises(DataError, match=rf"{path.name}: has another checksum than index.json says"),
        people.named_errors(CROPS),
    ):
        stream(people, PEOPLE)


def test_an_index_of_something_else(packed):
    path = Path(packed.folder) / INDEX
    content = json.loads(path.read_text())
    content["plan"]["format"] = 9
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="holds records of format 9; expected 1"):
        PackedPeople(packed.folder)
    content["plan"]["parts"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"index\.json: plan\.parts: .*expected what rle-tf records"
    ):
        PackedPeople(packed.folder)


@pytest.mark.parametrize(
    ("view", "crops", "message"),
    [
        ({"scale_range": (0.7, 1.4)}, {}, r"scale_range\[1\]: found 1.4; the records in .* 1.25"),
        ({"rotation_deg": 60.0}, {}, r"rotation_deg: found 60.0; .* as far as 45.0"),
        ({"half_body_margin": 2.0}, {}, r"half_body_margin: found 2.0; .* as far as 1.5"),
        ({}, {"box_margin": 1.5}, r"data.box_margin: found 1.5; .* as far as 1.25"),
        ({}, {"image_size": (64, 64)}, r"data.image_size: found a width to height of 1; .* 0.75"),
    ],
)
def test_crops_that_records_are_too_small_for(packed, view, crops, message):
    wanted = CropFormat(**(vars(CROPS) | crops))
    with pytest.raises(ConfigError, match=message):
        packed.check(wanted, VIEW.model_copy(update=view))
    weaker = VIEW.model_copy(update={"rotation_deg": 10.0, "half_body_probability": 0.0})
    packed.check(CROPS, weaker)
    packed.check(CropFormat((128, 96), CROPS.mean, CROPS.std), VIEW)


def test_files_still_give_what_they_gave(source):
    """A shard of the file reader's batches is that part of the whole batch."""
    keys = {"batch_size": 6, "seed": 1}
    whole = [
        image for image, _ in training_batches(source.records, COCO17, CROPS, VIEW, **keys).take(3)
    ]
    parts = [
        [
            image
            for image, _ in training_batches(
                source.records, COCO17, CROPS, VIEW, **keys, shard=Shard(worker, 3, 2)
            ).take(6)
        ]
        for worker in range(3)
    ]
    for step, image in enumerate(whole):
        found = np.concatenate([part[2 * step + replica] for part in parts for replica in range(2)])
        np.testing.assert_array_equal(found, image)
