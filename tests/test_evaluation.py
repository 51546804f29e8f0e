"""Flip test, decoding to image pixels and scoring of everybody."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf.data.crops import CropFormat, decode
from rle_tf.data.pipeline import evaluation_batches
from rle_tf.data.source import Records
from rle_tf.errors import DataError, ModelError
from rle_tf.evaluation import (
    check_skeleton,
    evaluate,
    flip_back,
    forward_function,
    of_pixels,
    pixel_format,
    predict_outputs,
    predict_poses,
)
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17, LSP14

INPUT = CropFormat((64, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def regressor() -> keras.Model:
    """A regressor whose mu and sigma differ clearly from image to image."""
    keras.utils.set_random_seed(2)
    image = keras.Input((64, 32, 3))
    x = keras.layers.Conv2D(8, 5, 4, "same", activation="relu")(image)
    backbone = keras.Model(image, keras.layers.Conv2D(8, 3, 2, "same")(x))
    model = build_regressor(backbone, COCO17, 2, (64, 32))
    for name in ("mu_dense", "sigma_dense"):
        kernel = model.get_layer(name).kernel
        kernel.assign(0.3 * keras.random.normal(kernel.shape, seed=3))
    return model


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Records:
    """Seven people in three photographs of noise; each box of another size."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(3):
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        noise.resize((120, 90)).save(folder / f"{i}.jpg")
    low = rng.uniform(0, 30, (7, 2))
    return Records(
        image_paths=np.array([str(folder / f"{i % 3}.jpg") for i in range(7)], dtype=object),
        image_wh=np.full((7, 2), [120, 90], np.int32),
        boxes_xyxy=np.concatenate([low, low + rng.uniform(20, 50, (7, 2))], axis=1),
        keypoints=np.zeros((7, 17, 2), np.float32),
        labelled=np.ones((7, 17), bool),
        cameras=np.full((7, 5), np.nan),
        areas=np.full(7, 1000.0),
        image_ids=np.arange(7) % 3,
        person_ids=np.arange(7),
        box_scores=np.linspace(0, 0.6, 7),
    )


class RecordingSource:
    """A source that is scored by how many poses it is given."""

    skeleton = COCO17

    def __init__(self, records: Records):
        self.records = records

    def results(self, poses):
        return [{"score": float(score)} for score in poses.person_scores]

    def score(self, poses):
        return {"people": float(len(poses.keypoints))}


def assert_same_poses(found, expected, rtol=1e-5):
    for name, value in vars(expected).items():
        if value is None:
            assert vars(found)[name] is None
        else:
            np.testing.assert_allclose(vars(found)[name], value, rtol=rtol, atol=1e-4, err_msg=name)


def test_flip_test_and_decoding_give_the_reference(golden):
    arrays = golden("decode2d")

    def output(suffix):
        sigma = np.repeat(1 - arrays[f"score{suffix}"], 2, axis=-1)
        return {"mu": tf.constant(arrays[f"mu{suffix}"]), "sigma": tf.constant(sigma)}

    flipped = flip_back(output("_of_flipped_image"), COCO17.flip_permutation, 1 / 192)
    average = {key: (output("")[key] + flipped[key]) / 2 for key in flipped}
    np.testing.assert_allclose(average["mu"], arrays["mu_flip_averaged"], atol=1e-6)

    poses = decode(average, arrays["crop_box_xyxy"], 0.0)
    np.testing.assert_allclose(poses.keypoints, arrays["keypoints_px"], atol=1e-3)
    np.testing.assert_allclose(poses.joint_scores, arrays["score_flip_averaged"][..., 0], atol=1e-6)
    np.testing.assert_allclose(
        poses.person_scores, arrays["person_score_without_detection"], atol=1e-5
    )


