"""What an image regressor sees and says: the crop of a person, and coordinates in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rle_tf import geometry, metrics
from rle_tf.data.augment import DRAWS, Augmentation, augment, colour, occlude, occlude_joint
from rle_tf.data.confidence import Confidence
from rle_tf.data.source import UNIT_SPREAD, Poses, Records
from rle_tf.errors import ModelError
from rle_tf.skeletons import Skeleton

# Pixels read around what a crop needs, so that bilinear sampling at its edge has neighbours.
REGION_MARGIN_PX = 2


class Person(NamedTuple):
    """One row of records (or, with a leading N, all rows) as tensors."""

    path: tf.Tensor
    image_wh: tf.Tensor
    box_xyxy: tf.Tensor
    centre: tf.Tensor
    size_wh: tf.Tensor
    keypoints: tf.Tensor
    labelled: tf.Tensor

    def crop(self, matrix: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
        """`read_crop` of the photograph."""
        return read_crop(self.path, self.image_wh, matrix, image_size)


class PackedPerson(NamedTuple):
    """One person with as much of the photograph as any crop needs.

    `photo` is a JPEG whose first pixel is the image's `low` (x, y); the rest is as in `Person`.
    """

    photo: tf.Tensor
    photo_wh: tf.Tensor
    low: tf.Tensor
    image_wh: tf.Tensor
    box_xyxy: tf.Tensor
    centre: tf.Tensor
    size_wh: tf.Tensor
    keypoints: tf.Tensor
    labelled: tf.Tensor

    def crop(self, matrix: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
        """The crop that `read_crop` would read of the whole photograph, but for rounding."""
        low, high = _region(matrix, self.image_wh, image_size)
        low = tf.clip_by_value(low - self.low, 0, self.photo_wh - 1)
        high = tf.maximum(tf.minimum(high - self.low, self.photo_wh), low + 1)
        region = _decode_jpeg_window(self.photo, low, high)
        return _warp_region(region, low + self.low, matrix, image_size)


@dataclass(frozen=True)
class CropFormat:
    """The input of an image regressor, an `InputFormat`.

    Attributes:
        image_size: (height, width) in pixels.
        mean, std: (3,) RGB; a crop enters as (value / 255 - mean) / std.
        box_margin: The factor between a person's box and the crop.
    """

    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    box_margin: float = 1.25

    reads_images = True
    draws = DRAWS

    @property
    def mirror_shift(self) -> float:
        # Mirroring moves the centre of pixel 0 to the centre of the last pixel.
        return 1 / self.image_size[1]

    def normalise(self, crop: tf.Tensor) -> tf.Tensor:
        """RGB 0..255 (..., 3) as the regressor's input."""
        factor, offset = self._normalisation
        return crop * factor - offset

    @property
    def _normalisation(self) -> tuple[np.ndarray, np.ndarray]:
        # In two passes over the crop, and not three.
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype("float32"), (mean / std).astype("float32")

    def crop_boxes(self, records: Records) -> np.ndarray:
        """(N, 4) float32 `boxes_xyxy` of the crops, image pixels."""
        return geometry.crop_boxes(records.boxes_xyxy, self.image_size, self.box_margin).numpy()

    def packed(
        self,
        photo: tf.Tensor,
        photo_wh: tf.Tensor,
        low: tf.Tensor,
        image_wh: tf.Tensor,
        box_xyxy: tf.Tensor,
        keypoints: tf.Tensor,
        labelled: tf.Tensor,
    ) -> PackedPerson:
        """One person as `example` takes it, from what `rle_tf.data.records` holds; box_xyxy (4,)
        float64, the rest as in `PackedPerson`."""
        crop = geometry.crop_boxes(box_xyxy[None], self.image_size, self.box_margin)[0]
        return PackedPerson(
            photo=photo,
            photo_wh=photo_wh,
            low=low,
            image_wh=image_wh,
            box_xyxy=tf.cast(box_xyxy, tf.float32),
            centre=(crop[:2] + crop[2:]) / 2,
            size_wh=crop[2:] - crop[:2],
            keypoints=keypoints,
            labelled=labelled,
        )

    def columns(self, records: Records) -> Person:
        crops = self.crop_boxes(records)
        return Person(
            path=tf.constant(records.image_paths.astype(str)),
            image_wh=tf.constant(records.image_wh),
            box_xyxy=tf.constant(records.boxes_xyxy, tf.float32),
            centre=tf.constant((crops[:, :2] + crops[:, 2:]) / 2),
            size_wh=tf.constant(crops[:, 2:] - crops[:, :2]),
            keypoints=tf.constant(records.keypoints),
            labelled=tf.constant(records.labelled),
        )

    def example(
        self,
        person: Person | PackedPerson,
        skeleton: Skeleton,
        augmentation: Augmentation | None,
        draws: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Image (H, W, 3) and the target of `encode_target`."""
        image_wh, centre, size_wh = person.image_wh, person.centre, person.size_wh
        keypoints, labelled = person.keypoints, person.labelled
        rotation_deg, flipped = tf.constant(0.0), tf.constant(False)
        if augmentation is not None:
            keypoints, labelled, centre, size_wh, rotation_deg, flipped = augment(
                keypoints, labelled, centre, size_wh, image_wh[0], skeleton, augmentation, draws
            )
        matrix = geometry.crop_affine(centre, size_wh, rotation_deg, self.image_size)
        from_file = tf.cond(
            flipped,
            lambda: geometry.compose(matrix, geometry.mirror(image_wh[0])),
            lambda: matrix,
        )
        crop = person.crop(from_file, self.image_size)
        if augmentation is not None and augmentation.occlusion_area:
            box, largest_area = person.box_xyxy, augmentation.occlusion_area
            crop = occlude(crop, from_file, box, image_wh, largest_area, draws, seed)
        if augmentation is not None and augmentation.joint_occlusion:
            places = geometry.transform_points(matrix, keypoints[:, :2])
            shares = augmentation.joint_occlusion, augmentation.whole_occlusion
            crop, moved = occlude_joint(
                crop, from_file, image_wh, places, labelled, *shares, draws, seed
            )
            matrix = tf.concat([matrix[:, :2], matrix[:, 2:] + moved[:, None]], axis=1)
        if augmentation is not None and augmentation.colour:
            crop = colour(crop, augmentation.colour, draws)
        target = encode_target(
            keypoints,
            labelled,
            matrix,
            self.image_size,
            root=skeleton.root,
            keep_outside=augmentation is None or augmentation.keep_outside,
        )
        # `normalise` with a row's numbers: TensorFlow takes thrice as long to spread a pixel's.
        # Exported graphs have those, for converters know them.
        factor, offset = (
            np.tile(numbers, (self.image_size[1], 1)) for numbers in self._normalisation
        )
        return crop * factor - offset, target

    def mirror(self, images: tf.Tensor, permutation: tuple[int, ...]) -> tf.Tensor:
        """Crops (B, H, W, 3) mirrored left to right."""
        return images[:, :, ::-1]

    def decode(
        self, output: dict[str, np.ndarray], records: Records, spread: Sequence[float]
    ) -> Poses:
        return decode(output, self.crop_boxes(records), records.box_scores, spread)

    def check(self, regressor: keras.Model) -> None:
        shape = regressor.input_shape
        if len(shape) != 4:
            raise ModelError(
                f"regressor '{regressor.name}' takes an input of {shape}; expected images "
                "(B, H, W, 3)"
            )
        height, width = shape[1:3]
        if (height, width) != tuple(self.image_size):
            raise ModelError(
                f"regressor '{regressor.name}' takes images of {height}x{width} (height x width); "
                f"found data.image_size {list(self.image_size)}"
            )


def decode(
    output: dict[str, np.ndarray],
    crop_boxes_xyxy: np.ndarray,
    box_scores: np.ndarray | float = 0.0,
    spread: Sequence[float] = UNIT_SPREAD,
    confidence: Confidence | None = None,
) -> Poses:
    """Unit coordinates of crops as poses.

    Args:
        output: {"mu": (N, K, D), "sigma": (N, K, D)}.
        crop_boxes_xyxy: (N, 4) where the crops lie, image pixels.
        box_scores: (N,) of the detector, or 0.
        spread: (D,) of all joints or (K, D) of each, the error to be expected at a sigma of 1.
        confidence: Of a calibrated regressor.
    """
    mu, sigma = (np.asarray(output[key], np.float64) for key in ("mu", "sigma"))
    joint_scores = 1 - sigma.mean(axis=-1)
    expected = sigma * np.asarray(spread, float)[..., : sigma.shape[-1]]
    return Poses(
        keypoints=geometry.unit_to_image(mu, crop_boxes_xyxy),
        sigmas=geometry.unit_to_image_scale(expected, crop_boxes_xyxy),
        joint_scores=joint_scores,
        person_scores=metrics.person_scores(joint_scores, box_scores),
        crop_boxes_xyxy=np.asarray(crop_boxes_xyxy, np.float64),
        confidences=None if confidence is None else confidence(sigma).numpy().astype(np.float64),
    )


def read_crop(
    path: tf.Tensor, image_wh: tf.Tensor, matrix: tf.Tensor, image_size: tuple[int, int]
) -> tf.Tensor:
    """A crop of an image file; of a JPEG only the region that the crop needs is decoded.

    Args:
        path: () string, a JPEG, PNG, GIF, BMP or WebP file. Grey and CMYK images become RGB.
        image_wh: () of int32, the size that the annotations state.
        matrix: (2, 3) affine matrix from image pixels to crop pixels.
        image_size: (height, width) of the crop.

    Returns:
        (height, width, 3) float32, RGB 0..255.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, if the file cannot be decoded or has another
            size than stated; `named_image_errors` turns it into a `DataError` with the name.
    """
    low, high = _region(matrix, image_wh, image_size)
    region, _, _ = read_region(path, image_wh, low, high)
    return _warp_region(region, low, matrix, image_size)


def read_region(
    path: tf.Tensor, image_wh: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A part of an image file, and the file.

    Args:
        path, image_wh: As in `read_crop`.
        low, high: (2,) int32, the first pixel (x, y) and the one past the last, inside the image.

    Returns:
        (h, w, 3) uint8 RGB; () string, what the file holds; () bool, whether that is a JPEG.

    Raises:
        tf.errors.InvalidArgumentError: as `read_crop`.
    """
    data = tf.io.read_file(path)
    is_jpeg = tf.io.is_jpeg(data)
    region = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg_region(data, path, image_wh, low, high),
        lambda: _decode_region(data, path, image_wh, low, high),
    )
    return region, data, is_jpeg


