"""Predict for a dataset's people, decode to image pixels, score."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf

from rle_tf.data.crops import CropFormat
from rle_tf.data.pipeline import evaluation_batches, named_image_errors
from rle_tf.data.source import UNIT_SPREAD, InputFormat, Poses, Records, Source
from rle_tf.errors import ModelError
from rle_tf.models.heatmap import at_the_maps
from rle_tf.skeletons import Skeleton

Output = dict[str, tf.Tensor]
# Inputs (B, ...) -> {"mu": (B, K, D), "sigma": (B, K, D)}, any B.
Forward = Callable[[tf.Tensor], Output]


def flip_back(output: Output, permutation: tuple[int, ...], shift: float) -> Output:
    """What the regressor said of a mirrored input, as of the input itself.

    Args:
        output: {"mu": (B, K, D), "sigma": (B, K, D)}.
        permutation: `Skeleton.flip_permutation`.
        shift: x becomes -x - shift: 1 / W for crops of width W pixels, whose mirroring moves the
            centre of pixel 0 to the centre of the last pixel (`InputFormat.mirror_shift`).
    """
    mu, sigma = (tf.gather(output[key], permutation, axis=1) for key in ("mu", "sigma"))
    x = -mu[..., :1] - shift
    return {"mu": tf.concat([x, mu[..., 1:]], axis=-1), "sigma": sigma}


# Two, with and without flip test: a training run evaluates the same regressor epoch after epoch,
# and tracing it anew each time takes seconds.
@lru_cache(maxsize=2)
def forward_function(
    regressor: keras.Model, skeleton: Skeleton, input_format: InputFormat, flip_test: bool
) -> Forward:
    """The regressor's input (B, ...) -> {"mu": (B, K, D), "sigma": (B, K, D)}, any B.

    With `flip_test` both are means over the input and its mirror image; of a regressor with head
    heatmap the maps are averaged and their peaks taken, as SimpleBaseline does.

    Raises:
        ModelError: if the regressor's joints are not the skeleton's, or its input is another.
    """
    check_skeleton(regressor, skeleton)
    input_format.check(regressor)
    permutation = skeleton.flip_permutation
    parts = at_the_maps(regressor) if flip_test else None

    def regress(inputs):
        return _density(regressor(inputs, training=False))

    def both(inputs, mirrored):
        if parts is None:
            output = regress(inputs)
            back = flip_back(regress(mirrored), permutation, input_format.mirror_shift)
            return {key: (output[key] + back[key]) / 2 for key in output}
        maps_of, head = parts
        back = tf.gather(maps_of(mirrored, training=False)[:, :, ::-1], permutation, axis=-1)
        output = _density(head((maps_of(inputs, training=False) + back) / 2, training=False))
        # A mirrored map lies to the right of the other by what a mirrored crop does.
        shift = tf.constant([input_format.mirror_shift / 2, 0.0])
        return output | {"mu": output["mu"] - shift}

    # One signature for all batches, so that the last, smaller one is not traced anew.
    @tf.function(input_signature=[tf.TensorSpec(regressor.input_shape)], autograph=False)
    def forward(inputs):
        if flip_test:
            return both(inputs, input_format.mirror(inputs, permutation))
        return regress(inputs)

    return forward


def _density(output: dict[str, tf.Tensor]) -> Output:
    return {"mu": output["mu"], "sigma": tf.exp(output["log_sigma"])}


def check_skeleton(regressor: keras.Model, skeleton: Skeleton) -> None:
    """Raises `ModelError` if a regressor does not give the joints of a skeleton."""
    joints = regressor.output["mu"].shape[1]
    if joints != len(skeleton.joints):
        raise ModelError(
            f"regressor '{regressor.name}' gives {joints} joints; expected the "
            f"{len(skeleton.joints)} of skeleton '{skeleton.name}'"
        )


def pixel_format(input_format: CropFormat) -> CropFormat:
    """The same crops with RGB 0..255 as they are, what `of_pixels` takes."""
    return replace(input_format, mean=(0.0,) * 3, std=(1 / 255,) * 3)


def of_pixels(forward: Forward) -> Forward:
    """A function of uint8 crops, as exported models are, as one of `pixel_format`'s floats."""
    return lambda crops: forward(tf.cast(tf.round(crops), tf.uint8))


def predict_outputs(
    forward: Forward,
    records: Records,
    skeleton: Skeleton,
    input_format: InputFormat,
    *,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """{"mu": (N, K, D), "sigma": (N, K, D)} of all people of `records`, row by row.

    Args:
        forward: Of what `input_format` makes; `of_pixels` where that is a `pixel_format`.
        on_batch: Called with the number of people of each batch once it is done.

    Raises:
        DataError: for an image that cannot be used.
    """
    batches = evaluation_batches(records, skeleton, input_format, batch_size=batch_size)
    outputs = []
    with named_image_errors(records, input_format):
        for inputs, _ in batches:
            output = forward(inputs)
            outputs.append({key: np.asarray(output[key]) for key in ("mu", "sigma")})
            if on_batch:
                on_batch(len(inputs))
    return {key: np.concatenate([output[key] for output in outputs]) for key in outputs[0]}


def predict_poses(
    regressor: keras.Model,
    records: Records,
    skeleton: Skeleton,
    input_format: InputFormat,
    *,
    batch_size: int = 64,
    flip_test: bool = True,
    spread: Sequence[float] = UNIT_SPREAD,
    on_batch: Callable[[int], None] | None = None,
) -> Poses:
    """The poses of all people of `records`, row by row.

    Args:
        spread: (D,) or (K, D), the error to be expected at a sigma of 1.
        on_batch: Called with the number of people of each batch once it is done.

    Raises:
        DataError: for an image that cannot be used.
        ModelError: if the regressor's joints are not the skeleton's, or its input is of another
            size.
    """
    forward = forward_function(regressor, skeleton, input_format, flip_test)
    output = predict_outputs(
        forward, records, skeleton, input_format, batch_size=batch_size, on_batch=on_batch
    )
    return input_format.decode(output, records, spread)


def evaluate(
    regressor: keras.Model,
    source: Source,
    input_format: InputFormat,
    *,
    batch_size: int = 64,
    flip_test: bool = True,
    spread: Sequence[float] = UNIT_SPREAD,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], list[dict]]:
    """Scores a regressor on all people of a source.

    Args:
        spread, on_batch: As in `predict_poses`.

    Returns:
        The source's metrics, and the predictions in its submission format.

    Raises:
        As `predict_poses`.
    """
    poses = predict_poses(
        regressor,
        source.records,
        source.skeleton,
        input_format,
        batch_size=batch_size,
        flip_test=flip_test,
        spread=spread,
        on_batch=on_batch,
    )
    return source.score(poses), source.results(poses)
