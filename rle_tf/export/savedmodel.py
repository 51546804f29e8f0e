"""A trained regressor as a TensorFlow SavedModel: crops or keypoints in, poses out."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from rle_tf.data.confidence import Confidence
from rle_tf.data.crops import CropFormat
from rle_tf.errors import ModelError
from rle_tf.evaluation import Forward
from rle_tf.export.formats import crops_signature
from rle_tf.export.serving import write_warm_up
from rle_tf.export.signatures import (
    Endpoints,
    float32_networks,
    image_endpoints,
    lifting_endpoints,
)
from rle_tf.skeletons import Skeleton

# TensorFlow Serving passes over this folder of a model: the place for files of one's own.
_METADATA = Path("assets.extra", "rle_tf.json")
_METADATA_KEYS = (
    "input", "skeleton", "joints", "bones", "flip_pairs", "root", "image_size", "dims", "mean",
    "std", "box_margin", "spread", "versions",
)  # fmt: skip


def export_savedmodel(
    regressor: keras.Model,
    directory: str | Path,
    *,
    skeleton: Skeleton,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    box_margin: float | None = None,
    spread: ArrayLike | None = None,
    confidence: Confidence | None = None,
    version: int | None = None,
    warm_up: bool = False,
    half_weights: bool = False,
) -> Path:
    """Writes the regressor as `directory/<version>/`, the layout that TensorFlow Serving reads.

    Below, all outputs are float32 and B is free; `error` is sigma * spread, the error to be
    expected, and what is computed from it is NaN where `spread` is. Every signature but `raw` gives
        score (B, K): 1 - the mean of sigma over D (the paper's confidence),
    and, where `confidence` is given, every one of an image regressor but `raw` gives
        confidence (B, K): the calibrated probability that the joint is off by less than a tenth
            of the person's size, the crop's longer side / `box_margin`.

    **An image regressor**: functional model, (B, H, W, 3) float32 -> {"mu", "log_sigma"}, each
    (B, K, D). The signature `serving_default` takes
        image (B, H, W, 3): uint8 RGB crops,
    and gives
        mu (B, K, D): unit coordinates, x, y = crop pixel / (W, H) - 0.5, z = mm / 2000.
        sigma (B, K, D): the scale of the density about `mu`, same units, in (0, 1).
        keypoints_px, sigma_px (B, K, 2): x, y of `mu` and of `error` in pixels of the crop,
    and where D = 3
        depth_mm, depth_sigma_mm (B, K): z of `mu` and of `error` in mm; positive is farther from
            the camera than the root.

    The signature `predict_image` does the rest as well: what `rle-tf predict` does. It takes
        image_bytes (B,): string, encoded JPEG or PNG photographs,
        boxes_xyxy (B, N, 4): float32, of the people in each, as `crops_of_photographs` takes them,
    and gives, of pixels of the photographs as they are displayed,
        keypoints_px, sigma_px (B, N, K, 2), score and confidence (B, N, K), where D = 3 depth_mm
            and depth_sigma_mm (B, N, K); 0 where there is no box.
        person_score (B, N): mean + maximum of `score`.
        present (B, N): bool, where there is a box.
    The signatures `serving_default_flip_test` and `predict_image_flip_test` take and give the same
    as `serving_default` and `predict_image`, by `evaluation.flip_tested`.

    Where D = 3, the signature `to_camera` takes, as `serving_default`, image, and
        crop_box_xyxy (B, 4): float32, where the crop lies in the photograph, in its pixels.
        focal_px, centre_px (B, 2): float32, focal length and principal point, x and y, pixels.
        root_depth_mm (B,): float32, of the root joint, along the camera's axis,
    and gives
        keypoints_px (B, K, 2): x, y in pixels of the photograph.
        keypoints_mm (B, K, 3): in the axes of the camera, x right, y down and z forward, relative
            to the root joint.
        sigma_mm (B, K, 3): `error` along these axes, to first order: without what an error of the
            depth does to x and y, and without the root joint's own error.

    **A lifting regressor**: functional model, (B, K, 2) float32 -> {"mu", "log_sigma"}, each
    (B, K, 3). Its input is `geometry.screen_coordinates`; its `mu` is in the axes of the camera,
    mm / 2000 relative to the root in x and y too. The signature `serving_default` takes
        keypoints_px (B, K, 2): float32, x, y in pixels of the photograph.
        image_wh (B, 2): float32, width and height of the photograph in pixels,
    and gives `mu` and `sigma` (B, K, 3), and `keypoints_mm` and `sigma_mm` (B, K, 3), which are
    `mu` and `error` in mm.

    The signature `raw` of both takes `input`, float32 as the regressor itself takes it, and gives
    `mu` and `log_sigma`.

    The graph computes in float32 whatever precision the regressor was trained in, and holds the
    regressor's variables alone. It appears under its number when it is complete, not before.

    Args:
        regressor: One of these two; the rank of its input says which.
        directory: The model's folder; made if absent.
        skeleton: What the K joints are; written beside the graph (see `read_metadata`). Where
            D = 3 it has a root joint.
        mean: Of each channel, R, G, B, subtracted from pixel / 255. Like `std` and `box_margin`
            needed for an image regressor, and for no other.
        std: Of each channel; what is left is divided by it.
        box_margin: The factor between a person's box and the crop that it was trained on, 1.25 in
            the paper's recipe; written beside the graph for those who make the crops.
        spread: (D,), or (K, D) for each joint, the error to be expected at a sigma of 1: of a
            calibration, or of the density that it was trained with; by default 1.
        confidence: Of a calibrated image regressor (`Calibration.confidence`).
        version: 1 or more; by default one more than the highest in `directory`.
        warm_up: Whether to add the requests with which TensorFlow Serving warms up.
        half_weights: Whether the variables are float16, which halves the folder; the graph computes
            in float32 all the same.

    Returns:
        The version's folder.

    Raises:
        ModelError: The regressor is of another form or does not fit the skeleton; `mean`, `std` or
            `box_margin` are absent, cannot be used, or are given for a lifting regressor; the
            version exists (nothing is overwritten).
    """
    directory = Path(directory)
    kind, image_size, dims = _check(regressor, skeleton)
    _check_crops(regressor, kind, mean, std, box_margin)
    spread = np.ones(dims) if spread is None else np.asarray(spread, float)
    joints = len(skeleton.joints)
    if spread.shape not in ((dims,), (joints, dims)):
        raise ModelError(
            f"spread: found an array of shape {spread.shape}; expected {dims} numbers, one a"
            f" coordinate, or ({joints}, {dims})"
        )
    if confidence is not None and (kind != "image" or len(confidence.values) != joints):
        raise ModelError(
            f"confidence: found that of {len(confidence.values)} joints for {joints} joints and the"
            f" input {kind!r}; expected an image regressor's, of its joints"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ModelError(f"{error.filename}: is a file; expected a folder for models") from error
    if version is None:
        version = newest_version(directory) + 1
    if version < 1:
        raise ModelError(f"{directory}: found version {version}; expected 1 or more")
    target = directory / str(version)
    if target.exists():
        raise ModelError(f"{target}: this version exists; expected a new one, none is overwritten")

    metadata = {
        "input": kind,
        "skeleton": skeleton.name,
        "joints": skeleton.joints,
        "bones": skeleton.bones,
        "flip_pairs": skeleton.flip_pairs,
        "root": skeleton.root,
        "image_size": image_size,
        "dims": dims,
        "mean": None if mean is None else [float(value) for value in mean],
        "std": None if std is None else [float(value) for value in std],
        "box_margin": None if box_margin is None else float(box_margin),
        "spread": np.where(np.isnan(spread), None, spread).tolist(),
        "confidence": None
        if confidence is None
        else {
            "logit_sigma": confidence.logit_sigma.tolist(),
            "values": confidence.values.round(6).tolist(),
        },
        "versions": {
            "rle_tf": installed_version("rle-tf"),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }
    networks = float32_networks(regressor, half_weights)
    if kind == "image":
        crops = CropFormat(image_size, tuple(map(float, mean)), tuple(map(float, std)), box_margin)
        endpoints = image_endpoints(networks, crops, skeleton, dims, spread, confidence)
    else:
        endpoints = lifting_endpoints(networks.whole, joints, spread)
    # Serving passes over names that are not numbers. The graph goes one level deeper because the
    # temporary folder itself is private to this user, which a served model must not be.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as temporary:
        complete = Path(temporary, "model")
        _write_graph(endpoints, complete)
        (complete / _METADATA).parent.mkdir()
        (complete / _METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
        if warm_up:
            inputs = {name: specs for name, (_, specs) in endpoints.items()}
            write_warm_up(complete, directory.resolve().name, inputs)
        try:
            os.rename(complete, target)
        except OSError as error:
            raise ModelError(f"{target}: another export wrote this version meanwhile") from error
    return target


def read_metadata(model_dir: str | Path) -> dict:
    """What an exported model is for.

    Args:
        model_dir: A version's folder, as `export_savedmodel` returns it.

    Returns:
        `input` ("image" or "keypoints"), `skeleton` (its name), `joints` (K names), `bones` and
        `flip_pairs` (pairs of joint indices), `root` (the joint index that depths are relative to,
        None where the skeleton has none), `image_size` [H, W], `dims` (D), `mean` and `std` (RGB,
        of pixel / 255), `box_margin`, `spread` (D numbers or K lists of D, None where unknown),
        `confidence` (None where not calibrated, see `metadata_confidence`), `versions` (of
        rle_tf, keras and tensorflow when it was written). `image_size`, `mean`, `std` and
        `box_margin` are None where the input is keypoints.

    Raises:
        ModelError: The folder or the file in it is absent, or the file is not such a file.
    """
    model_dir = Path(model_dir)
    path = model_dir / _METADATA
    if not model_dir.is_dir():
        raise ModelError(f"{model_dir}: found no such folder; expected an exported model")
    if not path.is_file():
        newest = model_dir / str(newest_version(model_dir))
        raise ModelError(
            f"{model_dir}: found no {_METADATA}; expected the folder of a version that rle_tf"
            " exported" + (f", such as {newest}" if newest.is_dir() else "")
        )
    try:
        metadata = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON: {error}") from error
    found = sorted(metadata) if isinstance(metadata, dict) else []
    missing = [key for key in _METADATA_KEYS if key not in found]
    if missing:
        raise ModelError(f"{path}: found the keys {found}; expected also {missing}")
    return metadata


def metadata_confidence(metadata: dict) -> Confidence | None:
    """The confidence that `read_metadata` tells of; None where the model is not calibrated."""
    content = metadata.get("confidence")  # older exports have none
    if content is None:
        return None
    return Confidence(**{key: np.array(value, float) for key, value in content.items()})


def check_model_name(name: str) -> None:
    """ModelError unless a name can stand in a path and in an address as it is."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ModelError(
            f"the model's name: found {name!r}; expected letters of a to z, digits, '.', '_', '-'"
        )