def cut_crop(image: tf.Tensor, crop_box_xyxy: tf.Tensor, image_size: tuple[int, int]) -> tf.Tensor:
    """An upright crop of an image in memory, as a deployment sends it.

    Args:
        image: (h, w, 3) uint8.
        crop_box_xyxy: (4,) float32 of `geometry.crop_boxes`, image pixels.
        image_size: (height, width) of the crop.

    Returns:
        (height, width, 3) uint8.
    """
    centre, size_wh = (
        (crop_box_xyxy[:2] + crop_box_xyxy[2:]) / 2,
        crop_box_xyxy[2:] - crop_box_xyxy[:2],
    )
    matrix = geometry.crop_affine(centre, size_wh, tf.constant(0.0), image_size)
    image_wh = tf.gather(tf.shape(image), (1, 0))
    # Of a photograph of many megapixels, what the crop needs becomes float32 and no more.
    low, high = _region(matrix, image_wh, image_size)
    region = image[low[1] : high[1], low[0] : high[0]]
    return tf.cast(tf.round(_warp_region(region, low, matrix, image_size)), tf.uint8)


def _region(
    matrix: tf.Tensor, image_wh: tf.Tensor, image_size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels of an image that a crop needs: first (x, y) and past the last, (2,) int32."""
    height, width = image_size
    corners = geometry.transform_points(
        geometry.invert(matrix),
        tf.constant([[0, 0], [width, 0], [0, height], [width, height]], tf.float32),
    )
    low = tf.cast(tf.floor(tf.reduce_min(corners, axis=0)), tf.int32) - REGION_MARGIN_PX
    high = tf.cast(tf.math.ceil(tf.reduce_max(corners, axis=0)), tf.int32) + REGION_MARGIN_PX
    # A crop may lie outside its image altogether (a strong augmentation): one pixel is read then.
    low = tf.clip_by_value(low, 0, image_wh - 1)
    return low, tf.maximum(tf.minimum(high, image_wh), low + 1)


def _warp_region(
    region: tf.Tensor, low: tf.Tensor, matrix: tf.Tensor, image_size: tuple[int, int]
) -> tf.Tensor:
    """The crop by `matrix`, which starts from image pixels, of a region that starts at `low`."""
    offset = tf.concat([tf.eye(2), tf.cast(low, tf.float32)[:, None]], axis=1)
    return geometry.warp(region, geometry.compose(matrix, offset), image_size)


def encode_target(
    keypoints: tf.Tensor,
    labelled: tf.Tensor,
    matrix: tf.Tensor,
    image_size: tuple[int, int],
    *,
    root: int | None = None,
    keep_outside: bool = True,
) -> dict[str, tf.Tensor]:
    """The regression target of one person.

    Args:
        keypoints: (K, D), x and y in image pixels, a third coordinate in millimetres from the
            root, NaN where it is not known.
        labelled: (K,) bool.
        matrix: (2, 3) affine matrix from image pixels to crop pixels.
        image_size: (height, width) of the crop.
        root: The joint whose depth is 0 by definition: nothing to learn, so its weight is 0.
        keep_outside: Whether joints with a coordinate beyond +-0.5 have a weight.

    Returns:
        {"keypoints": (K, D), "weight": (K, D)} float32: x, y = crop pixel / (W, H) - 0.5 and
        z = mm / 2000; weight 1 where labelled and known.
    """
    height, width = image_size
    xy = geometry.transform_points(matrix, keypoints[:, :2]) / (width, height) - 0.5
    unit = tf.concat([xy, keypoints[:, 2:] / geometry.DEPTH_MM], axis=1)
    supervised = labelled[:, None] & tf.math.is_finite(unit)
    if not keep_outside:
        supervised &= ~tf.reduce_any(tf.abs(unit) > 0.5, axis=1, keepdims=True)
    if root is not None:
        supervised &= ~((tf.range(unit.shape[0])[:, None] == root) & (tf.range(unit.shape[1]) == 2))
    return {
        "keypoints": tf.where(supervised, unit, 0.0),
        "weight": tf.cast(supervised, tf.float32),
    }


def _check_size(shape_hwc: tf.Tensor, path: tf.Tensor, image_wh: tf.Tensor) -> tf.Operation | None:
    # TensorFlow's optimiser complains of a shape that is read backwards, as [1::-1].
    found_wh = tf.gather(shape_hwc, (1, 0))
    return tf.debugging.Assert(
        tf.reduce_all(found_wh == image_wh),
        [path, "width and height found", found_wh, "expected", image_wh],
    )


def _decode_jpeg_region(data, path, image_wh, low, high) -> tf.Tensor:
    with tf.control_dependencies([_check_size(tf.io.extract_jpeg_shape(data), path, image_wh)]):
        return _decode_jpeg_window(data, low, high)


def _decode_jpeg_window(data, low, high) -> tf.Tensor:
    window = tf.stack([low[1], low[0], high[1] - low[1], high[0] - low[0]])
    # The accurate transform: the fast one is several grey levels off.
    return tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_region(data, path, image_wh, low, high) -> tf.Tensor:
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, (None, None, 3))
    with tf.control_dependencies([_check_size(tf.shape(image), path, image_wh)]):
        return tf.identity(image[low[1] : high[1], low[0] : high[0]])