def test_scores_and_sigma_of_a_person_by_hand():
    output = {
        "mu": np.array([[[0.0, 0.0], [0.5, -0.5]]]),
        "sigma": np.array([[[0.1, 0.3], [0.2, 0.6]]]),
    }
    poses = decode(output, np.array([[10.0, 20.0, 50.0, 100.0]]), np.array([0.25]))
    np.testing.assert_allclose(poses.keypoints, [[[30, 60], [50, 20]]])
    np.testing.assert_allclose(poses.sigmas, [[[4, 24], [8, 48]]])
    np.testing.assert_allclose(poses.joint_scores, [[0.8, 0.6]])
    np.testing.assert_allclose(poses.person_scores, [0.25 + 0.7 + 0.8])


@pytest.mark.parametrize("dims", [2, 3])
def test_flipping_twice_changes_nothing(dims):
    rng = np.random.default_rng(0)
    output = {
        key: tf.constant(rng.normal(size=(3, 17, dims)).astype("float32"))
        for key in ("mu", "sigma")
    }
    once = flip_back(output, COCO17.flip_permutation, 1 / 96)
    assert not np.allclose(once["mu"], output["mu"])
    twice = flip_back(once, COCO17.flip_permutation, 1 / 96)
    for key, value in output.items():
        np.testing.assert_allclose(twice[key], value, atol=1e-6)
    # Depth has no side, and left is right.
    left, right = COCO17.flip_pairs[0]
    np.testing.assert_array_equal(once["mu"][:, left, 2:], output["mu"][:, right, 2:])


def test_flipping_mirrors_pixel_positions():
    """Pixel p of a row of W pixels is pixel W - 1 - p of the mirrored row."""
    width, pixels = 96, np.array([0.0, 10.0, 95.0])
    mu = np.zeros((3, 17, 2), "float32")
    mu[..., 0] = (pixels / width - 0.5)[:, None]
    flipped = flip_back({"mu": mu, "sigma": mu}, COCO17.flip_permutation, 1 / width)
    np.testing.assert_allclose(
        (flipped["mu"][:, 0, 0] + 0.5) * width, width - 1 - pixels, atol=1e-4
    )


def test_the_flip_test_makes_mirrored_crops_agree(regressor):
    forward = forward_function(regressor, COCO17, INPUT, flip_test=True)
    image = np.random.default_rng(1).normal(size=(2, 64, 32, 3)).astype("float32")
    output, mirrored = forward(image), forward(image[:, :, ::-1].copy())
    for key, value in flip_back(mirrored, COCO17.flip_permutation, 1 / 32).items():
        np.testing.assert_allclose(value, output[key], atol=1e-5)
    # A symmetric image has symmetric poses, and without the flip test it has not.
    symmetric = image + image[:, :, ::-1]
    pose = forward(symmetric)
    back = flip_back(pose, COCO17.flip_permutation, 1 / 32)
    np.testing.assert_allclose(back["mu"], pose["mu"], atol=1e-5)
    plain = forward_function(regressor, COCO17, INPUT, flip_test=False)(symmetric)
    assert not np.allclose(
        flip_back(plain, COCO17.flip_permutation, 1 / 32)["mu"], plain["mu"], atol=1e-2
    )


def flip_tested_with_mean_maps(regressor):
    """Two images, the flip test's output, which mirroring them does not change, and the mean of
    their maps and those of their mirror images."""
    image = np.random.default_rng(1).normal(size=(2, 64, 32, 3)).astype("float32")
    forward = forward_function(regressor, COCO17, INPUT, flip_test=True)
    output, mirrored = forward(image), forward(image[:, :, ::-1].copy())
    for key, value in flip_back(mirrored, COCO17.flip_permutation, 1 / 32).items():
        np.testing.assert_allclose(value, output[key], atol=1e-5)

    maps_of = keras.Model(regressor.input, regressor.get_layer("score_maps").output)
    maps, other = maps_of(image).numpy(), maps_of(image[:, :, ::-1]).numpy()
    mean = (maps + other[:, :, ::-1][..., list(COCO17.flip_permutation)]) / 2
    return image, output, mean


