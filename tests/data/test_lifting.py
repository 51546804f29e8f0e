"""What a lifter is shown and how its answers are read: there and back, mirrored, in `tf.data`."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.data.augment import Augmentation
from rle_tf.data.coco import CocoSource
from rle_tf.data.lifting import KeypointFormat, Person
from rle_tf.data.pipeline import evaluation_batches, named_image_errors, training_batches
from rle_tf.data.source import UNIT_SPREAD
from rle_tf.data.synthetic import Synthetic3DSource
from rle_tf.errors import DataError, ModelError
from rle_tf.evaluation import flip_back, predict_poses
from rle_tf.models.lifting import build_lifter
from rle_tf.skeletons import H36M18

ROOT = H36M18.root
FORMAT = KeypointFormat(ROOT)
OTHERS = np.arange(18) != ROOT
WRIST = H36M18.joints.index("left_wrist")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Synthetic3DSource:
    root = tmp_path_factory.mktemp("lifting") / "people"
    return Synthetic3DSource(root, "val", train_people=4, val_people=12, images=False)


def joined(batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, keypoints and weight of all samples."""
    parts = [(given, target["keypoints"], target["weight"]) for given, target in batches]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def examples(records, flip_probability=None):
    """The same, of all people by eager calls: as they are, or augmented."""
    columns = FORMAT.columns(records)
    augmentation = None
    if flip_probability is not None:
        augmentation = Augmentation(flip_probability=flip_probability)
    made = [
        FORMAT.example(
            Person(*(column[row] for column in columns)), H36M18, augmentation, tf.zeros(1), None
        )
        for row in range(len(records))
    ]
    return joined(((given[None], tf.nest.map_structure(lambda x: x[None], t)) for given, t in made))


# ---- there and back


def test_shapes_and_ranges_are_those_of_a_lifter(source):
    batches = evaluation_batches(source.records, H36M18, FORMAT, batch_size=5)
    given, keypoints, weight = joined(batches)
    assert given.shape == (12, 18, 2) and keypoints.shape == weight.shape == (12, 18, 3)
    assert {array.dtype for array in (given, keypoints, weight)} == {np.dtype("float32")}
    assert np.abs(given).max() < 1 and np.abs(keypoints).max() < 0.6
    assert (weight[:, ROOT] == 0).all() and (weight[:, OTHERS] == 1).all()
    assert (keypoints[:, ROOT] == 0).all()
    # Static but for the batch.
    assert batches.element_spec[0].shape[1:] == (18, 2)
    assert batches.element_spec[1]["keypoints"].shape[1:] == (18, 3)


def test_the_input_is_the_pixels_of_the_record(source):
    given, _, _ = examples(source.records)
    size = source.records.image_wh[:, None]
    pixels = (given * size[..., :1] + size) / 2
    np.testing.assert_allclose(pixels, source.records.keypoints[..., :2], atol=1e-3)


def test_the_target_is_the_pose_in_the_camera_s_axes(source):
    _, keypoints, _ = examples(source.records)
    relative_mm = source.joints_mm - source.joints_mm[:, [ROOT]]
    np.testing.assert_allclose(keypoints * 2000, relative_mm, atol=0.01)
    # People stand: y down, so that the feet are below the pelvis.
    feet = [H36M18.joints.index(f"{side}_ankle") for side in ("left", "right")]
    assert (keypoints[:, feet, 1].mean(axis=1) > 0.1).all()


def test_the_target_fed_back_is_the_ground_truth(source):
    _, keypoints, _ = examples(source.records)
    sigma = np.full_like(keypoints, 0.1)
    poses = FORMAT.decode({"mu": keypoints, "sigma": sigma}, source.records, UNIT_SPREAD)
    np.testing.assert_allclose(poses.keypoints, source.records.keypoints, atol=0.005)
    scores = source.score(poses)
    assert scores["MPJPE"] < 0.01 and scores["PA-MPJPE"] < 0.01
    np.testing.assert_allclose(poses.joint_scores, 0.9)
    np.testing.assert_array_equal(poses.crop_boxes_xyxy, source.records.boxes_xyxy)


