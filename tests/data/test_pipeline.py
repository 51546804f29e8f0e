"""From records to batches: what is in them, in which order, and what bad images lead to."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf import geometry
from rle_tf.data.augment import Augmentation
from rle_tf.data.coco import CocoSource
from rle_tf.data.crops import CropFormat, encode_target, read_crop
from rle_tf.data.pipeline import (
    check_images,
    evaluation_batches,
    named_image_errors,
    training_batches,
    usable_rows,
)
from rle_tf.data.source import Records
from rle_tf.errors import DataError
from rle_tf.skeletons import COCO17, H36M18, MPII16

SMALL = CropFormat((64, 48), mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3))
PLAIN = CropFormat((64, 48), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
PAPER = CropFormat((256, 192), mean=(0.406, 0.457, 0.480), std=(1.0, 1.0, 1.0))
STILL = Augmentation(
    flip_probability=0, scale_range=(1.0, 1.0), rotation_probability=0, half_body_probability=0
)


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_records(paths, image_wh, boxes_xyxy, keypoints, labelled) -> Records:
    people = len(paths)
    return Records(
        image_paths=np.array([str(path) for path in paths], object),
        image_wh=np.array([image_wh] * people, np.int32),
        boxes_xyxy=np.array(boxes_xyxy, np.float64),
        keypoints=np.array(keypoints, np.float32),
        labelled=np.array(labelled, bool),
        cameras=np.full((people, 5), np.nan),
        areas=np.ones(people),
        image_ids=np.arange(people),
        person_ids=np.arange(people),
        box_scores=np.zeros(people),
    )


@pytest.fixture(scope="module")
def crowd(tmp_path_factory) -> Records:
    """13 people on one photograph; who somebody is shows in which joints are labelled."""
    path = tmp_path_factory.mktemp("crowd") / "crowd.jpg"
    photograph(160, 120).save(path)
    rng = np.random.default_rng(1)
    low = rng.uniform((0, 0), (80, 50), (13, 2))
    boxes = np.concatenate([low, low + rng.uniform((20, 30), (60, 65), (13, 2))], axis=1)
    keypoints = rng.uniform(boxes[:, None, :2], boxes[:, None, 2:], (13, 17, 2))
    labelled = np.ones((13, 17), bool)
    labelled[:, :4] = (np.arange(13)[:, None] >> np.arange(4)) % 2
    return make_records([path] * 13, (160, 120), boxes, keypoints, labelled)


def joined(batches) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, keypoints and weight of all samples."""
    parts = [(image, target["keypoints"], target["weight"]) for image, target in batches]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


RECIPE = Augmentation()


