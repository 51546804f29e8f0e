"""Predict for a dataset's people, decode to image pixels, score."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf

from rle_tf import geometry, metrics
from rle_tf.data.pipeline import InputFormat, evaluation_batches, named_image_errors
from rle_tf.data.source import Poses, Records, Source
from rle_tf.errors import ModelError
from rle_tf.skeletons import Skeleton

Output = dict[str, tf.Tensor]

# Of a density that is wide by one sigma itself.
UNIT_SPREAD = (1.0, 1.0, 1.0)


def flip_back(output: Output, permutation: tuple[int, ...], image_width: int) -> Output:
    """What the regressor said of a mirrored crop, as of the crop itself.

    Mirroring moves the centre of pixel 0 to the centre of the last pixel, so x becomes
    -x - 1 / W in unit coordinates.

    Args:
        output: {"mu": (B, K, D), "sigma": (B, K, D)}.
        permutation: `Skeleton.flip_permutation`.
        image_width: W of the crop in pixels.
    """
    mu, sigma = (tf.gather(output[key], permutation, axis=1) for key in ("mu", "sigma"))
    x = -mu[..., :1] - 1 / image_width
    return {"mu": tf.concat([x, mu[..., 1:]], axis=-1), "sigma": sigma}


# Two, with and without flip test: a training run evaluates the same regressor epoch after epoch,
# and tracing it anew each time takes seconds.
@lru_cache(maxsize=2)
def forward_function(
    regressor: keras.Model, skeleton: Skeleton, flip_test: bool
) -> Callable[[tf.Tensor], Output]:
    """Normalised crops (B, H, W, 3) -> {"mu": (B, K, D), "sigma": (B, K, D)}, any B.

    With `flip_test` both are means over the crop and its mirror image.

    Raises:
        ModelError: if the regressor's joints are not the skeleton's.
    """
    check_skeleton(regressor, skeleton)
    _, height, width, channels = regressor.input_shape

    # One signature for all batches, so that the last, smaller one is not traced anew.
    @tf.function(input_signature=[tf.TensorSpec([None, height, width, channels])])
    def forward(image):
        def regress(image):
            output = regressor(image, training=False)
            return {"mu": output["mu"], "sigma": tf.exp(output["log_sigma"])}

        output = regress(image)
        if not flip_test:
            return output
        mirrored = flip_back(regress(image[:, :, ::-1]), skeleton.flip_permutation, width)
        return {key: (output[key] + mirrored[key]) / 2 for key in output}

    return forward


def check_skeleton(regressor: keras.Model, skeleton: Skeleton) -> None:
    """Raises `ModelError` if a regressor does not give the joints of a skeleton."""
    joints = regressor.output["mu"].shape[1]
    if joints != len(skeleton.joints):
        raise ModelError(
            f"regressor '{regressor.name}' gives {joints} joints; expected the "
            f"{len(skeleton.joints)} of skeleton '{skeleton.name}'"
        )


def decode(
    output: dict[str, np.ndarray],
    crop_boxes_xyxy: np.ndarray,
    box_scores: np.ndarray | float = 0.0,
    spread: Sequence[float] = UNIT_SPREAD,
) -> Poses:
    """Unit coordinates of crops as poses in image pixels.

    Args:
        output: {"mu": (N, K, D), "sigma": (N, K, D)}.
        crop_boxes_xyxy: (N, 4) where the crops lie.
        box_scores: (N,) of the detector, or 0.
        spread: (D,) the flow's `RealNVP.spread`, by which `sigma_px` is more than sigma.
    """
    mu, sigma = (np.asarray(output[key], np.float64) for key in ("mu", "sigma"))
    joint_scores = 1 - sigma.mean(axis=-1)
    return Poses(
        keypoints_px=geometry.unit_to_image(mu[..., :2], crop_boxes_xyxy),
        sigma_px=geometry.unit_to_image_scale(sigma[..., :2] * spread[:2], crop_boxes_xyxy),
        joint_scores=joint_scores,
        person_scores=metrics.person_scores(joint_scores, box_scores),
        crop_boxes_xyxy=np.asarray(crop_boxes_xyxy, np.float64),
    )


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
        spread: As in `decode`.
        on_batch: Called with the number of people of each batch once it is done.

    Raises:
        DataError: for an image that cannot be used.
        ModelError: if the regressor's joints are not the skeleton's, or its input is of another
            size.
    """
    height, width = regressor.input_shape[1:3]
    if (height, width) != tuple(input_format.image_size):
        raise ModelError(
            f"regressor '{regressor.name}' takes images of {height}x{width} (height x width); "
            f"found data.image_size {list(input_format.image_size)}"
        )
    forward = forward_function(regressor, skeleton, flip_test)
    batches = evaluation_batches(records, skeleton, input_format, batch_size=batch_size)
    outputs = []
    with named_image_errors(records):
        for image, _ in batches:
            outputs.append({key: value.numpy() for key, value in forward(image).items()})
            if on_batch:
                on_batch(len(image))
    joined = {key: np.concatenate([output[key] for output in outputs]) for key in outputs[0]}
    crops = geometry.crop_boxes(
        records.boxes_xyxy, input_format.image_size, input_format.box_margin
    )
    return decode(joined, crops, records.box_scores, spread)


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
