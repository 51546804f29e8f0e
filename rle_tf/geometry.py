"""Where things are: boxes, crops of a person, and coordinates in and out of a crop.

Three frames are used throughout:
    image   pixels of the photograph, x right and y down, pixel centres at whole numbers;
    crop    pixels of the network's input, (width, height) = (W, H);
    unit    crop pixels / (W, H) - 0.5, what the regressor sees and says.

Boxes are arrays (..., 4), `_xywh` (left, top, width, height) or `_xyxy` (left, top, right,
bottom), in image pixels. The conventions are those of the authors' code, so that published
weights see the crops that they were trained on.
"""

import numpy as np
import tensorflow as tf

# Of unit depth: z = millimetres relative to the root / this.
DEPTH_MM = 2000.0

# What a regressor says of a coordinate that is known by definition, as the root's depth is: sigma
# is the smallest of the authors' code, to which training takes it there. Losses pass over it.
KNOWN_LOG_SIGMA = np.log(np.float32(1e-9))


def clip_boxes(boxes_xywh: np.ndarray, image_wh: np.ndarray) -> np.ndarray:
    """Corners of boxes, clipped to their images.

    The right and bottom edges are the last pixels inside (left + width - 1).

    Args:
        boxes_xywh: (N, 4).
        image_wh: (N, 2) width and height of the image of each box.

    Returns:
        `boxes_xyxy` (N, 4) float64. A box without pixels inside its image has no area there.
    """
    boxes_xywh = np.asarray(boxes_xywh, np.float64)
    low = boxes_xywh[:, :2]
    high = low + np.maximum(boxes_xywh[:, 2:] - 1, 0)
    last = np.asarray(image_wh, np.float64) - 1
    return np.concatenate([np.clip(low, 0, last), np.clip(high, 0, last)], axis=1)


def crop_boxes(
    boxes_xyxy: np.ndarray | tf.Tensor, image_size: tuple[int, int], margin: float = 1.25
) -> tf.Tensor:
    """Boxes grown to the aspect of the network's input, then by a margin, about their centres.

    Args:
        boxes_xyxy: (N, 4).
        image_size: (height, width) of the input.
        margin: The factor on both sides; 1.25 in the paper's recipe.

    Returns:
        `crop_boxes_xyxy` (N, 4) float32; it may reach over the image's edge.
    """
    left, top, right, bottom = tf.unstack(tf.cast(boxes_xyxy, tf.float64), axis=-1)
    aspect = image_size[1] / image_size[0]
    width, height = right - left, bottom - top
    centre = tf.stack([left + width / 2, top + height / 2], axis=-1)
    size = tf.stack(
        [tf.maximum(width, height * aspect), tf.maximum(height, width / aspect)], axis=-1
    )
    # Sizes pass through float32 as in the reference, whose crop boxes are met to the last bit.
    half = tf.cast(size, tf.float32) * margin / 2
    centre = tf.cast(centre, tf.float32)
    return tf.concat([centre - half, centre + half], axis=-1)


def unit_to_image(points: np.ndarray, crop_boxes_xyxy: np.ndarray) -> np.ndarray:
    """Unit coordinates in crops as places in the image.

    Args:
        points: (N, K, D) in unit coordinates, D 2 or 3.
        crop_boxes_xyxy: (N, 4) where the crops lie, image pixels.

    Returns:
        (N, K, D) float64: x and y in image pixels, a third coordinate in millimetres.
    """
    low = np.asarray(crop_boxes_xyxy, np.float64)[:, None, :2]
    centred = np.array(points, np.float64)
    centred[..., :2] += 0.5
    image = unit_to_image_scale(centred, crop_boxes_xyxy)
    image[..., :2] += low
    return image