def samples(records, count, *, seed=5, start=0, batch_size=4, augmentation=RECIPE):
    batches = training_batches(
        records, COCO17, SMALL, augmentation, batch_size=batch_size, seed=seed, start=start
    )
    return joined(batches.take(-(-count // batch_size)))


def who(weight: np.ndarray) -> list[int]:
    """Whom of the crowd samples show, if nobody was flipped."""
    return (weight[:, :4, 0] @ (1, 2, 4, 8)).astype(int).tolist()


@pytest.fixture(scope="module")
def augmented(crowd):
    """The first 52 samples of seed 5."""
    return samples(crowd, 52)


@pytest.fixture(scope="module")
def order(crowd) -> list[int]:
    """Who is in the first 52 samples of seed 5: four epochs."""
    return who(samples(crowd, 52, augmentation=STILL)[2])


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other[: len(one)])


# ---- what is in a batch


@pytest.mark.parametrize("training", [True, False])
def test_batches_are_as_the_contract_says(crowd, training):
    if training:
        batches = training_batches(crowd, COCO17, SMALL, Augmentation(), batch_size=4, seed=0)
    else:
        batches = evaluation_batches(crowd, COCO17, SMALL, batch_size=4)
    image, target = next(iter(batches))
    assert image.shape == (4, 64, 48, 3) and image.dtype == tf.float32
    assert set(target) == {"keypoints", "weight"}
    for value in target.values():
        assert value.shape == (4, 17, 2) and value.dtype == tf.float32
    assert set(np.unique(target["weight"])) <= {0, 1}
    mean, std = np.array(SMALL.mean), np.array(SMALL.std)
    rgb = image.numpy() * std + mean
    assert rgb.min() > -1e-6 and rgb.max() < 1 + 1e-6 and np.ptp(rgb) > 0.5
    # Static but for the batch: models and exports are built from it.
    assert batches.element_spec[0].shape[1:] == (64, 48, 3)
    assert batches.element_spec[1]["keypoints"].shape[1:] == (17, 2)


def test_normalisation_is_per_channel():
    found = SMALL.normalise(tf.constant([[0.0, 127.5, 255.0]]))
    np.testing.assert_allclose(found, [[-0.4 / 0.2, 0.05 / 0.25, 0.5 / 0.3]], rtol=1e-5)


def test_the_reference_s_evaluation_crops_and_targets(golden, coco_sample):
    sample = golden("coco_samples")
    source = CocoSource(
        coco_sample / "annotations/person_keypoints_val2017.json", coco_sample / "val2017"
    )
    ids = source.records.person_ids.tolist()
    records = source.take(np.array([ids.index(i) for i in sample["annotation_id"]])).records
    np.testing.assert_array_equal(records.boxes_xyxy, sample["bbox_xyxy_clipped"])
    image, keypoints, weight = joined(evaluation_batches(records, COCO17, PAPER, batch_size=6))
    pixels = (image[:3] + np.array(PAPER.mean)) * 255
    assert np.abs(pixels - sample["eval_input_uint8_first3"]).max() <= 1.0
    labelled = sample["keypoints_xyv"][..., 2] > 0
    np.testing.assert_array_equal(weight, np.repeat(labelled[..., None], 2, axis=-1))
    low, high = np.split(sample["crop_box_xyxy"][:, None], 2, axis=-1)
    unit = (sample["keypoints_xyv"][..., :2] - low) / (high - low) - 0.5
    np.testing.assert_allclose(keypoints[weight > 0], unit[weight > 0], atol=1e-4)


def test_targets_in_three_dimensions():
    keypoints = tf.constant([[10.0, 20.0, 500.0], [96.0, 128.0, -1000.0], [np.nan] * 3])
    labelled = tf.constant([True, True, False])
    target = encode_target(keypoints, labelled, tf.eye(2, 3), (256, 192))
    np.testing.assert_allclose(
        target["keypoints"],
        [[10 / 192 - 0.5, 20 / 256 - 0.5, 0.25], [0, 0, -0.5], [0, 0, 0]],
        atol=1e-6,
    )
    np.testing.assert_array_equal(target["weight"], [[1] * 3, [1] * 3, [0] * 3])


def test_joints_outside_the_crop_or_far_away_weigh_nothing_where_that_is_asked():
    inside = [96, 128, 100]
    keypoints = [inside] * 18
    keypoints[1] = [193, 128, 100]  # right of the crop
    keypoints[2] = [96, -1, 100]  # above it
    keypoints[3], keypoints[4] = [96, 128, 1001], [96, 128, -1001]
    keypoints[5], keypoints[6] = [191, 255, 999], [1, 1, -999]
    keypoints[7] = [96, 128, np.nan]
    keypoints[8] = [-5, 128, np.nan]
    labelled = np.ones(18, bool)
    labelled[9] = False
    expected = np.ones((18, 3))
    expected[9] = expected[7, 2] = expected[8, 2] = expected[H36M18.root, 2] = 0
    found = {}
    for keep_outside in (True, False):
        found[keep_outside] = encode_target(
            tf.constant(keypoints, tf.float32),
            tf.constant(labelled),
            tf.eye(2, 3),
            (256, 192),
            root=H36M18.root,
            keep_outside=keep_outside,
        )
    np.testing.assert_array_equal(found[True]["weight"], expected)
    expected[[1, 2, 3, 4, 8]] = 0
    np.testing.assert_array_equal(found[False]["weight"], expected)
    values = {keep: target["keypoints"].numpy() for keep, target in found.items()}
    for keep, target in found.items():
        assert np.isfinite(values[keep]).all() and (values[keep][target["weight"] == 0] == 0).all()
    kept = expected > 0
    np.testing.assert_array_equal(values[True][kept], values[False][kept])
    assert values[True][3, 2] == pytest.approx(0.5005)


def test_a_root_without_a_third_coordinate_has_its_weight():
    target = encode_target(
        tf.zeros((16, 2)), tf.ones(16, bool), tf.eye(2, 3), (256, 192), root=MPII16.root
    )
    assert (target["weight"].numpy() == 1).all()


THREE_D = Augmentation(
    scale_range=(0.7, 1.3),
    scale_std=0.3,
    rotation_deg=60.0,
    rotation_std_deg=30.0,
    rotation_probability=0.6,
    half_body_probability=0.0,
    colour=0.2,
    occlusion_area=0.7,
    keep_outside=False,
)


@pytest.fixture
def mixed(tmp_path) -> Records:
    """Five people in 3D, then two without depths; joint 3 of the last is not labelled."""
    photograph(160, 120).save(tmp_path / "mixed.jpg")
    rng = np.random.default_rng(2)
    boxes = [[50, 20, 110, 100]] * 7
    # Well inside, so that no view loses them.
    keypoints = rng.uniform((75, 55, -300), (85, 65, 300), (7, 18, 3))
    keypoints[:, H36M18.root, 2] = 0
    keypoints[5:, :, 2] = np.nan
    labelled = np.ones((7, 18), bool)
    labelled[6, 3] = False
    return make_records([tmp_path / "mixed.jpg"] * 7, (160, 120), boxes, keypoints, labelled)


def test_people_with_and_without_depths_share_a_batch(mixed):
    still = THREE_D.model_copy(update={"flip_probability": 0.0})
    for augmentation in (still, THREE_D):
        batches = training_batches(
            mixed, H36M18, SMALL, augmentation, batch_size=4, seed=0, parts=(5, 2)
        )
        image, keypoints, weight = joined(batches.take(10))
        assert image.shape == (40, 64, 48, 3) and keypoints.shape == weight.shape == (40, 18, 3)
        assert np.isfinite(image).all() and np.isfinite(keypoints).all()
        # They take turns.
        deep, planar = weight[::2], weight[1::2]
        assert (deep[..., :2] == 1).all() and (deep[:, 1:, 2] == 1).all()
        assert (weight[..., 2][:, H36M18.root] == 0).all() and (planar[..., 2] == 0).all()
        np.testing.assert_array_equal(planar[..., 0], planar[..., 1])
        if augmentation is still:
            # Who it is: everybody of the larger part once an epoch, of the smaller by chance.
            assert ((keypoints[::2, 1:, 2] * 2000).round(1) != 0).all()
            people = [
                int(np.abs(mixed.keypoints[:5, :, 2] - depths * 2000).sum(axis=1).argmin())
                for depths in keypoints[::2, :, 2]
            ]
            assert all(sorted(people[i : i + 5]) == list(range(5)) for i in range(0, 20, 5))
        unlabelled = (planar[..., 0] == 0).sum(axis=1)
        assert set(unlabelled) == {0, 1}
        assert ((keypoints[weight == 0]) == 0).all()


def test_evaluation_supervises_joints_outside(mixed):
    keypoints = mixed.keypoints.copy()
    keypoints[0, 4] = (400, 60, 1500)
    records = replace(mixed, keypoints=keypoints)
    _, _, weight = joined(evaluation_batches(records, H36M18, SMALL, batch_size=7))
    assert (weight[0, 4] == 1).all()
    batches = training_batches(records, H36M18, SMALL, THREE_D, batch_size=7, seed=0)
    _, _, weight = joined(batches.take(1))
    gone = (weight[:, [4, H36M18.flip_permutation[4]]] == 0).all(axis=-1)
    assert gone.sum() == 1  # of the first person alone, who is in the batch once


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_noise_hides_the_person_in_mirrored_crops_too(tmp_path, flip_probability):
    Image.new("RGB", (400, 120)).save(tmp_path / "black.png")
    records = make_records(
        [tmp_path / "black.png"],
        (400, 120),
        [[20, 10, 80, 110]],
        np.full((1, 17, 2), 50.0),
        [[True] * 17],
    )
    augmentation = STILL.model_copy(
        update={"occlusion_area": 0.7, "flip_probability": flip_probability}
    )
    batches = training_batches(records, COCO17, PLAIN, augmentation, batch_size=60, seed=1)
    crops, _, _ = joined(batches.take(1))
    hidden = (crops > 0).any(axis=-1)
    # A rectangle has up to .7 of the box, which has 6000 of the 9375 px^2 of the crop.
    share = hidden.mean(axis=(1, 2))
    assert share.max() < 0.7 * 6000 / 9375 + 0.02
    assert share.mean() == pytest.approx(0.2, abs=0.06)
    # Most often over the middle, where the person is.
    assert hidden.mean(axis=0)[24:40, 18:30].mean() > 2 * hidden.mean(axis=0)[:, :6].mean()


def test_joints_outside_the_crop_keep_their_weight(crowd):
    keypoints = crowd.keypoints.copy()
    keypoints[:, 10] = [-200, 50]
    _, found, weight = joined(
        evaluation_batches(replace(crowd, keypoints=keypoints), COCO17, SMALL, batch_size=13)
    )
    assert (found[:, 10, 0] < -0.5).all() and (weight[:, 10] == 1).all()


def test_unlabelled_joints_weigh_nothing_even_where_they_are_nan(crowd, augmented):
    keypoints = crowd.keypoints.copy()
    keypoints[~crowd.labelled] = np.nan
    damaged = replace(crowd, keypoints=keypoints)
    found = samples(damaged, 52)
    assert all(np.isfinite(part).all() for part in found)
    assert (found[2] == 0).any()
    assert_same(found, augmented)
    evaluated = joined(evaluation_batches(damaged, COCO17, SMALL, batch_size=13))
    np.testing.assert_array_equal(evaluated[2][..., 0] > 0, crowd.labelled)
    assert (evaluated[1][~crowd.labelled] == 0).all()


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_what_is_painted_at_a_joint_is_at_its_target(tmp_path, flip_probability):
    """Image and joints go through the same flip, half body, scale and rotation."""
    joints = {"nose": (60, 40), "left_wrist": (95, 75), "right_knee": (50, 120)}
    mirrored = {"nose": "nose", "left_wrist": "right_wrist", "right_knee": "left_knee"}
    rows, columns = np.mgrid[:160, :140]
    dots = [np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18) for x, y in joints.values()]
    Image.fromarray(np.rint(np.stack(dots, -1) * 255).astype(np.uint8)).save(tmp_path / "dots.png")
    keypoints = np.random.default_rng(0).uniform((30, 20), (100, 140), (17, 2))
    for name, place in joints.items():
        keypoints[COCO17.joints.index(name)] = place
    records = make_records(
        [tmp_path / "dots.png"], (140, 160), [[30, 20, 100, 140]], [keypoints], [[True] * 17]
    )
    batches = training_batches(
        records,
        COCO17,
        replace(PLAIN, image_size=(128, 96)),
        Augmentation(flip_probability=flip_probability),
        batch_size=60,
        seed=3,
    )
    crops, targets, _ = joined(batches.take(1))
    compared = 0
    for channel, name in enumerate(joints):
        joint = COCO17.joints.index(mirrored[name] if flip_probability else name)
        for crop, target in zip(crops[..., channel], targets[:, joint], strict=True):
            place = (target + 0.5) * (96, 128)
            if (place < 20).any() or (place > (76, 108)).any():
                continue  # the dot is cut by the crop's edge
            y, x = np.mgrid[:128, :96]
            found = np.array([(crop * x).sum(), (crop * y).sum()]) / crop.sum()
            np.testing.assert_allclose(found, place, atol=0.15)
            compared += 1
    assert compared > 60
    assert np.ptp(targets[:, 0], axis=0).min() > 0.3  # the views do differ


# ---- order and repetition


def test_a_seed_decides_order_and_augmentation(crowd, augmented, order):
    assert_same(samples(crowd, 12), augmented)
    other = samples(crowd, 12, seed=6, augmentation=STILL)
    assert who(other[2]) != order[:12]
    other, _, _ = samples(crowd, 12, seed=6)
    seen = {image.tobytes() for image in augmented[0]}
    assert not seen & {image.tobytes() for image in other}


def test_augmentation_differs_between_epochs(crowd):
    one = crowd.take(slice(0, 1))
    images, keypoints, _ = samples(one, 8)
    assert len({image.tobytes() for image in images}) == 8
    assert len({joints.tobytes() for joints in keypoints}) == 8


@pytest.mark.parametrize("start", [13, 30])
def test_a_later_start_goes_on_as_if_never_interrupted(crowd, augmented, start):
    assert_same(samples(crowd, 12, start=start), [part[start:] for part in augmented])


def test_an_epoch_sees_everybody_once_in_an_order_of_its_own(order):
    epochs = [order[epoch * 13 : (epoch + 1) * 13] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(13)) not in epochs


def test_training_batches_are_full_and_evaluation_drops_nobody(crowd):
    batches = training_batches(crowd, COCO17, SMALL, STILL, batch_size=5, seed=0).take(6)
    assert [len(image) for image, _ in batches] == [5] * 6
    batches = evaluation_batches(crowd, COCO17, SMALL, batch_size=5)
    assert [len(image) for image, _ in batches] == [5, 5, 3]
    assert who(joined(batches)[2]) == list(range(13))


def test_a_sample_does_not_depend_on_its_batch(crowd, augmented):
    assert_same(samples(crowd, 6, batch_size=1), augmented)
    assert_same(joined(evaluation_batches(crowd, COCO17, SMALL, batch_size=1)),
                joined(evaluation_batches(crowd, COCO17, SMALL, batch_size=8)))  # fmt: skip


def test_nobody_is_an_error(crowd):
    nobody = crowd.take(slice(0, 0))
    with pytest.raises(DataError, match="no people to look at.*labelled.*detections are empty"):
        evaluation_batches(nobody, COCO17, SMALL, batch_size=2)
    with pytest.raises(DataError, match="no people to look at"):
        training_batches(nobody, COCO17, SMALL, STILL, batch_size=2, seed=0)


# ---- regions


def random_matrices(count: int, width: int, height: int) -> list[tf.Tensor]:
    """Crops of all sizes and turns, inside the image, over its edges and outside."""
    rng = np.random.default_rng(7)
    matrices = []
    for index in range(count):
        centre = rng.uniform((-0.4 * width, -0.4 * height), (1.4 * width, 1.4 * height))
        side = rng.uniform(15, 1.2 * height)
        turned = rng.uniform(-180, 180) if index % 3 else 0.0
        matrix = geometry.crop_affine(
            tf.constant(centre, tf.float32),
            tf.constant([0.75 * side, side], tf.float32),
            tf.constant(turned, tf.float32),
            (64, 48),
        )
        matrices.append(geometry.compose(matrix, geometry.mirror(width)) if index % 2 else matrix)
    return matrices


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("444.jpg", {"subsampling": 0}),
        ("420.jpg", {"subsampling": 2}),
        ("progressive.jpg", {"subsampling": 2, "progressive": True}),
        ("whole.png", {}),
    ],
)
def test_a_region_is_what_the_whole_image_shows(tmp_path, name, options):
    path = tmp_path / name
    photograph(331, 257).save(path, **options)
    whole = tf.constant(np.asarray(Image.open(path).convert("RGB")))
    wh = tf.constant([331, 257])
    matrices = tf.stack(random_matrices(60, 331, 257))
    crops = tf.data.Dataset.from_tensor_slices(matrices).map(
        lambda matrix: read_crop(tf.constant(str(path)), wh, matrix, (64, 48))
    )
    dark = 0
    for matrix, crop in zip(matrices, crops, strict=True):
        expected = geometry.warp(whole, matrix, (64, 48)).numpy()
        assert np.abs(crop - expected).max() <= 0.5
        dark += not expected.any()
    assert 2 < dark < 40  # crops without any pixel of the image were among them
    np.testing.assert_array_equal(read_crop(tf.constant(str(path)), wh, matrix, (64, 48)), crop)


