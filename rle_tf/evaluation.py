"""Predict for a dataset's people, decode to image pixels, score."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

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
# The same to {"mu", "log_sigma"}, or a part of that.
Network = Callable[[Any], Any]


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


def flip_tested(
    network: Network,
    parts: tuple[Network, Network] | None,
    inputs: tf.Tensor,
    mirrored: tf.Tensor,
    permutation: tuple[int, ...],
    shift: float,
) -> Output:
    """What a regressor says of inputs and of their mirror images together: the means of `mu` and
    `sigma`. Where its head has maps those are averaged before a place is taken from them, as
    SimpleBaseline does: a joint may be in one of two places, and not halfway.

    Args:
        network: The regressor; it is given 2 B inputs at once.
        parts: The same `at_the_maps`, if it has any.
        inputs, mirrored: (B, ...) each.
        permutation, shift: As in `flip_back`.
    """
    # One batch, as a graph with the network in it twice would be twice as large on a device.
    both, batch = tf.concat([inputs, mirrored], axis=0), tf.shape(inputs)[0]

    def halves(tensor):
        # Not by `tf.split`, whose two outputs LiteRT's converter does not keep in float.
        return tensor[:batch], tensor[batch:]

    if parts is None:
        output = network(both)
    else:
        maps_of, head = parts
        # Of one output Keras makes no list.
        maps, *beside = tf.nest.flatten(maps_of(both))

        def mirror(maps):
            return tf.gather(maps[:, :, ::-1], permutation, axis=-1)

        maps, others = halves(maps)
        maps = (maps + mirror(others)) / 2
        output = head([tf.concat([maps, mirror(maps)], axis=0), *beside])
    pairs = {key: halves(value) for key, value in density(output).items()}
    back = flip_back({key: pair[1] for key, pair in pairs.items()}, permutation, shift)
    return {key: (pair[0] + back[key]) / 2 for key, pair in pairs.items()}


# Two, with and without flip test: a training run evaluates the same regressor epoch after epoch,
# and tracing it anew each time takes seconds.
@lru_cache(maxsize=2)
def forward_function(
    regressor: keras.Model, skeleton: Skeleton, input_format: InputFormat, flip_test: bool
) -> Forward:
    """The regressor's input (B, ...) -> {"mu": (B, K, D), "sigma": (B, K, D)}, any B.

    With `flip_test` those of the input and its mirror image together, as `flip_tested` says.

    Raises:
        ModelError: if the regressor's joints are not the skeleton's, or its input is another.
    """
    check_skeleton(regressor, skeleton)
    input_format.check(regressor)
    permutation = skeleton.flip_permutation
    parts = at_the_maps(regressor) if flip_test else None

    def called(model):
        return lambda inputs: model(inputs, training=False)

    network, parts = called(regressor), parts and tuple(map(called, parts))

    # One signature for all batches, so that the last, smaller one is not traced anew.
    @tf.function(input_signature=[tf.TensorSpec(regressor.input_shape)], autograph=False)
    def forward(inputs):
        if not flip_test:
            return density(network(inputs))
        mirrored = input_format.mirror(inputs, permutation)
        return flip_tested(network, parts, inputs, mirrored, permutation, input_format.mirror_shift)

    return forward


def density(output: dict[str, tf.Tensor]) -> Output:
    """A regressor's `mu` and `log_sigma` as `mu` and `sigma`."""
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
