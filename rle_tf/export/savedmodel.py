"""A trained regressor as a TensorFlow SavedModel: uint8 crops in, poses with uncertainty out."""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import keras
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.geometry import DEPTH_MM
from rle_tf.skeletons import Skeleton

# TensorFlow Serving passes over this folder of a model: the place for files of one's own.
_METADATA = Path("assets.extra", "rle_tf.json")
_METADATA_KEYS = (
    "skeleton", "joints", "bones", "flip_pairs", "image_size", "dims", "mean", "std", "box_margin",
    "spread", "versions",
)  # fmt: skip


def export_savedmodel(
    regressor: keras.Model,
    directory: str | Path,
    *,
    skeleton: Skeleton,
    mean: Sequence[float],
    std: Sequence[float],
    box_margin: float = 1.25,
    spread: Sequence[float] | None = None,
    version: int | None = None,
) -> Path:
    """Writes the regressor as `directory/<version>/`, the layout that TensorFlow Serving reads.

    The signature `serving_default` takes `image` (B, H, W, 3), uint8 RGB crops, with B free, and
    gives, all float32:
        mu (B, K, D): unit coordinates, x, y = crop pixel / (W, H) - 0.5, z = mm / 2000.
        sigma (B, K, D): the scale of the density about `mu`, same units, in (0, 1).
        score (B, K): 1 - the mean of sigma over D, the joint's confidence (the paper's).
        keypoints_px (B, K, D): `mu` with x, y in pixels of the crop and z in mm from the root.
        sigma_px (B, K, D): the error to be expected, sigma * spread, in the units of
            `keypoints_px`; NaN where `spread` is.

    The graph computes in float32 whatever precision the regressor was trained in, and holds the
    regressor's variables alone. It appears under its number when it is complete, not before.

    Args:
        regressor: Functional model, (B, H, W, 3) float32 -> {"mu", "log_sigma"}, each (B, K, D).
        directory: The model's folder; made if absent.
        skeleton: What the K joints are; written beside the graph (see `read_metadata`).
        mean: Of each channel, R, G, B, subtracted from pixel / 255.
        std: Of each channel; what is left is divided by it.
        box_margin: The factor between a person's box and the crop that it was trained on; written
            beside the graph for those who make the crops.
        spread: (D,) `RealNVP.spread` of the flow that it was trained with, the error to be
            expected at a sigma of 1; by default 1.
        version: 1 or more; by default one more than the highest in `directory`.

    Returns:
        The version's folder.

    Raises:
        ModelError: The regressor is of another form or does not fit the skeleton; `mean` or `std`
            cannot be used; the version exists (nothing is overwritten).
    """
    directory = Path(directory)
    image_size, dims = _check(regressor, skeleton, mean, std)
    spread = [1.0] * dims if spread is None else [float(value) for value in spread]
    if len(spread) != dims:
        raise ModelError(f"spread: found {spread}; expected {dims} numbers, one a coordinate")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ModelError(f"{error.filename}: is a file; expected a folder for models") from error
    if version is None:
        version = max(_versions(directory), default=0) + 1
    if version < 1:
        raise ModelError(f"{directory}: found version {version}; expected 1 or more")
    target = directory / str(version)
    if target.exists():
        raise ModelError(f"{target}: this version exists; expected a new one, none is overwritten")

    metadata = {
        "skeleton": skeleton.name,
        "joints": skeleton.joints,
        "bones": skeleton.bones,
        "flip_pairs": skeleton.flip_pairs,
        "image_size": image_size,
        "dims": dims,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "box_margin": float(box_margin),
        "spread": [None if math.isnan(value) else value for value in spread],
        "versions": {
            "rle_tf": installed_version("rle-tf"),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
    }
    # Serving passes over names that are not numbers. The graph goes one level deeper because the
    # temporary folder itself is private to this user, which a served model must not be.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory) as temporary:
        complete = Path(temporary, "model")
        _write_graph(regressor, complete, image_size, mean, std, spread)
        (complete / _METADATA).parent.mkdir()
        (complete / _METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
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
        `skeleton` (its name), `joints` (K names), `bones` and `flip_pairs` (pairs of joint
        indices), `image_size` [H, W], `dims` (D), `mean` and `std` (RGB, of pixel / 255),
        `box_margin`, `spread` (D numbers, null where unknown), `versions` (of rle_tf, keras and
        tensorflow when it was written).

    Raises:
        ModelError: The folder or the file in it is absent, or the file is not such a file.
    """
    model_dir = Path(model_dir)
    path = model_dir / _METADATA
    if not model_dir.is_dir():
        raise ModelError(f"{model_dir}: found no such folder; expected an exported model")
    if not path.is_file():
        versions = sorted(_versions(model_dir))
        raise ModelError(
            f"{model_dir}: found no {_METADATA}; expected the folder of a version that rle_tf"
            " exported" + (f", such as {model_dir / str(versions[-1])}" if versions else "")
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


def _versions(directory: Path) -> list[int]:
    return [int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal()]


def _check(
    regressor: keras.Model, skeleton: Skeleton, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[int, int], int]:
    """The (height, width) and D of a regressor that can be exported; ModelError for another."""
    inputs = [tensor.shape for tensor in regressor.inputs]
    if len(inputs) != 1 or len(inputs[0]) != 4 or inputs[0][3] != 3 or None in inputs[0][1:]:
        raise ModelError(
            f"regressor {regressor.name!r}: found inputs {inputs}; expected one (B, H, W, 3) with"
            " a fixed H and W"
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
    if mu[1] != joints or mu[2] not in (2, 3):
        raise ModelError(
            f"regressor {regressor.name!r}: found output {mu}; expected (B, {joints}, 2 or 3) for"
            f" skeleton {skeleton.name!r}"
        )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError(
            f"normalisation: found mean {list(mean)}, std {list(std)}; expected three numbers"
            " each (R, G, B), std above 0"
        )
    return inputs[0][1:3], mu[2]


def _write_graph(
    regressor: keras.Model,
    path: Path,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    spread: Sequence[float],
) -> None:
    twin = _float32_twin(regressor)
    height, width = image_size
    mean, std = tf.constant(mean, tf.float32), tf.constant(std, tf.float32)
    dims = len(spread)
    scale = tf.constant([width, height, DEPTH_MM][:dims], tf.float32)
    origin = tf.constant([0.5, 0.5, 0.0][:dims])
    spread = tf.constant(spread, tf.float32)

    def serve(image):
        output = twin((tf.cast(image, tf.float32) / 255 - mean) / std, training=False)
        mu, sigma = output["mu"], tf.exp(output["log_sigma"])
        return {
            "mu": mu,
            "sigma": sigma,
            "score": 1 - tf.reduce_mean(sigma, axis=-1),
            "keypoints_px": (mu + origin) * scale,
            "sigma_px": sigma * spread * scale,
        }

    # The archive finds the endpoint's variables; `track` would store each a second time.
    archive = keras.export.ExportArchive()
    image = tf.TensorSpec((None, height, width, 3), tf.uint8, name="image")
    archive.add_endpoint("serving_default", serve, [image])
    archive.write_out(str(path), verbose=False)


def _float32_twin(regressor: keras.Model) -> keras.Model:
    """The same network and weights, computing in float32.

    A graph traced under mixed precision computes in float16, which is slow on CPUs, and TensorFlow
    Lite has no such convolution: the conversion would fail.
    """

    def clone(operation):
        if not isinstance(operation, keras.layers.Layer):
            return operation
        return type(operation).from_config({**operation.get_config(), "dtype": "float32"})

    # The new Model about the same graph leaves behind a `compile`, which cloning would repeat.
    graph = keras.Model(regressor.input, regressor.output, name=regressor.name)
    twin = keras.models.clone_model(graph, clone_function=clone, recursive=True)
    twin.set_weights(regressor.get_weights())
    return twin