# ---- kinds of images


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def in_16_bits(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 256 + 200)


KINDS = {
    "colour JPEG": ("jpeg", lambda image: image),
    "grey JPEG": ("jpeg", lambda image: image.convert("L")),
    "CMYK JPEG": ("jpeg", lambda image: image.convert("CMYK")),
    "PNG": ("png", lambda image: image),
    "grey PNG": ("png", lambda image: image.convert("L")),
    "PNG with a palette": ("png", lambda image: image.quantize(32)),
    "PNG with alpha": ("png", with_alpha),
    "16-bit PNG": ("png", in_16_bits),
    "GIF": ("gif", lambda image: image.quantize(32)),
    "BMP": ("bmp", lambda image: image),
    "WebP": ("webp", lambda image: image),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_other_kinds_named_jpg_give_the_right_colours(tmp_path, kind):
    file_format, convert = KINDS[kind]
    path = tmp_path / "photograph.jpg"
    original = photograph(96, 80)
    convert(original.copy()).save(path, format=file_format)
    with Image.open(path) as image:
        # Pillow clips 16 bits to 8 where the high byte is meant.
        expected = original.convert("L") if kind == "16-bit PNG" else image
        expected = np.asarray(expected.convert("RGB")).astype(float)
    crop = read_crop(tf.constant(str(path)), tf.constant([96, 80]), tf.eye(2, 3), (80, 96))
    assert np.abs(crop - expected).max() <= 1.0
    assert np.ptp(expected) > 150
    records = make_records([path], (96, 80), [[5, 5, 90, 75]], np.ones((1, 17, 2)), [[1] * 17])
    assert check_images(records) == {}
    image, _, _ = joined(evaluation_batches(records, COCO17, PLAIN, batch_size=1))
    assert np.isfinite(image).all() and np.ptp(image) > 100


# ---- images that cannot be used


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_png(path):
    photograph(96, 80).save(path, format="png")
    truncated(path)


def another_size(path):
    photograph(80, 96).save(path)


def another_size_png(path):
    photograph(64, 80).save(path, format="png")


DAMAGES = {
    "truncated": (truncated, "cannot be read \\(.*JPEG.*\\)"),
    "a JPEG header alone": (
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        "cannot be read \\(.*JPEG.*\\)",
    ),
    "truncated PNG": (truncated_png, "cannot be read \\(Invalid PNG data.*\\)"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read \\(Input is empty\\)"),
    "no image": (
        lambda path: path.write_text("<html>404</html>"),
        "cannot be read \\(Unknown image file format.*\\)",
    ),
    "another size": (another_size, "has 80x96 pixels where the annotations say 96x80"),
    "PNG of another size": (another_size_png, "has 64x80 pixels where the annotations say 96x80"),
    "gone": (lambda path: path.unlink(), "cannot be read \\(No such file or directory\\)"),
}


@pytest.mark.parametrize(
    ("damage", "training"),
    [(damage, False) for damage in DAMAGES]
    + [(damage, True) for damage in ("truncated", "another size", "gone")],
)
def test_a_bad_image_is_named(write_coco, damage, training):
    change, why = DAMAGES[damage]
    annotations, images = write_coco()
    records = CocoSource(annotations, images).records
    bad = images / "photo_1.jpg"
    change(bad)
    if training:
        batches = training_batches(records, COCO17, SMALL, STILL, batch_size=3, seed=0).take(2)
    else:
        batches = evaluation_batches(records, COCO17, SMALL, batch_size=2)
    pattern = (
        f"^{re.escape(str(bad))}: {why}; expected a whole JPEG, PNG, GIF, BMP or WebP image of the "
        r"annotated size \(a run that is started with data.on_bad_image: skip leaves such images "
        r"out\)$"
    )
    with pytest.raises(DataError, match=pattern), named_image_errors(records, SMALL):
        for _ in batches:
            pass


def test_several_bad_images_are_counted(write_coco):
    annotations, images = write_coco(people=4)
    records = CocoSource(annotations, images).records
    for index in (1, 3):
        (images / f"photo_{index}.jpg").write_bytes(b"")
    with (
        pytest.raises(DataError, match=r"photo_1\.jpg: .*\(2 images have such faults\)"),
        named_image_errors(records, SMALL),
    ):
        list(evaluation_batches(records, COCO17, SMALL, batch_size=4))


def test_a_failure_that_is_no_image_s_stays_what_it_is(crowd):
    with pytest.raises(tf.errors.InvalidArgumentError), named_image_errors(crowd, SMALL):
        tf.debugging.assert_equal(1, 2)
    with pytest.raises(ZeroDivisionError), named_image_errors(crowd, SMALL):
        _ = 1 / 0


def test_skipped_images_are_named_and_counted(write_coco, caplog):
    def second_person(dataset):
        dataset["annotations"].append({**dataset["annotations"][1], "id": 600})

    annotations, images = write_coco(second_person, people=4)
    source = CocoSource(annotations, images)
    (images / "photo_1.jpg").write_bytes(b"")
    another_size(images / "photo_2.jpg")
    with caplog.at_level(logging.WARNING):
        rows = usable_rows(source.records)
    assert rows.tolist() == [True, False, False, True, False]
    empty, other, summary = (record.getMessage() for record in caplog.records)
    assert empty == f"skipping image {images / 'photo_1.jpg'}: cannot be read (Input is empty)"
    assert other.startswith(f"skipping image {images / 'photo_2.jpg'}: has 80x96 pixels")
    assert summary == "skipped 2 images with 3 people; 2 people are left"
    usable = source.take(rows).records
    assert usable.person_ids.tolist() == [501, 504]
    assert len(joined(evaluation_batches(usable, COCO17, SMALL, batch_size=2))[0]) == 2


def test_where_all_images_are_good_nothing_is_said(crowd, caplog):
    assert usable_rows(crowd).all()
    assert usable_rows(crowd.take(slice(0, 0))).tolist() == []
    assert not caplog.records


def test_no_usable_image_is_an_error(write_coco):
    annotations, images = write_coco(people=2)
    records = CocoSource(annotations, images).records
    for path in images.iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"photo_0\.jpg: cannot be read .*, and none of the 2 images can be used; expected",
    ):
        usable_rows(records)