def unit_to_image_scale(lengths: np.ndarray, crop_boxes_xyxy: np.ndarray) -> np.ndarray:
    """Lengths along each axis (N, K, D) in unit coordinates, in the units of `unit_to_image`."""
    crop_boxes_xyxy = np.asarray(crop_boxes_xyxy, np.float64)
    size = crop_boxes_xyxy[:, 2:] - crop_boxes_xyxy[:, :2]
    units = np.column_stack([size, np.full(len(size), DEPTH_MM)])[:, None]
    return np.asarray(lengths, np.float64) * units[..., : np.shape(lengths)[-1]]


def crop_affine(
    centre: tf.Tensor, size_wh: tf.Tensor, rotation_deg: tf.Tensor, image_size: tuple[int, int]
) -> tf.Tensor:
    """The affine matrix from image pixels to crop pixels.

    A rectangle of width `size_wh[0]` about `centre`, turned by `rotation_deg`, fills the input's
    width; a positive angle turns the content anticlockwise as seen on screen.

    Args:
        centre: (2,) float32, image pixels.
        size_wh: (2,) float32 width and height in image pixels. The width sets the scale: the
            aspect is the input's.
        rotation_deg: () float32.
        image_size: (height, width) of the input.

    Returns:
        (2, 3) float32.
    """
    height, width = image_size
    angle = rotation_deg * (np.pi / 180)
    scale = width / size_wh[0]
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    linear = tf.stack([tf.stack([cos, sin]), tf.stack([-sin, cos])])
    offset = tf.constant([width / 2, height / 2]) - tf.linalg.matvec(linear, centre)
    return tf.concat([linear, offset[:, None]], axis=1)


