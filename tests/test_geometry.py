"""Boxes, crops and coordinates, against the reference and against what must hold."""

import numpy as np
import pytest
import tensorflow as tf

from rle_tf import geometry

SIZE = (256, 192)


def affine(centre=(100.0, 80.0), size=(90.0, 120.0), rotation=0.0, image_size=SIZE):
    return geometry.crop_affine(
        tf.constant(centre), tf.constant(size), tf.constant(rotation), image_size
    )


def test_clipped_boxes_and_crop_boxes_are_the_reference_s_to_the_last_bit(golden):
    sample = golden("coco_samples")
    image_wh = np.array([[640, 480]] * 6)
    image_wh[2:4, 0] = 10_000  # wide enough for what the reference clipped by its own images
    for row, box in enumerate(sample["bbox_xyxy_clipped"]):
        left, top, right, bottom = box
        crop = geometry.crop_boxes(box[None], SIZE)
        np.testing.assert_array_equal(crop[0], sample["crop_box_xyxy"][row])
        xywh = np.array([[left, top, right - left + 1, bottom - top + 1]])
        np.testing.assert_allclose(geometry.clip_boxes(xywh, image_wh[[row]])[0], box, atol=1e-9)


def test_boxes_are_clipped_to_the_last_pixel():
    boxes = geometry.clip_boxes(np.array([[-10, -5, 30, 1000]]), np.array([[100, 50]]))
    assert boxes.tolist() == [[0, 0, 19, 49]]


def test_a_box_outside_the_image_has_no_area_left():
    left, top, right, bottom = geometry.clip_boxes(
        np.array([[200, 10, 30, 30]]), np.array([[100, 50]])
    )[0]
    assert right - left == 0


@pytest.mark.parametrize("box", [(0, 0, 50, 10), (5, 5, 20, 90), (1, 2, 31, 42)])
def test_crop_boxes_have_the_input_s_aspect_and_hold_the_box(box):
    crop = geometry.crop_boxes(np.array([box]), SIZE, margin=1.25)[0].numpy()
    width, height = crop[2:] - crop[:2]
    assert width / height == pytest.approx(SIZE[1] / SIZE[0], rel=1e-6)
    assert (crop[:2] <= box[:2]).all() and (crop[2:] >= box[2:]).all()


def test_augmentation_matrices_are_the_reference_s(golden):
    sample = golden("coco_samples")
    for row, crop in enumerate(sample["crop_box_xyxy"]):
        centre, size = (crop[:2] + crop[2:]) / 2, crop[2:] - crop[:2]
        if sample["augment_flip"][row]:
            # The image's width shows in the mirrored centre, which the matrix maps to the middle.
            linear, offset = sample["affine_2x3"][row][:, :2], sample["affine_2x3"][row][:, 2]
            middle = np.linalg.solve(linear, np.array([96, 128]) - offset)
            width = round(float(middle[0] + centre[0] + 1))
            centre = geometry.transform_points(geometry.mirror(width), tf.constant(centre)).numpy()
        matrix = affine(
            centre,
            size * np.float32(sample["augment_scale"][row]),
            np.float32(sample["augment_rotation_deg"][row]),
        )
        np.testing.assert_allclose(matrix, sample["affine_2x3"][row], atol=1e-4)


def test_a_crop_box_s_corners_are_the_crop_s():
    matrix = affine()
    corners = geometry.transform_points(matrix, tf.constant([[55.0, 20.0], [145.0, 140.0]]))
    np.testing.assert_allclose(corners, [[0, 0], [192, 256]], atol=1e-4)


def test_rotation_keeps_the_centre_and_turns_anticlockwise():
    matrix = affine(rotation=90.0)
    centre, right = geometry.transform_points(matrix, tf.constant([[100.0, 80.0], [110.0, 80.0]]))
    np.testing.assert_allclose(centre, [96, 128], atol=1e-4)
    assert float(right[0]) == pytest.approx(96, abs=1e-3)
    assert right[1] < 128  # what was to the right is now above


def test_inverse_and_composition():
    matrix = affine(rotation=33.0)
    points = tf.random.stateless_uniform((20, 2), (1, 2), 0, 300)
    there = geometry.transform_points(matrix, points)
    back = geometry.transform_points(geometry.invert(matrix), there)
    np.testing.assert_allclose(back, points, atol=1e-2)
    second = affine(rotation=-10.0, centre=(60.0, 70.0))
    np.testing.assert_allclose(
        geometry.transform_points(geometry.compose(second, matrix), points),
        geometry.transform_points(second, there),
        rtol=1e-4,
    )


def test_mirroring_twice_changes_nothing():
    twice = geometry.compose(geometry.mirror(640), geometry.mirror(640))
    np.testing.assert_allclose(twice, np.eye(3)[:2])


