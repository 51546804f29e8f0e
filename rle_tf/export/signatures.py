"""What an exported model computes: the functions behind its signatures.

`export_savedmodel` lists their inputs and outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rle_tf.data.confidence import Confidence
from rle_tf.data.crops import CropFormat
from rle_tf.errors import ModelError
from rle_tf.evaluation import Network, density, flip_tested
from rle_tf.export.photograph import crops_of_photographs
from rle_tf.export.twin import float32_twin
from rle_tf.geometry import DEPTH_MM, screen_coordinates
from rle_tf.models.heatmap import at_the_maps
from rle_tf.skeletons import Skeleton

# By the name of each signature: its function and the tensors that the function takes.
Endpoints = dict[str, tuple[Callable[..., dict[str, tf.Tensor]], list[tf.TensorSpec]]]


class Networks(NamedTuple):
    """A regressor, and the same `at_the_maps` where its head has any."""

    whole: Network
    parts: tuple[Network, Network] | None


def float32_networks(regressor: keras.Model, half_weights: bool = False) -> Networks:
    """The regressor in float32, traced once for all signatures: input -> `mu`, `log_sigma`.

    With `half_weights` all weights but the statistics of batch normalisation are float16, and
    become float32 when it runs.

    Raises:
        ModelError: for a weight that float16 does not hold.
    """
    twin = float32_twin(regressor)
    variables = {}
    if half_weights:
        for layer in twin._flatten_layers():
            layer.trainable = True  # also what was frozen, whose kernels are large
        variables = {id(variable): _half(variable) for variable in twin.trainable_variables}
        # Variances may be large, and are few.
        variables |= {id(v): tf.Variable(v, trainable=False) for v in twin.non_trainable_variables}

    def traced(model: keras.Model) -> Network:
        def call(inputs):
            if not half_weights:
                return model(inputs, training=False)
            values = [
                tf.cast(tf.bitcast(variables[id(v)], tf.float16), tf.float32)
                for v in model.trainable_variables
            ]
            others = [variables[id(v)] for v in model.non_trainable_variables]
            output, _ = model.stateless_call(values, others, inputs, training=False)
            return output

        shapes = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape), model.input)
        return tf.function(call, [shapes], autograph=False)

    parts = at_the_maps(twin)
    return Networks(traced(twin), parts and tuple(map(traced, parts)))


def _half(variable: keras.Variable) -> tf.Variable:
    half = tf.cast(variable, tf.float16)
    if not np.isfinite(half).all():
        raise ModelError(
            f"{variable.path}: found {np.abs(variable).max():.4g}; expected weights up to 65504, "
            "as float16 holds, or an export without half weights"
        )
    # As integers: TensorFlow writes an error about every model that holds a float16 variable to the
    # terminal of CPUs that cannot compute in it, where nobody computes in it.
    return tf.Variable(tf.bitcast(half, tf.uint16), trainable=False)


def _checked(values: tf.Tensor, sound: tf.Tensor, sentence: str) -> tf.Tensor:
    """The values; where the graph runs and they are not all sound it fails with the sentence.

    LiteRT and ONNX leave such a check out.
    """
    check = tf.debugging.Assert(tf.reduce_all(sound), [f"rle_tf: {sentence}"])
    with tf.control_dependencies([check]):
        return tf.identity(values)


def _score(sigma: tf.Tensor) -> tf.Tensor:
    return 1 - tf.reduce_mean(sigma, axis=-1)


def image_endpoints(
    networks: Networks,
    crops: CropFormat,
    skeleton: Skeleton,
    dims: int,
    spread: np.ndarray,
    confidence: Confidence | None,
) -> Endpoints:
    """The signatures of a regressor of images, with D = `dims`."""
    height, width = crops.image_size
    size_px = tf.constant([width, height], tf.float32)
    spread = np.float32(spread)

    def scores(sigma):
        calibrated = {} if confidence is None else {"confidence": confidence(sigma)}
        return {"score": _score(sigma), **calibrated}

    def regress(image, flip_test=False):
        image = crops.normalise(tf.cast(image, tf.float32))
        if not flip_test:
            return density(networks.whole(image))
        permutation = skeleton.flip_permutation
        mirrored = crops.mirror(image, permutation)
        return flip_tested(*networks, image, mirrored, permutation, crops.mirror_shift)

    def depth(mu, error):
        if dims == 2:
            return {}
        return {"depth_mm": mu[..., 2] * DEPTH_MM, "depth_sigma_mm": error[..., 2] * DEPTH_MM}

    def serve(image, flip_test=False):
        output = regress(image, flip_test)
        mu, error = output["mu"], output["sigma"] * spread
        return {
            **output,
            **scores(output["sigma"]),
            "keypoints_px": (mu[..., :2] + 0.5) * size_px,
            "sigma_px": error[..., :2] * size_px,
            **depth(mu, error),
        }

    def serve_flip_test(image):
        return serve(image, flip_test=True)

    def predict_image(image_bytes, boxes_xyxy, flip_test=False):
        present, image, crop_box_xyxy = crops_of_photographs(image_bytes, boxes_xyxy, crops)
        # Not every kernel takes an empty batch.
        nobody = tf.zeros((0, len(skeleton.joints), dims))
        output = tf.cond(
            tf.reduce_any(present),
            lambda: regress(image, flip_test),
            lambda: {"mu": nobody, "sigma": nobody},
        )
        mu, error = output["mu"], output["sigma"] * spread
        low, high = crop_box_xyxy[:, None, :2], crop_box_xyxy[:, None, 2:]
        score = _score(output["sigma"])
        people = {
            "keypoints_px": low + (mu[..., :2] + 0.5) * (high - low),
            "sigma_px": error[..., :2] * (high - low),
            **scores(output["sigma"]),
            "person_score": tf.reduce_mean(score, axis=-1) + tf.reduce_max(score, axis=-1),
            **depth(mu, error),
        }
        rows, shape = tf.where(present), tf.shape(present, tf.int64)
        return {
            "present": present,
            **{
                name: tf.scatter_nd(
                    rows, value, tf.concat([shape, tf.shape(value, tf.int64)[1:]], axis=0)
                )
                for name, value in people.items()
            },
        }

    def predict_image_flip_test(image_bytes, boxes_xyxy):
        return predict_image(image_bytes, boxes_xyxy, flip_test=True)

    def to_camera(image, crop_box_xyxy, focal_px, centre_px, root_depth_mm):
        focal_px = _checked(
            focal_px,
            tf.math.is_finite(focal_px) & (focal_px > 0),
            "focal_px: found a length that is not above 0; expected pixels",
        )
        output = regress(image)
        mu, error = output["mu"], output["sigma"] * spread
        low, high = crop_box_xyxy[:, None, :2], crop_box_xyxy[:, None, 2:]
        xy_px = low + (mu[..., :2] + 0.5) * (high - low)
        z_mm = mu[..., 2:] * DEPTH_MM + root_depth_mm[:, None, None]
        mm_per_px = z_mm / focal_px[:, None]
        xyz_mm = tf.concat([(xy_px - centre_px[:, None]) * mm_per_px, z_mm], axis=-1)
        return {
            "keypoints_mm": xyz_mm - xyz_mm[:, skeleton.root : skeleton.root + 1],
            "keypoints_px": xy_px,
            "sigma_mm": tf.concat(
                [error[..., :2] * (high - low) * mm_per_px, error[..., 2:] * DEPTH_MM], axis=-1
            ),
            **scores(output["sigma"]),
        }

    image = tf.TensorSpec((None, height, width, 3), tf.uint8, name="image")
    photograph = [
        tf.TensorSpec((None,), tf.string, name="image_bytes"),
        tf.TensorSpec((None, None, 4), name="boxes_xyxy"),
    ]
    endpoints = {
        "serving_default": (serve, [image]),
        "serving_default_flip_test": (serve_flip_test, [image]),
        "predict_image": (predict_image, photograph),
        "predict_image_flip_test": (predict_image_flip_test, photograph),
        "raw": (networks.whole, [tf.TensorSpec((None, height, width, 3), name="input")]),
    }
    if dims == 3:
        view = [
            tf.TensorSpec((None, 4), name="crop_box_xyxy"),
            tf.TensorSpec((None, 2), name="focal_px"),
            tf.TensorSpec((None, 2), name="centre_px"),
            tf.TensorSpec((None,), name="root_depth_mm"),
        ]
        endpoints["to_camera"] = (to_camera, [image, *view])
    return endpoints


def lifting_endpoints(network: Network, joints: int, spread: np.ndarray) -> Endpoints:
    """The signatures of a lifter."""
    spread = np.float32(spread)

    def serve(keypoints_px, image_wh):
        keypoints_px = _checked(
            keypoints_px,
            tf.math.is_finite(keypoints_px),
            "keypoints_px: found a number that is not finite; expected pixels",
        )
        image_wh = _checked(
            image_wh,
            tf.math.is_finite(image_wh) & (image_wh > 0),
            "image_wh: found a size that is not above 0; expected width and height in pixels",
        )
        output = density(network(screen_coordinates(keypoints_px, image_wh)))
        return {
            **output,
            "score": _score(output["sigma"]),
            "keypoints_mm": output["mu"] * DEPTH_MM,
            "sigma_mm": output["sigma"] * spread * DEPTH_MM,
        }

    inputs = [
        tf.TensorSpec((None, joints, 2), name="keypoints_px"),
        tf.TensorSpec((None, 2), name="image_wh"),
    ]
    return {
        "serving_default": (serve, inputs),
        "raw": (network, [tf.TensorSpec((None, joints, 2), name="input")]),
    }