def test_the_flip_test_of_heatmaps_averages_maps():
    keras.utils.set_random_seed(0)
    regressor = build_regressor("resnet18", COCO17, 2, (64, 32), head="heatmap", deconvolutions=1)
    for layer in regressor.layers:  # maps with peaks, not all but flat ones
        if layer.name in ("deconv_0", "score_maps"):
            layer.kernel.assign(100 * layer.kernel)
    image, output, mean = flip_tested_with_mean_maps(regressor)
    wanted = mean.transpose(0, 3, 1, 2).reshape(2, 17, -1).argmax(axis=-1)
    row, column = np.divmod(wanted, mean.shape[2])
    x, y = np.moveaxis(output["mu"].numpy() + [1 / 64, 0], -1, 0)
    # Within the quarter of a cell that is added towards the higher neighbour.
    np.testing.assert_allclose((x + 0.5) * mean.shape[2] - 0.5, column, atol=0.26)
    np.testing.assert_allclose((y + 0.5) * mean.shape[1] - 0.5, row, atol=0.26)
    apart = forward_function(regressor, COCO17, INPUT, flip_test=False)
    back = flip_back(apart(image[:, :, ::-1].copy()), COCO17.flip_permutation, 1 / 32)
    places = (apart(image)["mu"] + back["mu"]) / 2
    assert np.abs(places - output["mu"]).max() > 0.1  # means of places are elsewhere


@pytest.mark.parametrize(("window", "map_sigma"), [(None, False), (1.0, True)])
def test_the_flip_test_of_a_soft_argmax_averages_maps(window, map_sigma):
    keras.utils.set_random_seed(0)
    regressor = build_regressor(
        "resnet18", COCO17, 2, (64, 32), head="soft_argmax", deconvolutions=1,
        map_window=window, map_sigma=map_sigma,
    )  # fmt: skip
    for name, factor in (("deconv_0", 100), ("score_maps", 20), ("sigma_dense", 100)):
        kernel = regressor.get_layer(name).kernel
        kernel.assign(factor * kernel)
    image, output, mean = flip_tested_with_mean_maps(regressor)
    height, width = mean.shape[1:3]
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    scores = mean.reshape(2, -1, 17).transpose(0, 2, 1)
    if window:
        highest = cells[scores.argmax(axis=-1)]
        away = cells - highest[:, :, None]
        scores = scores - (away**2).sum(axis=-1) / (2 * window**2)
    weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
    wanted = (weight / weight.sum(axis=-1, keepdims=True)) @ ((cells + 0.5) / [width, height] - 0.5)
    np.testing.assert_allclose(output["mu"].numpy() + [1 / 64, 0], wanted, atol=1e-4)
    apart = forward_function(regressor, COCO17, INPUT, flip_test=False)
    back = flip_back(apart(image[:, :, ::-1].copy()), COCO17.flip_permutation, 1 / 32)
    assert np.abs((apart(image)["mu"] + back["mu"]) / 2 - output["mu"]).max() > 0.05
    if not map_sigma:  # no map has a part in it
        sigma = (apart(image)["sigma"] + back["sigma"]) / 2
        np.testing.assert_allclose(output["sigma"], sigma, atol=1e-5)


def test_sigma_is_the_exponential_of_log_sigma(regressor):
    image = np.random.default_rng(1).normal(size=(2, 64, 32, 3)).astype("float32")
    output, expected = (
        forward_function(regressor, COCO17, INPUT, flip_test=False)(image),
        regressor(image),
    )
    np.testing.assert_allclose(output["mu"], expected["mu"], atol=1e-6)
    np.testing.assert_allclose(output["sigma"], np.exp(expected["log_sigma"]), rtol=1e-5)


@pytest.mark.parametrize("flip_test", [False, True])
def test_nobody_is_dropped_and_batches_do_not_matter(regressor, records, flip_test):
    together = predict_poses(regressor, records, COCO17, INPUT, batch_size=7, flip_test=flip_test)
    assert together.keypoints.shape == (7, 17, 2)
    assert np.abs(np.diff(together.keypoints, axis=0)).max(axis=(1, 2)).min() > 1
    sizes = []
    in_threes = predict_poses(
        regressor, records, COCO17, INPUT, batch_size=3, flip_test=flip_test,
        on_batch=sizes.append,
    )  # fmt: skip
    assert sizes == [3, 3, 1]
    assert_same_poses(in_threes, together)
    alone = predict_poses(
        regressor, records.take(np.array([4])), COCO17, INPUT, flip_test=flip_test
    )
    assert_same_poses(alone, together.take([4]))