def test_decoding_is_the_inverse_of_the_crop():
    box = np.array([[30.0, 40.0, 120.0, 160.0]])
    centre, size = (box[0, :2] + box[0, 2:]) / 2, box[0, 2:] - box[0, :2]
    points = np.random.default_rng(0).uniform(0, 200, (1, 17, 2))
    crop_px = geometry.transform_points(
        affine(centre.astype("f4"), size.astype("f4")), tf.constant(points[0], tf.float32)
    )
    unit = crop_px.numpy() / (192, 256) - 0.5
    np.testing.assert_allclose(geometry.unit_to_image(unit[None], box), points, atol=1e-3)
    np.testing.assert_allclose(
        geometry.unit_to_image_scale(np.full((1, 17, 2), 0.1), box)[0, 0], [9, 12]
    )


def test_decoding_is_the_reference_s(golden):
    decoded = golden("decode2d")
    pixels = geometry.unit_to_image(decoded["mu_flip_averaged"], decoded["crop_box_xyxy"])
    np.testing.assert_allclose(pixels, decoded["keypoints_px"], atol=1e-3)


@pytest.mark.parametrize("rotation", [25.0, 0.0])
def test_the_warp_samples_like_opencv(rotation):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    image = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (320, 240))
    matrix = affine((150.0, 100.0), (200.0, 266.7), rotation).numpy()
    expected = cv2.warpAffine(image, matrix, (192, 256), flags=cv2.INTER_LINEAR)
    inside = cv2.warpAffine(np.full((240, 320), 255, np.uint8), matrix, (192, 256)) == 255
    found = geometry.warp(tf.constant(image), tf.constant(matrix), SIZE).numpy()
    assert np.abs(found - expected)[inside].max() <= 1.0 + 0.5  # OpenCV rounds


@pytest.mark.parametrize("mirrored", [False, True])
def test_upright_crops_are_those_of_any_transform(mirrored):
    """They are made by another operation."""
    rng = np.random.default_rng(int(mirrored))
    for _ in range(40):
        image = rng.integers(0, 256, (*rng.integers(1, 60, 2), 3), dtype=np.uint8)
        scale = rng.uniform(0.3, 4, 2) * (-1 if mirrored else 1, 1)
        offset = rng.uniform(-60, 90, (2, 1))
        upright = np.concatenate([np.diag(scale), offset], axis=1).astype("float32")
        # Turned by so little that no pixel moves.
        turned = upright + np.float32([[0, 1e-7, 0], [0, 0, 0]])
        found, wanted = (geometry.warp(image, tf.constant(m), (64, 32)) for m in (upright, turned))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.1)


def test_warping_in_a_dataset_is_warping_eagerly():
    image = tf.cast(tf.random.stateless_uniform((50, 60, 3), (0, 1), 0, 255), tf.uint8)
    matrix = affine((30.0, 25.0), (40.0, 53.3), 10.0)
    mapped = tf.data.Dataset.from_tensors(matrix).map(lambda m: geometry.warp(image, m, SIZE))
    np.testing.assert_array_equal(next(iter(mapped)), geometry.warp(image, matrix, SIZE))


# Poses in millimetres


def random_cameras(rng, people):
    return rng.uniform((1100, 1100, 480, 480, 3000), (1200, 1200, 520, 520, 7000), (people, 5))


def random_similarities(rng, count, dimensions=3):
    """Rotations (N, D, D), scales (N, 1, 1) and translations (N, 1, D)."""
    turns, _ = np.linalg.qr(rng.normal(size=(count, dimensions, dimensions)))
    turns[np.linalg.det(turns) < 0, :, 0] *= -1
    return turns, rng.uniform(0.2, 5, (count, 1, 1)), rng.normal(0, 1e3, (count, 1, dimensions))


def test_camera_coordinates_are_the_reference_s(golden):
    arrays = golden("h36m_metrics")
    cameras = np.concatenate(
        [arrays["focal_px"], arrays["principal_point_px"], arrays["root_cam_mm"][:, 2:]], axis=1
    )
    keypoints = arrays["uvd"] * (1, 1, geometry.DEPTH_MM)
    found = geometry.image_to_camera(keypoints, cameras)[:, :17]
    target = arrays["joints_cam_mm"][:, :17]
    errors_mm = np.linalg.norm((found - found[:, :1]) - (target - target[:, :1]), axis=-1)
    np.testing.assert_allclose(errors_mm, arrays["per_joint_error_mm"], rtol=1e-9)


