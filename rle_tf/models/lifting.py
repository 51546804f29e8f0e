"""From joints in the image to joints in space: the residual network for lifting."""

import keras
from keras import layers

from rle_tf.models.regressor import dense_head, log_sigma_head, relative_to_root
from rle_tf.skeletons import Skeleton


def build_lifter(
    skeleton: Skeleton, width: int = 1024, blocks: int = 2, dropout: float = 0.5
) -> keras.Model:
    """The network of Martinez et al., "A simple yet effective baseline for 3d human pose
    estimation" (ICCV 2017), with the two heads of RLE.

    A dense layer to `width`, then residual blocks of two dense layers; each dense layer is followed
    by batch normalisation, ReLU and dropout. Only layers and operations of Keras itself are used: a
    saved model loads where this package is not installed.

    Args:
        skeleton: Gives the number K of joints and their root.
        width: Units of each layer.
        blocks: Residual blocks.
        dropout: Share of units dropped in training.

    Returns:
        A functional model named "regressor": float32 "keypoints" (B, K, 2) in
        `geometry.screen_coordinates` -> {"mu": (B, K, 3), "log_sigma": (B, K, 3)}, float32. mu is
        along the camera's axes (x right, y down, z away) in millimetres / 2000 relative to the
        root; sigma = exp(log_sigma), in the same units, is at most 1. The root's mu is 0 and its
        sigma 1e-9.

    Raises:
        ModelError: if the skeleton has no root.
    """
    joints = len(skeleton.joints)
    keypoints = keras.Input((joints, 2), dtype="float32", name="keypoints")
    x = layers.Flatten(name="flat")(keypoints)
    x = _dense(x, width, dropout, "lift")
    for block in range(blocks):
        y = _dense(x, width, dropout, f"block{block}_0")
        y = _dense(y, width, dropout, f"block{block}_1")
        x = layers.Add(name=f"block{block}_add")([x, y])
    mu, log_sigma = relative_to_root(
        dense_head(x, joints, 3, "mu"), log_sigma_head(x, joints, 3), skeleton, axes=(1, 1, 1)
    )
    return keras.Model(keypoints, {"mu": mu, "log_sigma": log_sigma}, name="regressor")


def _dense(x, width: int, dropout: float, name: str):
    x = layers.Dense(width, kernel_initializer="he_normal", name=f"{name}_dense")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.Dropout(dropout, name=f"{name}_dropout")(x)
