"""Encoded photographs and boxes -> crops, with TensorFlow ops alone: what travels in the graph."""

from collections.abc import Callable
from functools import partial

import tensorflow as tf

from rle_tf import geometry
from rle_tf.data.crops import CropFormat, cut_crop

# Refused before decoding: a header of a few bytes may claim gigabytes.
MAX_MEGAPIXELS = 64

# EXIF stands near the start, before the pixels, in a block of at most this many bytes.
_EXIF_BYTES = 1 << 16
_PNG = b"\x89PNG\r\n\x1a\n"


def crops_of_photographs(
    image_bytes: tf.Tensor, boxes_xyxy: tf.Tensor, crops: CropFormat
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The crops of the people in encoded images.

    A box is (left, top, right, bottom) in pixels of the image as displayed: turned as its EXIF
    orientation says. It is clipped to the image; right and bottom are the last pixels inside. A
    box of four equal numbers is no box and fills up the rows of images with fewer people.

    Args:
        image_bytes: (B,) string, JPEG or PNG.
        boxes_xyxy: (B, N, 4) float32.
        crops: The regressor's input.

    Returns:
        present (B, N) bool: where there is a box; images (M, H, W, 3) uint8 and
        crop_boxes_xyxy (M, 4) float32 of these, row by row.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, with a sentence that begins with "rle_tf: ",
            for bytes that are no such image, an image of over `MAX_MEGAPIXELS`, and a box that is
            not finite, is inverted or has no area inside its image.
    """
    batch = tf.shape(boxes_xyxy)[0]
    found = tf.shape(image_bytes)[0]
    some = _check(found > 0, "image_bytes: found no images; expected one or more")
    paired = _check(found == batch, "boxes_xyxy: found boxes of", batch, "images; expected", found)
    # What is not tied to a check by hand may run before it.
    with tf.control_dependencies([some, paired]):
        image_bytes = tf.identity(image_bytes)
    present = tf.reduce_any(boxes_xyxy != boxes_xyxy[..., :1], axis=-1)
    finite = tf.reduce_all(tf.math.is_finite(boxes_xyxy), axis=-1)
    ordered = tf.reduce_all(boxes_xyxy[..., 2:] > boxes_xyxy[..., :2], axis=-1)
    _check_boxes(
        finite & (ordered | ~present), boxes_xyxy, "finite numbers, left < right and top < bottom"
    )

    def cut(photograph):
        data, boxes, row_present, index = photograph
        image = decode_photograph(data, index)
        last = tf.cast(tf.gather(tf.shape(image), (1, 0)), tf.float32) - 1
        boxes = tf.clip_by_value(boxes, 0.0, tf.tile(last, [2]))
        inside = tf.reduce_all(boxes[:, 2:] > boxes[:, :2], axis=-1)
        crop_boxes = geometry.crop_boxes(boxes, crops.image_size, crops.box_margin)
        images = tf.map_fn(
            lambda row: tf.cond(
                row[1],
                lambda: cut_crop(image, row[0], crops.image_size),
                lambda: tf.zeros((*crops.image_size, 3), tf.uint8),
            ),
            (crop_boxes, row_present & inside),
            fn_output_signature=tf.TensorSpec((*crops.image_size, 3), tf.uint8),
        )
        return images, crop_boxes, inside

    images, crop_boxes, inside = tf.map_fn(
        cut,
        (image_bytes, boxes_xyxy, present, tf.range(batch)),
        fn_output_signature=(
            tf.TensorSpec((None, *crops.image_size, 3), tf.uint8),
            tf.TensorSpec((None, 4)),
            tf.TensorSpec((None,), tf.bool),
        ),
        # Each holds an image that is decoded, up to 200 MB.
        parallel_iterations=4,
    )
    _check_boxes(inside | ~present, boxes_xyxy, "a box with an area inside its image")
    return present, tf.boolean_mask(images, present), tf.boolean_mask(crop_boxes, present)


def decode_photograph(data: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """An image (h, w, 3) uint8 RGB as it is displayed, of () string `data`, JPEG or PNG.

    `index` is its place among `image_bytes`, for the messages of errors.
    """
    name = tf.strings.format("image_bytes[{}]:", index)
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    # A PNG's header ends with width and height at byte 24.
    is_png = (tf.strings.substr(data, 0, 8) == _PNG) & (tf.strings.length(data) >= 24)
    known = _check(is_jpeg | is_png, name, "found no JPEG or PNG; expected an encoded image")
    with tf.control_dependencies([known]):
        data = tf.identity(data)
    wh = tf.cond(
        is_jpeg,
        lambda: tf.gather(tf.io.extract_jpeg_shape(data), (1, 0)),
        lambda: tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False),
    )
    width, height = tf.unstack(tf.cast(tf.ensure_shape(wh, (2,)), tf.int64))
    small = _check(
        (width > 0) & (height > 0) & (width * height <= MAX_MEGAPIXELS * 1_000_000),
        name, "found an image of", width, "x", height,
        f"pixels; expected at most {MAX_MEGAPIXELS} megapixels",
    )  # fmt: skip
    with tf.control_dependencies([small]):
        data = tf.identity(data)
    image = tf.cond(
        is_jpeg,
        # The accurate transform, as in training: the fast one is several grey levels off.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(data, channels=3),
    )
    return _turn(image, _orientation(_exif(data, is_jpeg)))


def _exif(data: tf.Tensor, is_jpeg: tf.Tensor) -> tf.Tensor:
    """The TIFF structure that holds an image's EXIF entries, () string, empty where it has none."""
    head = tf.strings.substr(data, 0, 2 * _EXIF_BYTES)
    # A JPEG's segment states its length, which counts itself and "Exif", in two bytes; a PNG's
    # chunk states that of its content in four, of which the last two suffice.
    parts = tf.cond(
        is_jpeg,
        lambda: tf.strings.split(head, b"Exif\x00\x00"),
        lambda: tf.strings.split(head, b"eXIf"),
    )

    def block():
        high, low = tf.unstack(
            tf.ensure_shape(tf.io.decode_raw(tf.strings.substr(parts[0], -2, 2), tf.uint8), (2,))
        )
        length = 256 * tf.cast(high, tf.int32) + tf.cast(low, tf.int32)
        length = tf.maximum(length - tf.where(is_jpeg, 8, 0), 0)
        return tf.strings.substr(parts[1], 0, length)

    return tf.cond(tf.size(parts) > 1, block, lambda: tf.constant(b""))


def _orientation(tiff: tf.Tensor) -> tf.Tensor:
    """The orientation, () int32 from 1 to 8, that EXIF entries state; 1 where they state none."""
    content = tf.io.decode_raw(tiff, tf.uint8)
    # Zeros after the end, so that what is cut off reads as a block without entries.
    content = tf.pad(tf.cast(content, tf.int32), [[0, 10]])
    little_endian = content[0] == ord("I")

    def number(low, high):  # of 16 bits, in either byte order
        return tf.where(little_endian, low + 256 * high, high + 256 * low)

    # The low half of a number of 32 bits: the block is smaller.
    start = tf.where(little_endian, number(content[4], content[5]), number(content[6], content[7]))
    start = tf.minimum(start, tf.size(content) - 2)
    entries = content[start + 2 :][: 12 * number(content[start], content[start + 1])]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], (-1, 12))
    stated = tf.boolean_mask(
        number(entries[:, 8], entries[:, 9]), number(entries[:, 0], entries[:, 1]) == 0x0112
    )
    stated = tf.concat([stated, [1]], axis=0)[0]
    return tf.where((stated >= 1) & (stated <= 8), stated, 1)


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """An image (h, w, 3) as displayed, of its pixels as stored."""
    sides: list[tuple[tuple[int, ...], Callable[[tf.Tensor], tf.Tensor]]] = [
        ((5, 6, 7, 8), lambda image: tf.transpose(image, (1, 0, 2))),
        ((2, 3, 6, 7), lambda image: image[:, ::-1]),
        ((3, 4, 7, 8), lambda image: image[::-1]),
    ]
    for orientations, change in sides:
        applies = tf.reduce_any(orientation == orientations)
        image = tf.cond(applies, partial(change, image), partial(tf.identity, image))
        image = tf.ensure_shape(image, (None, None, 3))
    return image


def _check_boxes(sound: tf.Tensor, boxes_xyxy: tf.Tensor, expected: str) -> None:
    """Refuses the first of the boxes (B, N, 4) that is not `sound` (B, N)."""

    def fail():
        image, row = tf.unstack(tf.where(~sound)[0])
        name = tf.strings.format("boxes_xyxy[{}, {}]: found", (image, row))
        _check(False, name, boxes_xyxy[image, row], "; expected", expected)

    tf.cond(tf.reduce_all(sound), lambda: None, fail)


def _check(condition: tf.Tensor | bool, *sentence: tf.Tensor | str) -> tf.Operation:
    parts = [
        tf.strings.format("{}", part) if tf.is_tensor(part) and part.dtype != tf.string else part
        for part in sentence
    ]
    message = tf.strings.reduce_join(parts, separator=" ")
    return tf.debugging.Assert(
        condition, ["rle_tf: " + tf.strings.regex_replace(message, " ;", ";")], summarize=-1
    )