def test_sigmas_are_in_the_units_of_the_keypoints(source):
    """A step of one sigma and spread along each axis is, to first order, the sigma of the pose."""
    _, keypoints, _ = examples(source.records)
    sigma = np.random.default_rng(0).uniform(0.5, 1, keypoints.shape)
    spread = np.array([0.5, 1.5, 2.0])
    poses = FORMAT.decode({"mu": keypoints, "sigma": sigma}, source.records, spread)
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1e-4
        moved = FORMAT.decode(
            {"mu": keypoints + step * sigma * spread, "sigma": sigma}, source.records, spread
        )
        slope = (moved.keypoints - poses.keypoints)[..., axis] / 1e-4
        np.testing.assert_allclose(slope, poses.sigmas[..., axis], rtol=1e-5)


def test_a_pose_behind_the_camera_stays_a_number(source):
    mu = np.zeros((12, 18, 3))
    mu[:, 3, 2] = -10
    poses = FORMAT.decode({"mu": mu, "sigma": np.ones_like(mu)}, source.records, UNIT_SPREAD)
    assert np.isfinite(poses.keypoints).all() and np.isfinite(poses.sigmas).all()
    assert np.isfinite(source.score(poses)["MPJPE"])


# ---- mirrored


def test_mirroring_exchanges_left_and_right(source):
    given, keypoints, _ = examples(source.records)
    mirrored, mirrored_keypoints, _ = examples(source.records, flip_probability=1.0)
    other = H36M18.joints.index("right_wrist")
    np.testing.assert_array_equal(mirrored[:, WRIST], given[:, other] * (-1, 1))
    np.testing.assert_array_equal(mirrored_keypoints[:, WRIST], keypoints[:, other] * (-1, 1, 1))


def test_a_mirrored_example_is_that_of_the_mirrored_input(source):
    labelled = source.records.labelled.copy()
    labelled[0, WRIST] = False
    records = replace(source.records, labelled=labelled)
    given, keypoints, weight = examples(records)
    mirrored = examples(records, flip_probability=1.0)
    permutation = H36M18.flip_permutation
    np.testing.assert_array_equal(FORMAT.mirror(given, permutation), mirrored[0])
    assert np.any(mirrored[0] != given)
    # As the flip test reads it.
    output = {"mu": mirrored[1], "sigma": mirrored[2]}
    back = flip_back(output, permutation, FORMAT.mirror_shift)
    np.testing.assert_array_equal(back["mu"], keypoints)
    np.testing.assert_array_equal(back["sigma"], weight)


def test_mirroring_twice_changes_nothing(source):
    once = examples(source.records, flip_probability=1.0)
    augmentation = Augmentation(flip_probability=1.0)
    for row, expected in enumerate(zip(*examples(source.records), strict=True)):
        person = Person(once[0][row], once[1][row], tf.ones(18, bool))
        given, target = FORMAT.example(person, H36M18, augmentation, tf.zeros(1), None)
        np.testing.assert_array_equal(given, expected[0])
        np.testing.assert_array_equal(target["keypoints"], expected[1])


def test_the_flip_test_is_the_mean_of_both_views(source):
    lifter = build_lifter(H36M18, width=16)
    given, _, _ = examples(source.records)
    output = lifter(given)
    mirrored = lifter(FORMAT.mirror(given, H36M18.flip_permutation))
    back = flip_back(
        {"mu": mirrored["mu"], "sigma": tf.exp(mirrored["log_sigma"])},
        H36M18.flip_permutation,
        0.0,
    )
    mean = {
        "mu": (output["mu"] + back["mu"]) / 2,
        "sigma": (tf.exp(output["log_sigma"]) + back["sigma"]) / 2,
    }
    wanted = FORMAT.decode(mean, source.records, UNIT_SPREAD)
    found = predict_poses(lifter, source.records, H36M18, FORMAT, batch_size=5)
    np.testing.assert_allclose(found.keypoints, wanted.keypoints, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found.person_scores, wanted.person_scores, rtol=1e-5)


# ---- what is not known


def test_unlabelled_joints_enter_as_the_centre_and_weigh_nothing(source):
    labelled = source.records.labelled.copy()
    labelled[:6, WRIST] = False
    keypoints = source.records.keypoints.copy()
    keypoints[:6, WRIST] = np.nan
    found = examples(replace(source.records, keypoints=keypoints, labelled=labelled))
    expected = [array.copy() for array in examples(source.records)]
    for array in expected:
        array[:6, WRIST] = 0
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, reference)


