"""Images and boxes in, poses out: for photographs of one's own.

A model is the folder of a training run or an exported SavedModel. Both see the same crops, uint8
as a deployment would send them, so both give the same poses.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from rle_tf import geometry
from rle_tf.calibration import uncertainty
from rle_tf.data.annotations import is_box
from rle_tf.data.confidence import Confidence
from rle_tf.data.crops import cut_crop, decode
from rle_tf.data.source import Poses
from rle_tf.drawing import draw_poses
from rle_tf.errors import DataError, ModelError
from rle_tf.evaluation import forward_function
from rle_tf.export.savedmodel import load_forward, metadata_confidence, read_metadata
from rle_tf.run_folder import RunFolder
from rle_tf.skeletons import Skeleton

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictor:
    """A regressor ready for photographs.

    Attributes:
        skeleton: What its joints are.
        image_size: (height, width) of its input.
        box_margin: Between a person's box and the crop.
        spread: (D,) or (K, D) expected error / sigma; NaN where it is not known.
        forward: uint8 RGB crops (B, H, W, 3) -> {"mu": (B, K, D), "sigma": (B, K, D)}.
        confidence: Of a calibrated model.
    """

    skeleton: Skeleton
    image_size: tuple[int, int]
    box_margin: float
    spread: np.ndarray
    forward: Callable[[tf.Tensor], dict[str, tf.Tensor]]
    confidence: Confidence | None = None

    def __call__(self, image: np.ndarray, boxes_xyxy: np.ndarray) -> Poses:
        """The poses of the people in some boxes of one image.

        Args:
            image: (height, width, 3) uint8 RGB.
            boxes_xyxy: (N, 4) image pixels.

        Returns:
            N poses in pixels of the image.
        """
        crop_boxes = geometry.crop_boxes(boxes_xyxy, self.image_size, self.box_margin)
        pixels = tf.constant(image)
        crops = [cut_crop(pixels, box, self.image_size) for box in crop_boxes]
        crops = tf.reshape(tf.cast(crops, tf.uint8), (len(crops), *self.image_size, 3))
        return decode(
            self.forward(crops),
            crop_boxes.numpy(),
            spread=self.spread,
            confidence=self.confidence,
        )


# Below it nothing is drawn unless it is asked for.
MIN_CONFIDENCE = 0.2

# Models that come with rle-tf lie inside an installed package and beside it in a checkout.
_HERE = Path(__file__).parent
SHIPPED = next(
    path
    for path in (_HERE.parent / "saved_models", _HERE / "saved_models")
    if path.is_dir() or path.parent == _HERE
)


def model_folder(model: Path | str) -> Path:
    """The folder of a model: itself, or that of a model that comes with rle-tf by its name."""
    shipped = SHIPPED / model
    return shipped if not Path(model).exists() and shipped.is_dir() else Path(model)


def load(model: Path | str = "pose_small", flip_test: bool = False) -> Predictor:
    """Loads a model that comes with rle-tf, a run folder, or the folder of an exported SavedModel
    or of its versions.

        pose = rle_tf.load("pose_small")
        poses = pose(image, boxes_xyxy)  # uint8 (height, width, 3) and (N, 4) in its pixels

    Args:
        model: `pose_small`, `runs/NAME`, `saved_models/NAME` (its newest version) or
            `saved_models/NAME/1`.
        flip_test: Average with the prediction for the mirrored crop.

    Raises:
        ModelError: if it is none of these.
    """
    model = model_folder(model)
    if (model / "config.yaml").is_file():
        folder = RunFolder(model)
        config, regressor = folder.load()
        input_format = config.input_format
        _check_sees_images(input_format.reads_images, model)
        skeleton = config.data.source.skeleton
        regress = forward_function(regressor, skeleton, input_format, flip_test)
        spread, confidence = uncertainty(folder, regressor)
        return Predictor(
            skeleton,
            input_format.image_size,
            input_format.box_margin,
            spread,
            lambda crops: regress(input_format.normalise(tf.cast(crops, tf.float32))),
            confidence,
        )
    versions = [path for path in model.glob("*") if path.name.isdecimal() and path.is_dir()]
    if versions:
        model = max(versions, key=lambda path: int(path.name))
    if not (model / "saved_model.pb").is_file():
        raise ModelError(
            f"{model}: found neither config.yaml nor saved_model.pb; expected the folder of a "
            "training run or of an exported model, or one that comes with rle-tf: "
            + ", ".join(sorted(path.name for path in SHIPPED.glob("*/") if (path / "1").is_dir()))
        )
    return _from_savedmodel(model, flip_test)


def _from_savedmodel(folder: Path, flip_test: bool) -> Predictor:
    metadata = read_metadata(folder)
    _check_sees_images(metadata["input"] == "image", folder)
    skeleton = Skeleton(
        name=metadata["skeleton"],
        joints=tuple(metadata["joints"]),
        flip_pairs=tuple(map(tuple, metadata["flip_pairs"])),
        bones=tuple(map(tuple, metadata["bones"])),
        upper_body=(),
    )
    return Predictor(
        skeleton,
        tuple(metadata["image_size"]),
        metadata["box_margin"],
        np.array(metadata["spread"], float),
        load_forward(folder, flip_test),
        metadata_confidence(metadata),
    )


def _check_sees_images(sees_images: bool, model: Path) -> None:
    if not sees_images:
        raise ModelError(
            f"{model}: a lifter, which takes keypoints; expected a model that looks at images"
        )


def read_image(path: Path) -> np.ndarray:
    """A photograph as (height, width, 3) uint8 RGB, turned as its EXIF orientation says.

    Raises:
        DataError: if it cannot be read as an image.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; expected an image (--model names a model)")
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an image")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image: {error}") from None


