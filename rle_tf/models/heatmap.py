"""Maps of scores, one a joint: how they are made fine, and where their peaks are."""

import keras
import numpy as np
from keras import layers

# As SimpleBaseline has them.
DECONVOLUTION_CHANNELS = 256
# A confidence of exactly 1 would be a sigma of 0.
_LEAST_SIGMA = 1e-4


def deconvolve(x, count: int):
    """(B, h, w, C) -> (B, 2^count h, 2^count w, 256) by transposed convolutions of 4x4 and stride 2
    (Xiao et al., "Simple baselines for human pose estimation and tracking", ECCV 2018)."""
    small = keras.initializers.RandomNormal(stddev=1e-3)
    for level in range(count):
        name = f"deconv_{level}"
        x = layers.Conv2DTranspose(
            DECONVOLUTION_CHANNELS, 4, 2, "same", use_bias=False, kernel_initializer=small,
            name=name,
        )(x)  # fmt: skip
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return x


def score_maps(features, joints: int, gain: float | None = None):
    """(B, h, w, C) -> (B, h, w, joints) float32, a layer "score_maps" that losses of maps look for.

    Args:
        gain: Standard deviation of the initial weights; `None` for Keras's own.
    """
    initial = "glorot_uniform" if gain is None else keras.initializers.RandomNormal(stddev=gain)
    return layers.Conv2D(joints, 1, kernel_initializer=initial, dtype="float32", name="score_maps")(
        features
    )


def by_joint(maps, name: str):
    """(B, h, w, K) -> (B, K, h * w), row by row."""
    height, width, joints = maps.shape[1:]
    x = layers.Reshape((height * width, joints), dtype="float32", name=name)(maps)
    return layers.Permute((2, 1), dtype="float32", name=f"{name}_by_joint")(x)


def centres(height: int, width: int) -> np.ndarray:
    """(h * w, 2) float32 x and y of the cells' centres in the crop, from -0.5 to 0.5."""
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype("float32")


def highest(scores):
    """(B, K, n) -> the same shape: 1 at the highest score, shared where several are, else 0.

    Not by argmax, whose operations LiteRT does not have.
    """
    ops = keras.ops
    is_highest = ops.cast(scores >= ops.max(scores, axis=-1, keepdims=True), dtype="float32")
    return is_highest / ops.sum(is_highest, axis=-1, keepdims=True)


def peaks(maps):
    """Where heatmaps (B, h, w, K) have their peaks, and how high those are.

    A peak is the centre of the highest cell, moved by a quarter of a cell to the higher one of its
    neighbours, along x and along y (Newell et al., "Stacked hourglass networks", ECCV 2016). Its
    height stands for the confidence, 1 - sigma.

    Returns:
        `mu` and `log_sigma`, (B, K, 2) each. The gradient of mu is 0: heatmaps learn from
        `rle_tf.losses.HeatmapLoss`.
    """
    ops = keras.ops
    height, width = maps.shape[1:3]
    cells = by_joint(maps, "heatmap_cells")
    peak = highest(cells)
    mu = ops.matmul(peak, centres(height, width))
    # The right neighbour less the left one, where a cell has both.
    along_x = ops.pad(maps[:, :, 2:] - maps[:, :, :-2], ((0, 0), (0, 0), (1, 1), (0, 0)))
    along_y = ops.pad(maps[:, 2:] - maps[:, :-2], ((0, 0), (1, 1), (0, 0), (0, 0)))
    slopes = [
        ops.sum(peak * by_joint(slope, f"heatmap_slope_{axis}"), axis=-1)
        for axis, slope in (("x", along_x), ("y", along_y))
    ]
    quarter = np.array([0.25 / width, 0.25 / height], "float32")
    mu = mu + ops.sign(ops.stack(slopes, axis=-1)) * quarter
    sigma = 1 - ops.clip(ops.max(cells, axis=-1, keepdims=True), 0.0, 1 - _LEAST_SIGMA)
    return mu, ops.log(ops.concatenate([sigma, sigma], axis=-1))


def at_the_maps(regressor: keras.Model) -> tuple[keras.Model, keras.Model] | None:
    """A regressor whose head has a map for each joint, `heatmap` or `soft_argmax`, in two; None of
    others.

    Returns:
        input -> [maps (B, h, w, K), what else the head looks at], and from those to the output.
        They share the regressor's variables.
    """
    layer = {layer.name: layer for layer in regressor.layers}
    if "score_maps" not in layer:
        return None
    cut = [layer["score_maps"].output]
    cut += [layer["pool"].output] if "pool" in layer else []
    cut += [layer["cells"].input] if "cells" in layer else []
    return keras.Model(regressor.input, cut), keras.Model(cut, regressor.output)
