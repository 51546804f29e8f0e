"""Two sources as one: who comes how often, what each supervises, and who is scored."""

import numpy as np
import pytest
import tensorflow as tf

from rle_tf.data.augment import Augmentation
from rle_tf.data.coco import CocoSource
from rle_tf.data.crops import CropFormat
from rle_tf.data.h36m import H36mSource
from rle_tf.data.mix import MappedSource, MixSource
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.pipeline import epoch_size, evaluation_batches, training_batches
from rle_tf.data.source import Poses, Records
from rle_tf.errors import DataError
from rle_tf.skeletons import COCO17, H36M18, LSP14, MPII16, PERSON19, Skeleton

SMALL = CropFormat((64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# The 3D recipe's.
RECIPE = Augmentation(
    scale_range=(0.7, 1.3),
    scale_std=0.3,
    rotation_deg=60,
    rotation_std_deg=30,
    rotation_probability=0.6,
    half_body_probability=0,
    colour=0.2,
    occlusion_area=0.7,
)


class Names:
    """An input format that shows who somebody is."""

    reads_images = False
    draws = 1

    def columns(self, records):
        return tf.constant(records.person_ids)

    def example(self, person, skeleton, augmentation, draws, seed):
        return person, {"keypoints": draws, "weight": draws}


def people(ids, skeleton: Skeleton, dims: int) -> Records:
    """Records of people without images, each joint at a place of its own."""
    ids = np.array(ids, np.int64)
    joints = len(skeleton.joints)
    places = 1000 * ids[:, None, None] + np.arange(joints * dims).reshape(joints, dims)
    return Records(
        image_paths=np.array([f"{name}.jpg" for name in ids], object),
        image_wh=np.full((len(ids), 2), 100, np.int32),
        boxes_xyxy=np.tile([10.0, 10, 90, 90], (len(ids), 1)),
        keypoints=places.astype(np.float32),
        labelled=(np.arange(joints) + ids[:, None]) % 3 > 0,
        cameras=np.full((len(ids), 5), np.nan if dims == 2 else 1000.0),
        areas=np.full(len(ids), 6400.0),
        image_ids=ids,
        person_ids=ids,
        box_scores=np.zeros(len(ids)),
    )


class Crowd:
    """A source without a dataset: it scores whom it was asked about."""

    def __init__(self, ids, skeleton: Skeleton, dims: int):
        self.skeleton, self.records = skeleton, people(ids, skeleton, dims)
        self.parts = (len(self.records),)

    def take(self, rows):
        dims = self.records.keypoints.shape[-1]
        return Crowd(self.records.person_ids[rows], self.skeleton, dims)

    def results(self, poses):
        pairs = zip(self.records.person_ids.tolist(), poses.person_scores.tolist(), strict=True)
        return [{"id": name, "score": score} for name, score in pairs]

    def score(self, poses):
        return {"people": len(poses.person_scores), "sum": float(poses.person_scores.sum())}


def poses_of(records: Records) -> Poses:
    count, joints, dims = records.keypoints.shape
    return Poses(
        keypoints=records.keypoints.astype(float),
        sigmas=np.ones((count, joints, dims)),
        joint_scores=np.full((count, joints), 0.9),
        person_scores=np.arange(count, dtype=float),
        crop_boxes_xyxy=records.boxes_xyxy,
    )


def sampled(parts, count, *, seed=5, start=0, batch_size=4) -> np.ndarray:
    """Row numbers of the first samples, batch by batch."""
    records = people(range(sum(parts)), COCO17, 2)
    batches = training_batches(
        records, COCO17, Names(), Augmentation(),
        batch_size=batch_size, seed=seed, start=start, parts=parts,
    )  # fmt: skip
    return np.stack([names for names, _ in batches.take(count // batch_size)])


# ---- how often who comes


@pytest.mark.parametrize("parts", [(13, 5), (5, 13), (7, 7), (9, 1)])
def test_half_of_each_batch_is_of_each_part(parts):
    batches = sampled(parts, 200)
    assert ((batches < parts[0]).sum(axis=1) == 2).all()
    assert epoch_size(parts) == 2 * max(parts)


@pytest.mark.parametrize("parts", [(13, 5), (5, 13), (7, 7)])
def test_everybody_of_a_largest_part_comes_once_an_epoch(parts):
    rows, low = sampled(parts, 20 * epoch_size(parts), batch_size=epoch_size(parts)), 0
    orders = []
    for size in parts:
        part = rows[(rows >= low) & (rows < low + size)].reshape(20, -1) - low
        assert part.shape[1] == max(parts)
        if size == max(parts):
            assert (np.sort(part, axis=1) == np.arange(size)).all()
            assert len({tuple(epoch) for epoch in part}) > 17  # in orders of their own
            orders.append(part)
        low += size
    assert len(orders) < 2 or (orders[0] != orders[1]).any(axis=1).all()


def test_the_smaller_part_is_drawn_with_replacement():
    rows = sampled((40, 10), 80 * 50, batch_size=80)
    smaller = np.sort(rows, axis=1)[:, 40:] - 40
    counts = np.stack([np.bincount(epoch, minlength=10) for epoch in smaller])
    assert counts.shape == (50, 10) and (counts.sum(axis=1) == 40).all()
    assert len({tuple(epoch) for epoch in counts}) > 45
    # Binomial: 4 of 40 draws are expected, with a variance of 3.6.
    assert 2.9 < counts.var() < 4.4
    total = counts.sum(axis=0)
    assert (np.abs(total - 200) < 4 * np.sqrt(2000 * 0.09)).all()


def test_three_parts_take_turns():
    rows = sampled((2, 6, 3), 180, batch_size=3)
    assert (np.searchsorted([2, 8], rows, side="right") == [0, 1, 2]).all()
    assert epoch_size((2, 6, 3)) == 18
    assert (np.sort(rows[:6, 1]) == np.arange(2, 8)).all()


def test_a_seed_decides_who_is_drawn_and_a_later_start_goes_on():
    rows = sampled((13, 5), 104).ravel()
    assert (sampled((13, 5), 104).ravel() == rows).all()
    assert (sampled((13, 5), 104, seed=6).ravel() != rows).any()
    for start in (2, 13, 26, 51):
        later = sampled((13, 5), 48, start=start).ravel()
        assert (later == rows[start : start + 48]).all()


def test_one_part_is_the_default():
    records = people(range(9), COCO17, 2)
    given, default = (
        training_batches(records, COCO17, Names(), Augmentation(), batch_size=9, seed=1, parts=part)
        for part in ((9,), None)
    )
    for (one, _), (other, _) in zip(given.take(3), default.take(3), strict=True):
        assert one.numpy().tolist() == other.numpy().tolist()
        assert sorted(one.numpy()) == list(range(9))


@pytest.mark.parametrize("parts", [(9, 0), (0, 9), (5, 3), (5, 5), (), (10, -1)])
def test_parts_that_are_not_those_of_the_records_are_refused(parts):
    with pytest.raises(DataError, match=r"parts of \[.*\] people, of 9 in all; expected parts"):
        training_batches(
            people(range(9), COCO17, 2), COCO17, Names(), Augmentation(),
            batch_size=2, seed=0, parts=parts,
        )  # fmt: skip


# ---- what is supervised


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((H36M18, 3), (MPII16, 2)),
        ((H36M18, 3), (COCO17, 2)),
        ((COCO17, 2), (H36M18, 3)),
        ((MPII16, 2), (H36M18, 3)),
        ((COCO17, 2), (COCO17, 2)),
    ],
    ids=lambda pair: f"{pair[0].name}-{pair[1]}d",
)
def test_joints_go_by_their_names_and_coordinates_are_the_first_s(first, second):
    one, other = Crowd(range(4), *first), Crowd(range(50, 57), *second)
    mix = MixSource(one, other)
    records, (skeleton, dims) = mix.records, first
    assert mix.skeleton is skeleton and mix.parts == (4, 7)
    assert records.keypoints.shape == (11, len(skeleton.joints), dims)
    assert records.keypoints.dtype == np.float32 and records.labelled.dtype == bool
    for column, expected in vars(one.records).items():
        np.testing.assert_array_equal(getattr(records, column)[:4], expected)
    assert records.person_ids.tolist() == [*range(4), *range(50, 57)]
    np.testing.assert_array_equal(records.cameras[4:], other.records.cameras)
    names = [name.replace("upper_neck", "neck") for name in other.skeleton.joints]
    for joint, name in enumerate(skeleton.joints):
        name = name.replace("upper_neck", "neck")
        if name not in names:
            assert not records.labelled[4:, joint].any()
            continue
        theirs = names.index(name)
        known = min(dims, second[1])
        np.testing.assert_array_equal(
            records.keypoints[4:, joint, :known], other.records.keypoints[:, theirs, :known]
        )
        np.testing.assert_array_equal(
            records.labelled[4:, joint], other.records.labelled[:, theirs]
        )
    assert np.isnan(records.keypoints[4:, :, second[1] :]).all()
    assert np.isfinite(records.keypoints[..., :2]).all()


def test_sources_without_a_common_joint_are_refused():
    cat = Skeleton("cat", joints=("tail", "whiskers"), flip_pairs=(), bones=(), upper_body=())
    with pytest.raises(DataError, match="'coco17' and 'cat' have no joint in common; expected"):
        MixSource(Crowd([1], COCO17, 2), Crowd([2], cat, 2))


# ---- some of the people


ROWS = {
    "mask": np.arange(11) % 3 != 0,
    "indices": np.array([9, 1, 0, 6]),
    "slice": slice(2, 8),
    "twice": np.array([10, 3, 3, 10, 10]),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_of_some_records_the_first_source_s_are_known(rows):
    mix = MixSource(Crowd(range(4), COCO17, 2), Crowd(range(50, 57), COCO17, 2))
    ids = np.sort(mix.records.person_ids[rows])
    taken = mix.take(rows)
    # The first source's come first, whatever the order.
    assert taken.records.person_ids.tolist() == ids.tolist()
    assert taken.of_first.tolist() == (ids < 50).tolist()
    assert taken.first.records.person_ids.tolist() == ids[ids < 50].tolist()
    assert taken.parts == ((ids < 50).sum(), (ids >= 50).sum())
    assert mix.parts == (4, 7)
    again = taken.take(np.arange(len(ids)) > 0)
    assert again.first.records.person_ids.tolist() == ids[1:][ids[1:] < 50].tolist()
    assert again.records.person_ids.tolist() == ids[1:].tolist()


def test_a_mix_without_people_of_one_source_is_refused():
    mix = MixSource(Crowd(range(4), COCO17, 2), Crowd(range(50, 57), COCO17, 2))
    for rows, counts in ((slice(4), "4 and 0"), (slice(4, None), "0 and 7")):
        with pytest.raises(DataError, match=f"a mix of {counts} people; expected people of both"):
            _ = mix.take(rows).parts
    with pytest.raises(DataError, match="a mix of 4 and 0 people"):
        _ = MixSource(Crowd(range(4), COCO17, 2), Crowd([], COCO17, 2)).parts


# ---- scores


def test_each_source_scores_its_own_people_and_the_first_one_gives_the_results():
    mix = MixSource(Crowd(range(4), H36M18, 3), Crowd(range(50, 57), MPII16, 2))
    poses = poses_of(mix.records)
    assert mix.score(poses) == {
        "people": 4,
        "sum": 0 + 1 + 2 + 3,
        "second_people": 7,
        "second_sum": sum(range(4, 11)),
    }
    assert [entry["id"] for entry in mix.results(poses)] == [0, 1, 2, 3]
    taken = mix.take(np.array([True, False] * 5 + [True]))
    poses = poses_of(taken.records)
    assert taken.score(poses) == {"people": 2, "sum": 1, "second_people": 4, "second_sum": 14}
    assert taken.results(poses) == [{"id": 0, "score": 0}, {"id": 2, "score": 1}]


def test_a_second_source_with_joints_that_the_mix_lacks_is_not_scored():
    mix = MixSource(Crowd(range(4), MPII16, 2), Crowd(range(50, 57), COCO17, 2))
    poses = poses_of(mix.records)
    assert mix.score(poses) == {"people": 4, "sum": 6}
    with pytest.raises(DataError, match="'mpii16' has no nose, left_eye, .*; expected all joints"):
        mix.second.score(poses.take(slice(4, None)))


# ---- one skeleton for both


def test_there_and_back_the_joints_are_the_same():
    crowd = Crowd(range(5), LSP14, 2)
    mapped = MappedSource(crowd, PERSON19)
    back = MappedSource(mapped, LSP14)
    np.testing.assert_array_equal(back.records.keypoints, crowd.records.keypoints)
    np.testing.assert_array_equal(back.records.labelled, crowd.records.labelled)
    assert mapped.lacking == [] and mapped.take([2, 0]).records.person_ids.tolist() == [2, 0]
    other = Skeleton("other", ("tail",), (), (), ())
    with pytest.raises(DataError, match="'other' and 'lsp14' have no joint in common"):
        MappedSource(crowd, other)


# ---- files


def test_human36m_with_coco_is_scored_as_human36m(write_h36m, write_coco):
    h36m, coco = H36mSource(*write_h36m()), CocoSource(*write_coco(people=2))
    mix = MixSource(h36m, coco)
    assert mix.parts == (3, 2) and mix.records.image_ids.tolist() == [101, 102, 103, 101, 102]
    poses = poses_of(mix.records)
    assert mix.second.lacking == ["left_eye", "right_eye", "left_ear", "right_ear"]
    assert mix.score(poses) == h36m.score(poses.take(slice(3)))
    assert mix.score(poses)["MPJPE"] < 0.01
    assert len(mix.results(poses)) == 3 and "keypoints_mm" in mix.results(poses)[0]
    [(images, target)] = evaluation_batches(mix.records, H36M18, SMALL, batch_size=5)
    weight = target["weight"].numpy()
    assert np.isfinite(images).all() and np.isfinite(target["keypoints"]).all()
    assert (weight[:3, 1:] == 1).all() and (weight[3:, :, 2] == 0).all()
    shared = [H36M18.joints.index(name) for name in COCO17.joints if name in H36M18.joints]
    assert (weight[3:, shared, :2] == 1).all() and weight[3:, :, 0].sum() == 2 * len(shared)


def test_coco_with_human36m_is_scored_as_coco(write_h36m, write_coco):
    coco, h36m = CocoSource(*write_coco(people=2)), H36mSource(*write_h36m())
    mix = MixSource(coco, h36m)
    assert mix.parts == (2, 3) and mix.records.keypoints.shape == (5, 17, 2)
    poses = poses_of(mix.records)
    assert mix.score(poses)["AP"] == pytest.approx(1)
    assert [entry["image_id"] for entry in mix.results(poses)] == [101, 102]
    [(_, target)] = evaluation_batches(mix.records, COCO17, SMALL, batch_size=5)
    assert target["keypoints"].shape == (5, 17, 2)
    eyes = [COCO17.joints.index(name) for name in ("left_eye", "right_eye")]
    assert (target["weight"].numpy()[2:, eyes] == 0).all()
    assert (target["weight"].numpy()[2:, 5:] == 1).all()


def test_the_recipe_s_mix_on_real_photographs(h36m_sample, mpii_sample):
    h36m = H36mSource(
        h36m_sample / "annotations/Sample_trainmin_train_Human36M_protocol_2.json",
        h36m_sample / "images",
    )
    mpii = MpiiSource(mpii_sample / "annotations/annot_mpii.json", mpii_sample / "images")
    mix = MixSource(h36m, mpii)
    assert mix.parts == (4, 5)
    batches = training_batches(
        mix.records, H36M18, SMALL, RECIPE, batch_size=10, seed=0, parts=mix.parts
    )
    missing = [H36M18.joints.index(name) for name in ("torso", "nose")]
    for images, target in batches.take(4):
        assert images.shape == (10, 64, 64, 3)
        keypoints, weight = (target[key].numpy() for key in ("keypoints", "weight"))
        assert np.isfinite(images).all() and np.isfinite(keypoints).all()
        h36m_weight, mpii_weight = weight[::2], weight[1::2]
        assert (h36m_weight[..., :2] == 1).all() and (h36m_weight[:, 1:, 2] == 1).all()
        assert (mpii_weight[..., 2] == 0).all() and (keypoints[1::2, :, 2] == 0).all()
        assert (mpii_weight[:, missing] == 0).all()
        assert (np.delete(mpii_weight, missing, axis=1)[..., :2] > 0).mean() > 0.8
        assert np.abs(keypoints[::2, :, 2]).max() > 0.05
    outside = RECIPE.model_copy(update={"keep_outside": False})
    [(_, target)] = training_batches(
        mix.records, H36M18, SMALL, outside, batch_size=40, seed=0, parts=mix.parts
    ).take(1)
    weighted = target["keypoints"].numpy()[target["weight"].numpy() > 0]
    assert np.abs(weighted).max() <= 0.5