def test_poses_lie_where_the_crops_lie(regressor, records):
    """The same crop content at another place and scale of the image gives the same unit pose."""
    poses = predict_poses(regressor, records, COCO17, INPUT, flip_test=False)
    crop = poses.crop_boxes_xyxy
    unit = (poses.keypoints - crop[:, None, :2]) / (crop[:, 2:] - crop[:, :2])[:, None] - 0.5
    sides = crop[:, 2:] - crop[:, :2]
    np.testing.assert_allclose(sides[:, 0] / sides[:, 1], 32 / 64, rtol=1e-5)
    boxes = records.boxes_xyxy
    np.testing.assert_allclose(
        (crop[:, :2] + crop[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2, rtol=1e-5
    )
    assert np.all(poses.sigmas > 0) and np.all(poses.sigmas < sides[:, None])
    assert np.isfinite(unit).all()


def test_a_function_of_uint8_crops_sees_what_the_regressor_sees(regressor, records):
    forward, seen = forward_function(regressor, COCO17, INPUT, False), []

    def of_uint8(crops):
        seen.append(crops)
        return forward(INPUT.normalise(tf.cast(crops, tf.float32)))

    arguments = (records, COCO17, pixel_format(INPUT))
    found = predict_outputs(of_pixels(of_uint8), *arguments, batch_size=3)
    wanted = predict_outputs(forward, records, COCO17, INPUT)
    assert [(crops.dtype, crops.shape[0]) for crops in seen] == [(tf.uint8, n) for n in (3, 3, 1)]
    assert np.ptp(seen[0]) > 100
    for key in ("mu", "sigma"):
        assert found[key].shape == (7, 17, 2)
        # Half a grey level apart, and so not the same.
        np.testing.assert_allclose(found[key], wanted[key], rtol=0, atol=0.005)
        assert not np.array_equal(found[key], wanted[key])
        assert np.ptp(wanted[key], axis=0).max() > 0.02


def test_pixels_keep_their_values(records):
    crops, _ = next(iter(evaluation_batches(records, COCO17, pixel_format(INPUT), batch_size=7)))
    normalised, _ = next(iter(evaluation_batches(records, COCO17, INPUT, batch_size=7)))
    np.testing.assert_allclose(INPUT.normalise(crops), normalised, atol=1e-5)


def test_evaluate_scores_every_person(regressor, records):
    seen = []
    scores, results = evaluate(
        regressor, RecordingSource(records), INPUT, batch_size=4, on_batch=seen.append
    )
    assert scores == {"people": 7.0}
    assert seen == [4, 3]
    poses = predict_poses(regressor, records, COCO17, INPUT)
    np.testing.assert_allclose([r["score"] for r in results], poses.person_scores, rtol=1e-5)


def test_a_regressor_of_another_skeleton(regressor, records):
    message = r"regressor 'regressor' gives 17 joints; expected the 14 of skeleton 'lsp14'"
    with pytest.raises(ModelError, match=message):
        check_skeleton(regressor, LSP14)
    with pytest.raises(ModelError, match=message):
        predict_poses(regressor, records, LSP14, INPUT)


def test_a_regressor_of_another_image_size(regressor, records):
    wide = CropFormat((64, 64), INPUT.mean, INPUT.std)
    with pytest.raises(ModelError, match=r"takes images of 64x32 \(height x width\); found data"):
        predict_poses(regressor, records, COCO17, wide)


def test_an_image_that_cannot_be_read_is_named(regressor, records, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    paths = records.image_paths.copy()
    paths[5] = str(tmp_path / "bad.jpg")
    spoilt = Records(**{**vars(records), "image_paths": paths})
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be read"):
        predict_poses(regressor, spoilt, COCO17, INPUT, batch_size=2)


def test_nobody_to_look_at(regressor, records):
    with pytest.raises(DataError, match="no people to look at"):
        predict_poses(regressor, records.take(slice(0)), COCO17, INPUT)