def transform_points(matrix: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    """Points (..., 2) under an affine matrix (2, 3), float32."""
    # As one product: TensorFlow would make one of each point otherwise.
    rows = tf.matmul(tf.reshape(points, (-1, 2)), matrix[:, :2], transpose_b=True) + matrix[:, 2]
    return tf.reshape(rows, tf.shape(points))


def compose(second: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    """The affine matrix (2, 3) that does `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    return tf.concat([linear, transform_points(second, first[:, 2])[:, None]], axis=1)


def invert(matrix: tf.Tensor) -> tf.Tensor:
    """The inverse (2, 3) of an affine matrix."""
    a, b, c, d, e, f = tf.unstack(tf.reshape(matrix, (6,)))
    inverse = tf.stack([e, -b, b * f - c * e, -d, a, c * d - a * f]) / (a * e - b * d)
    return tf.reshape(inverse, (2, 3))


def mirror(image_width: tf.Tensor) -> tf.Tensor:
    """The affine matrix (2, 3) that mirrors an image of that width left to right."""
    last = tf.cast(image_width, tf.float32) - 1
    return tf.stack([tf.stack([-1.0, 0.0, last]), tf.constant([0.0, 1.0, 0.0])])


def warp(image: tf.Tensor, matrix: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """Samples an image bilinearly on the crop's pixel grid; black outside the image.

    Args:
        image: (h, w, C) uint8.
        matrix: (2, 3) affine matrix from pixels of `image` to crop pixels.
        image_size: (height, width) of the result.

    Returns:
        (height, width, C) float32, 0..255.
    """
    inverse = invert(matrix)
    # TensorFlow's operation for any transform takes more than twice as long as that for boxes.
    crop = tf.cond(
        (inverse[0, 1] == 0) & (inverse[1, 0] == 0),
        lambda: _resized(image, inverse, image_size),
        lambda: _transformed(image, inverse, image_size),
    )
    return tf.ensure_shape(crop[0], (*image_size, image.shape[-1]))


def _resized(image: tf.Tensor, inverse: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    # Within a pixel of the image it fades to black, as with the other operation.
    padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    height, width = image_size
    low, step = inverse[:, 2], tf.linalg.diag_part(inverse)
    high = low + step * (width - 1, height - 1)
    # In units of the distance from the first pixel's centre to the last one's.
    extent_xy = tf.cast(tf.gather(tf.shape(padded), (1, 0)), tf.float32) - 1
    edges_xy = tf.stack([low, high]) + 1
    box_yxyx = tf.reshape((edges_xy / extent_xy)[:, ::-1], (1, 4))
    return tf.image.crop_and_resize(padded[None], box_yxyx, [0], image_size)


def _transformed(image: tf.Tensor, inverse: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=tf.concat([tf.reshape(inverse, (1, 6)), tf.zeros((1, 2))], axis=1),
        output_shape=image_size,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def image_to_camera(keypoints: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Image pixels and depths as camera coordinates: the pinhole model, undone.

        z = depth + root depth        x, y = (pixel - principal point) / focal length * z

    Args:
        keypoints: (N, K, 3) x and y in image pixels, depth in millimetres relative to the root.
        cameras: (N, 5) focal length x, y and principal point x, y in pixels, depth of the root in
            millimetres. A row with NaN gives NaN.

    Returns:
        `joints_mm` (N, K, 3) float64: x to the right, y down, z away from the camera.
    """
    focal_px, centre_px, root_mm = np.split(np.asarray(cameras, np.float64)[:, None], (2, 4), -1)
    pixels, depth_mm = np.split(np.asarray(keypoints, np.float64), (2,), -1)
    z_mm = depth_mm + root_mm
    return np.concatenate([(pixels - centre_px) / focal_px * z_mm, z_mm], axis=-1)


def camera_to_image(joints_mm: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """The inverse of `image_to_camera`: `keypoints` (N, K, 3) float64 of `joints_mm` (N, K, 3).

    Every joint must be in front of the camera, z above 0.
    """
    focal_px, centre_px, root_mm = np.split(np.asarray(cameras, np.float64)[:, None], (2, 4), -1)
    xy_mm, z_mm = np.split(np.asarray(joints_mm, np.float64), (2,), -1)
    return np.concatenate([xy_mm / z_mm * focal_px + centre_px, z_mm - root_mm], axis=-1)


def procrustes_align(points: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Sets of points brought as close to their references as turning, scaling and moving can.

    The similarity of each set is the least-squares one of Umeyama, "Least-squares estimation of
    transformation parameters between two point patterns" (1991): a rotation, never a reflection,
    one scale and a translation.

    Args:
        points: (N, K, D), D at least 2, finite.
        references: (N, K, D), finite.

    Returns:
        (N, K, D) float64, finite. Where all points of a set, or of its reference, are one point,
        the scale is 0 and every point comes to lie at the reference's mean.
    """
    points = np.asarray(points, np.float64)
    references = np.asarray(references, np.float64)
    target = references.mean(axis=1, keepdims=True)
    points = points - points.mean(axis=1, keepdims=True)
    left, stretch, right = np.linalg.svd(points.transpose(0, 2, 1) @ (references - target))
    # Where the best orthogonal matrix mirrors, the best rotation has the least axis reversed.
    mirrored = np.linalg.det(left @ right) < 0
    sign = np.ones_like(stretch)
    sign[mirrored, -1] = -1
    spread = np.square(points).sum(axis=(1, 2))
    scale = (stretch * sign).sum(axis=1) / np.where(spread > 0, spread, 1)
    return scale[:, None, None] * (points @ (left * sign[:, None] @ right)) + target


def screen_coordinates(keypoints_px: np.ndarray, image_wh: np.ndarray) -> np.ndarray:
    """What a lifting regressor sees of keypoints (Pavllo et al., "3D human pose estimation in video
    with temporal convolutions and semi-supervised training", CVPR 2019).

    x = 2 px / w - 1 and y = 2 py / w - h / w: the width is -1 to 1, and the aspect is kept.

    Args:
        keypoints_px: (..., K, 2) image pixels.
        image_wh: (..., 2) width and height of the image in pixels.

    Returns:
        (..., K, 2). NumPy arrays give an array, float32 tensors give a tensor.
    """
    size = image_wh[..., None, :]
    return (2 * keypoints_px - size) / size[..., :1]
