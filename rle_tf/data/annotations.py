"""What annotation files have in common: JSON, tables of images, boxes and detections."""

import gc
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

import numpy as np
import orjson

from rle_tf.errors import DataError
from rle_tf.geometry import clip_boxes


@contextmanager
def no_garbage() -> Iterator[None]:
    """While millions of objects are made that all stay: to look for garbage among them again and
    again takes as long as to make them."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def read_json(path: Path, kind: type, expected: str):
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    try:
        with no_garbage():
            value = _parsed(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); expected {expected}") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: holds a {type(value).__name__}; expected {expected}")
    return value


def _parsed(content: bytes):
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # Python's own takes NaN and UTF-16, too, and whoever reads the value can name the entry.
        return json.loads(content)


def is_number(value) -> bool:
    """Whether a value from JSON is a number and float64 holds it: no NaN, infinity or boolean."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def are_numbers(values: list) -> bool:
    """Whether `is_number` holds of all of them; of good ones known without a look at each."""
    try:
        if {*map(type, values)} <= {int, float} and math.isfinite(sum(values)):
            return True
    except OverflowError:  # a whole number that float64 does not hold
        pass
    return all(map(is_number, values))


def is_id(value) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def is_size(value) -> bool:
    # Whole floats too: some tools write them.
    return type(value) in (int, float) and 1 <= value < 2**31 and value == int(value)


def image_columns(image_ids: list[int], image_table: dict) -> tuple[np.ndarray, np.ndarray]:
    paths = np.array([image_table[image_id][0] for image_id in image_ids], dtype=object)
    sizes = [image_table[image_id][1:] for image_id in image_ids]
    return paths, np.array(sizes, np.int32).reshape(-1, 2)


def is_box(box) -> bool:
    """Whether a value from JSON is a list of four finite numbers."""
    return isinstance(box, list) and len(box) == 4 and are_numbers(box)


def check_box(box, where: str) -> None:
    if not is_box(box):
        raise DataError(
            f"{where} has bbox {box!r:.200}; expected four numbers: left, top, width, height"
        )


def clipped_boxes(boxes: list, image_wh: np.ndarray, wheres: list[str]) -> np.ndarray:
    boxes_xyxy = clip_boxes(np.array(boxes, np.float64).reshape(-1, 4), image_wh)
    empty = (boxes_xyxy[:, 2:] <= boxes_xyxy[:, :2]).any(axis=1)
    if empty.any():
        row = int(np.argmax(empty))
        width, height = image_wh[row]
        raise DataError(
            f"{wheres[row]} has bbox {boxes[row]}, which has no area inside its image of "
            f"{width}x{height}; expected a box around a person ({int(empty.sum())} have this)"
        )
    return boxes_xyxy


def read_image_table(
    entries: list, annotations: Path, images: Path
) -> dict[int, tuple[str, int, int]]:
    """The images that an annotation file lists: {id: (path, width, height)}.

    Args:
        entries: Its list `images`.
        annotations: The file.
        images: The folder that `file_name`s are relative to.

    Raises:
        DataError: for an entry that cannot be used.
    """
    table, folder = {}, str(images)
    for index, entry in enumerate(entries):
        where = f"{annotations}: images[{index}]"
        if (
            not isinstance(entry, dict)
            or not is_id(entry.get("id"))
            or not isinstance(entry.get("file_name"), str)
        ):
            raise DataError(
                f"{where} is {entry!r:.200}; expected an object with 'id' (a whole number), "
                "'file_name' (text), 'width' and 'height'"
            )
        image_id, name = entry["id"], entry["file_name"]
        width, height = entry.get("width"), entry.get("height")
        if not (is_size(width) and is_size(height)):
            raise DataError(
                f"{where} (id {image_id}) has width {width!r} and height {height!r}; expected "
                "whole numbers of pixels"
            )
        if not (_PLAIN_NAME.fullmatch(name) or _is_inside(name)):
            raise DataError(
                f"{where} (id {image_id}) has file_name '{name}', which is nothing inside the "
                f"image folder; expected a path relative to {images}, without '..'"
            )
        if image_id in table:
            raise DataError(
                f"{where} has id {image_id}, as an image before it; expected every id once"
            )
        table[image_id] = (os.path.join(folder, name), int(width), int(height))
    return table


# Nothing that has a meaning of its own on any system; half a million names are looked at.
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")


def _is_inside(name: str) -> bool:
    # Windows' rules know both kinds of slash, and drives.
    path = PureWindowsPath(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def read_detections(
    path: Path, image_ids: Collection[int], annotations: Path
) -> Iterator[tuple[dict, str]]:
    """The entries of a file of detections in COCO's result format, each with how to call it.

    Raises:
        DataError: for one that has no image of `annotations`, no box or no score.
    """
    for index, entry in enumerate(read_json(path, list, "a list of COCO detections")):
        where = f"{path}: detection {index}"
        if not isinstance(entry, dict) or not {"image_id", "bbox", "score"} <= set(entry):
            raise DataError(
                f"{where} is {entry!r:.200}; expected 'image_id', 'category_id', 'bbox' and 'score'"
            )
        image_id, score = entry["image_id"], entry["score"]
        if not is_id(image_id) or image_id not in image_ids:
            raise DataError(
                f"{where} is of image {image_id!r}, which {annotations} does not list; "
                "expected detections of the same images"
            )
        if not is_number(score):
            raise DataError(f"{where} has score {score!r}; expected a finite number")
        check_box(entry["bbox"], where)
        yield entry, where


def check_image_files(image_paths: Sequence[str], named_by: Path) -> None:
    """Raises `DataError` if an image that an annotation file names is not on disk."""
    # One listing a folder instead of a question a file: full COCO on a network disk.
    names = [os.path.split(path) for path in image_paths]
    present = {
        folder: set(os.listdir(folder)) if os.path.isdir(folder) else set()
        for folder in {folder for folder, _ in names}
    }
    absent = [
        path
        for path, (folder, name) in zip(image_paths, names, strict=True)
        if name not in present[folder]
    ]
    if absent:
        raise DataError(
            f"{named_by}: {len(absent)} of {len(image_paths)} images are missing, the first is "
            f"{absent[0]}; expected every image that has people to look at"
        )