def test_an_unknown_depth_weighs_nothing_and_is_still_seen(source):
    keypoints = source.records.keypoints.copy()
    keypoints[0, WRIST, 2] = np.nan
    found = examples(replace(source.records, keypoints=keypoints))
    expected = [array.copy() for array in examples(source.records)]
    expected[1][0, WRIST] = expected[2][0, WRIST] = 0
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, reference)


def test_nothing_is_known_relative_to_an_unlabelled_root(source):
    labelled = source.records.labelled.copy()
    labelled[3, ROOT] = False
    keypoints = source.records.keypoints.copy()
    keypoints[3, ROOT] += 70
    given, found, weight = examples(replace(source.records, keypoints=keypoints, labelled=labelled))
    assert (weight[3] == 0).all() and (found[3] == 0).all()
    assert (weight[np.arange(12) != 3][:, OTHERS] == 1).all()
    np.testing.assert_array_equal(given[3, OTHERS], examples(source.records)[0][3, OTHERS])


# ---- in tf.data


def test_evaluation_batches_are_the_examples(source):
    batches = evaluation_batches(source.records, H36M18, FORMAT, batch_size=5)
    for inside, eager in zip(joined(batches), examples(source.records), strict=True):
        np.testing.assert_array_equal(inside, eager)


def training(records, augmentation, count=48):
    batches = training_batches(records, H36M18, FORMAT, augmentation, batch_size=8, seed=3)
    return joined(batches.take(count // 8))


def test_training_shows_people_as_they_are_and_mirrored(source):
    found = training(source.records, Augmentation(flip_probability=0.5))
    plain, mirrored = (examples(source.records, flip_probability=p) for p in (0.0, 1.0))
    kinds = []
    for sample in zip(*found, strict=True):
        matches = [
            (kind, row)
            for kind, views in enumerate((plain, mirrored))
            for row in range(12)
            if all(np.array_equal(a, views[i][row]) for i, a in enumerate(sample))
        ]
        assert len(matches) == 1
        kinds += matches
    # Four epochs of everybody.
    assert sorted(row for _, row in kinds) == sorted(list(range(12)) * 4)
    assert 12 <= sum(kind for kind, _ in kinds) <= 36
    again = training(source.records, Augmentation(flip_probability=0.5))
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_an_augmentation_mirroring_alone_applies(source):
    strong = Augmentation(rotation_probability=1.0, half_body_probability=1.0, colour=0.5)
    still = Augmentation(scale_range=(1.0, 1.0), rotation_probability=0, half_body_probability=0)
    for one, other in zip(
        training(source.records, strong), training(source.records, still), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# ---- errors


def test_people_of_an_image_dataset_are_refused(write_coco):
    records = CocoSource(*write_coco()).records
    with pytest.raises(
        DataError, match=r"3 people without depths or cameras, the first in .*photo_0.jpg; expected"
    ):
        evaluation_batches(records, H36M18, FORMAT, batch_size=2)


def test_people_without_a_camera_are_named(source):
    cameras = source.records.cameras.copy()
    cameras[[7, 9]] = np.nan
    with pytest.raises(
        DataError, match=f"2 people without .* the first in {source.records.image_paths[7]}; exp"
    ):
        training(replace(source.records, cameras=cameras), Augmentation())


def test_failures_are_not_taken_for_those_of_images(source, caplog):
    with pytest.raises(tf.errors.InvalidArgumentError), named_image_errors(source.records, FORMAT):
        tf.debugging.assert_equal(1, 2)
    assert not caplog.records


def test_a_regressor_of_images_is_refused(source):
    image = keras.Input((32, 32, 3))
    flat = keras.layers.Flatten()(image)
    outputs = {
        name: keras.layers.Reshape((18, 3))(keras.layers.Dense(54)(flat))
        for name in ("mu", "log_sigma")
    }
    regressor = keras.Model(image, outputs, name="of_images")
    with pytest.raises(ModelError, match=r"'of_images'.*\(None, 32, 32, 3\); expected a lifter's"):
        predict_poses(regressor, source.records, H36M18, FORMAT)