def read_boxes(path: Path) -> dict[str, np.ndarray]:
    """Boxes of the people in each image: {image name: (N, 4) `boxes_xywh`}.

    The file is a JSON object from image names, as given on the command line or without their
    folder, to lists of [left, top, width, height] in pixels.

    Raises:
        DataError: if it is something else; the message names the entry.
    """
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    expected = "expected {image name: [[left, top, width, height], ...]} in pixels"
    if not isinstance(entries, dict):
        raise DataError(f"{path}: holds a {type(entries).__name__}; {expected}")
    for name, boxes in entries.items():
        for box in boxes if isinstance(boxes, list) else [boxes]:
            if not is_box(box):
                raise DataError(f"{path}: '{name}' has the box {box!r:.100}; {expected}")
    return {name: np.array(boxes, float).reshape(-1, 4) for name, boxes in entries.items()}


def predict_images(
    predictor: Predictor,
    images: list[Path],
    out: Path,
    boxes_xywh: dict[str, np.ndarray] | None = None,
    on_image: Callable[[Path], None] | None = None,
    *,
    min_confidence: float | None = None,
) -> list[dict]:
    """Writes `out/predictions.json` and, for each image, a PNG with the poses drawn.

    Args:
        predictor: The model.
        images: Files.
        out: A folder, made if absent.
        boxes_xywh: From `read_boxes`. An image that it does not name, or all images where it is
            None, are one person that fills the image.
        on_image: Called with each image once it is done.
        min_confidence: Joints below it are not drawn; by default `MIN_CONFIDENCE` where the model
            is calibrated, so that no skeleton stands where nobody is.

    Returns:
        What the JSON holds: a dict an image with `image` and `people`, each person with
        `box_xywh`, `score`, `confidence` (mean of the joints') and `joints`: `name`, `x`, `y`,
        `sigma_x`, `sigma_y` (pixels of the image; null where the model was trained with l1 or l2),
        of a 3D model `depth_mm` and `depth_sigma_mm` (away from the camera, relative to the root),
        `score` (1 - mean sigma) and `confidence` (see `Poses`; null where the model is not
        calibrated).

    Raises:
        DataError: for an image that cannot be read, or a box without area inside its image.
        ModelError: for a `min_confidence` where the model is not calibrated.
    """
    if min_confidence is None:
        min_confidence = MIN_CONFIDENCE
    elif predictor.confidence is None:
        raise ModelError(
            f"min_confidence: found {min_confidence} for a model that is not calibrated; expected "
            "a calibrated one (rle-tf calibrate)"
        )
    boxes_xywh = boxes_xywh or {}
    out.mkdir(parents=True, exist_ok=True)
    predictions, names, used = [], set(), set()
    for path in images:
        image = read_image(path)
        size = np.array([image.shape[1::-1]])
        key = next((key for key in (str(path), path.name) if key in boxes_xywh), None)
        used.add(key)
        boxes = np.array([[0.0, 0.0, *size[0]]]) if key is None else boxes_xywh[key]
        boxes_xyxy = geometry.clip_boxes(boxes, size)
        empty = (boxes_xyxy[:, 2:] <= boxes_xyxy[:, :2]).any(axis=1)
        if empty.any():
            raise DataError(
                f"{path}: the box {boxes[empty][0].tolist()} has no area inside the image of "
                f"{size[0, 0]}x{size[0, 1]}; expected [left, top, width, height] in pixels"
            )
        poses = predictor(image, boxes_xyxy)
        drawn = draw_poses(
            image,
            poses.keypoints[..., :2],
            poses.sigmas[..., :2],
            predictor.skeleton,
            confidence=poses.confidences,
            boxes_xyxy=None if key is None else boxes_xyxy,
            min_confidence=min_confidence,
        )
        name = path.stem
        while name in names:  # photographs of one name from several folders
            name += "_"
        names.add(name)
        drawn.save(out / f"{name}.png")
        predictions.append(
            {"image": str(path), "people": _people(poses, boxes, predictor.skeleton)}
        )
        if on_image:
            on_image(path)
    if unused := sorted(set(boxes_xywh) - used):
        LOG.warning("boxes of images that were not given: %s", ", ".join(unused))
    (out / "predictions.json").write_text(json.dumps(predictions, indent=1) + "\n")
    return predictions


# What a joint's coordinates and their sigmas are called in predictions.json, to what precision.
_COORDINATES = (("x", "sigma_x", 2), ("y", "sigma_y", 2), ("depth_mm", "depth_sigma_mm", 1))


def _people(poses: Poses, boxes_xywh: np.ndarray, skeleton: Skeleton) -> list[dict]:
    people = []
    for row, box in enumerate(boxes_xywh):
        joints = []
        for joint, name in enumerate(skeleton.joints):
            entry = {"name": name}
            values = zip(poses.keypoints[row, joint], poses.sigmas[row, joint], strict=True)
            for (value, sigma), (key, sigma_key, digits) in zip(values, _COORDINATES, strict=False):
                entry[key] = round(float(value), digits)
                entry[sigma_key] = None if math.isnan(sigma) else round(float(sigma), digits + 1)
            entry["score"] = round(float(poses.joint_scores[row, joint]), 4)
            entry["confidence"] = (
                None
                if poses.confidences is None
                else round(float(poses.confidences[row, joint]), 4)
            )
            joints.append(entry)
        people.append(
            {
                "box_xywh": box.tolist(),
                "score": round(float(poses.person_scores[row]), 4),
                "confidence": None
                if poses.confidences is None
                else round(float(poses.confidences[row].mean()), 4),
                "joints": joints,
            }
        )
    return people