def load_savedmodel(version_dir: str | Path):
    """The loaded SavedModel, whose `signatures` need it kept.

    Raises:
        ModelError: if its files are absent, cut or of another kind.
    """
    try:
        return tf.saved_model.load(str(version_dir))
    except (OSError, LookupError, ValueError, tf.errors.OpError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{version_dir}: cannot be loaded; expected a whole SavedModel ({reason:.200})"
        ) from error


def load_forward(version_dir: str | Path, flip_test: bool = False) -> Forward:
    """An exported model of images as a function of uint8 crops, with all that it says of them.

    Raises:
        ModelError: as `load_savedmodel`, or if it was exported before there was a flip test.
    """
    loaded, name = load_savedmodel(version_dir), crops_signature(flip_test)
    if name not in loaded.signatures:
        raise ModelError(
            f"{version_dir}: found the signatures {', '.join(loaded.signatures)}; expected "
            f"'{name}', which an export by this version of rle-tf has"
        )
    # Not taken out once for all: a signature does not keep the loaded object's weights.
    return lambda crops: loaded.signatures[name](image=crops)


def newest_version(directory: Path) -> int:
    """The highest version of a model that is there in any format, 0 where there is none."""
    found = (re.match(r"\d+(?=$|[-.])", entry.name) for entry in directory.glob("*"))
    return max((int(match[0]) for match in found if match), default=0)