def test_the_image_is_the_inverse_of_the_camera():
    rng = np.random.default_rng(0)
    cameras = random_cameras(rng, 5)
    keypoints = rng.uniform((0, 0, -900), (1000, 1000, 900), (5, 18, 3))
    joints_mm = geometry.image_to_camera(keypoints, cameras)
    np.testing.assert_allclose(geometry.camera_to_image(joints_mm, cameras), keypoints, atol=1e-8)
    assert joints_mm.dtype == np.float64 and (joints_mm[..., 2] > 0).all()


def test_the_principal_point_is_straight_ahead_and_down_is_down():
    camera = np.array([[1000.0, 500.0, 400.0, 300.0, 5000.0]])
    found = geometry.image_to_camera(np.array([[[400, 300, 0], [500, 350, -1000]]]), camera)
    np.testing.assert_allclose(found, [[[0, 0, 5000], [400, 400, 4000]]])


def test_a_camera_that_is_not_known_gives_nan_for_its_row_alone():
    cameras = random_cameras(np.random.default_rng(0), 3)
    cameras[1] = np.nan
    found = geometry.image_to_camera(np.ones((3, 4, 3)), cameras)
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [False, True, False]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_alignment_undoes_a_similarity(dimensions):
    rng = np.random.default_rng(1)
    references = rng.normal(0, 300, (20, 17, dimensions))
    turns, scales, shifts = random_similarities(rng, 20, dimensions)
    points = scales * (references @ turns) + shifts
    np.testing.assert_allclose(geometry.procrustes_align(points, references), references, atol=1e-8)


def test_alignment_does_not_see_a_similarity_of_what_it_aligns():
    rng = np.random.default_rng(2)
    references = rng.normal(0, 300, (20, 17, 3))
    points = references + rng.normal(0, 80, references.shape)
    turns, scales, shifts = random_similarities(rng, 20)
    found = geometry.procrustes_align(points, references)
    moved = geometry.procrustes_align(scales * (points @ turns) + shifts, references)
    np.testing.assert_allclose(moved, found, atol=1e-8)


@pytest.mark.parametrize("mirroring", [1, -1])
def test_no_similarity_near_the_alignment_is_closer(mirroring):
    rng = np.random.default_rng(3)
    references = rng.normal(0, 300, (4, 17, 3))
    points = (references + rng.normal(0, 200, references.shape)) * (mirroring, 1, 1)
    aligned = geometry.procrustes_align(points, references)
    least = np.square(aligned - references).sum(axis=(1, 2))
    for axis in range(3):
        for step in (-0.02, 0.02):
            turn = np.eye(3)
            other = [index for index in range(3) if index != axis]
            turn[np.ix_(other, other)] = [
                [np.cos(step), -np.sin(step)],
                [np.sin(step), np.cos(step)],
            ]
            shift = np.eye(3)[axis] * 100 * step
            for near in (aligned @ turn, aligned * (1 + step), aligned + shift):
                assert (np.square(near - references).sum(axis=(1, 2)) > least).all()


def test_alignment_turns_but_never_mirrors():
    rng = np.random.default_rng(4)
    references = rng.normal(0, 300, (20, 17, 3))
    found = geometry.procrustes_align(references * (-1, 1, 1), references)
    assert (np.linalg.norm(found - references, axis=-1).mean(axis=1) > 50).all()
    # The linear map that was found, by least squares, keeps the handedness.
    centred = references * (-1, 1, 1) - (references * (-1, 1, 1)).mean(axis=1, keepdims=True)
    for before, after in zip(centred, found - found.mean(axis=1, keepdims=True), strict=True):
        linear = np.linalg.lstsq(before, after, rcond=None)[0]
        assert np.linalg.det(linear) > 0
        np.testing.assert_allclose(
            linear @ linear.T / linear[0].dot(linear[0]), np.eye(3), atol=1e-9
        )


def test_flat_poses_and_single_points_are_aligned_too():
    rng = np.random.default_rng(5)
    references = rng.normal(0, 300, (4, 17, 3))
    points = references.copy()
    points[0] = 1234.1  # one point
    points[1, :, 2] = 0  # a plane
    points[2, :, 1:] = 0  # a line
    references[3] = 77.7
    found = geometry.procrustes_align(points, references)
    assert np.isfinite(found).all()
    for row in (0, 3):
        mean = np.broadcast_to(references[row].mean(axis=0), (17, 3))
        np.testing.assert_allclose(found[row], mean, atol=1e-8)
    flat = references[1] * (1, 1, 0)
    turned = (flat @ random_similarities(rng, 1)[0][0])[None]
    np.testing.assert_allclose(geometry.procrustes_align(turned, flat[None])[0], flat, atol=1e-8)
    nobody = np.zeros((0, 17, 3))
    assert geometry.procrustes_align(nobody, nobody).shape == (0, 17, 3)