def _check(regressor: keras.Model, skeleton: Skeleton) -> tuple[str, tuple[int, int] | None, int]:
    """What a regressor that can be exported takes, its (height, width) and D; else ModelError."""
    inputs = [tuple(tensor.shape) for tensor in regressor.inputs]
    match inputs:
        case [(_, int(height), int(width), 3)]:
            kind, image_size, fitting_dims = "image", (height, width), (2, 3)
        case [(_, int(), 2)]:
            kind, image_size, fitting_dims = "keypoints", None, (3,)
        case _:
            raise ModelError(
                f"regressor {regressor.name!r}: found inputs {inputs}; expected one, images"
                " (B, H, W, 3) with a fixed H and W or keypoints (B, K, 2) with a fixed K"
            )
    found = keras.tree.map_structure(lambda tensor: tensor.shape, regressor.output)
    shapes = found if isinstance(found, dict) else {}
    mu = shapes.get("mu", ())
    if set(shapes) != {"mu", "log_sigma"} or shapes["log_sigma"] != mu or len(mu) != 3:
        raise ModelError(
            f"regressor {regressor.name!r}: found output {found}; expected 'mu' and 'log_sigma',"
            " each (B, K, D)"
        )
    joints = len(skeleton.joints)
    if mu[1] != joints or mu[2] not in fitting_dims:
        raise ModelError(
            f"regressor {regressor.name!r}: found output {mu}; expected (B, {joints},"
            f" {' or '.join(map(str, fitting_dims))}) for skeleton {skeleton.name!r} and input"
            f" {kind!r}"
        )
    if kind == "keypoints" and inputs[0][1] != joints:
        raise ModelError(
            f"regressor {regressor.name!r}: found input {inputs[0]}; expected (B, {joints}, 2) for"
            f" skeleton {skeleton.name!r}"
        )
    if mu[2] == 3 and skeleton.root is None:
        raise ModelError(
            f"skeleton {skeleton.name!r}: found the joints {', '.join(skeleton.joints)}; expected"
            " a 'pelvis' among them, the root that the depth of a 3D regressor is relative to"
        )
    return kind, image_size, mu[2]


def _check_crops(
    regressor: keras.Model,
    kind: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    box_margin: float | None,
) -> None:
    """ModelError unless what is said of crops is what the kind of regressor needs."""
    values = {"mean": mean, "std": std, "box_margin": box_margin}
    given = [name for name, value in values.items() if value is not None]
    if given != (list(values) if kind == "image" else []):
        raise ModelError(
            f"regressor {regressor.name!r}: found {', '.join(given) or 'no mean, std, box_margin'};"
            f" expected {'all' if kind == 'image' else 'none'} of mean, std and box_margin where"
            f" the input is {kind!r}"
        )
    if kind == "image" and (len(mean) != 3 or len(std) != 3 or min(std) <= 0):
        raise ModelError(
            f"normalisation: found mean {list(mean)}, std {list(std)}; expected three numbers"
            " each (R, G, B), std above 0"
        )


def _write_graph(endpoints: Endpoints, path: Path) -> None:
    # The archive finds the endpoints' variables; `track` would store each a second time.
    archive = keras.export.ExportArchive()
    for name, (function, inputs) in endpoints.items():
        archive.add_endpoint(name, function, inputs)
    archive.write_out(str(path), verbose=False)
