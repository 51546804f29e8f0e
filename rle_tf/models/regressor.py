"""The regressor: a backbone and a head that gives each joint's mean and log standard deviation."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
from keras import layers

from rle_tf.errors import ModelError
from rle_tf.geometry import KNOWN_LOG_SIGMA
from rle_tf.models.convnext import convnext_tiny
from rle_tf.models.efficientnet import efficientnet_v2_b0, efficientnet_v2_s
from rle_tf.models.heatmap import (
    by_joint,
    centres,
    deconvolve,
    highest,
    peaks,
    score_maps,
)
from rle_tf.models.hrnet import hrnet
from rle_tf.models.mobilenet import (
    mobilenet,
    mobilenet_v2,
    mobilenet_v2_torch,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from rle_tf.models.pyramid import top_down
from rle_tf.models.resnet import resnet
from rle_tf.models.weights import load_weights
from rle_tf.skeletons import Skeleton

BACKBONES: dict[str, Callable[[tuple[int, int]], keras.Model]] = {
    "resnet18": partial(resnet, 18),
    "resnet34": partial(resnet, 34),
    "resnet50": partial(resnet, 50),
    "resnet101": partial(resnet, 101),
    "resnet152": partial(resnet, 152),
    "mobilenet": mobilenet,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v2_torch": mobilenet_v2_torch,
    "mobilenet_v3_small": mobilenet_v3_small,
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_v2_b0": efficientnet_v2_b0,
    "efficientnet_v2_s": efficientnet_v2_s,
    "convnext_tiny": convnext_tiny,
    "hrnet_w32": partial(hrnet, 32),
    "hrnet_w48": partial(hrnet, 48),
}

HEADS = ("pooled", "soft_argmax", "heatmap")
TRAINED = ("all", "sigma", "none")


def build_backbone(
    name: str,
    image_size: tuple[int, int],
    weights: str | Path | None = None,
    output_layer: str | None = None,
    freeze: str | None = None,
) -> keras.Model:
    """A feature extractor.

    Args:
        name: A key of `BACKBONES`.
        image_size: Height and width in pixels, multiples of 32.
        weights: None for random ones, `"imagenet"`, or the path of a file; see
            `rle_tf.models.weights.load_weights`. Loaded after the cut, so that weights of the
            lower layers suffice for a backbone that ends there.
        output_layer: Name of the layer whose output replaces the last features: fewer layers and,
            lower down, a finer map.
        freeze: Name of a layer: weights of the layers up to it, it included, are not trained, nor
            are their statistics. Pretrained edges and textures serve everybody, and gradients that
            end early halve the time of a step.

    Returns:
        A functional model named "backbone": float image (B, H, W, 3) -> features (B, h, w, C),
        h = H/32 and w = W/32 where it is not cut; of an HRNet H/4 and W/4.

    Raises:
        ModelError: for an unknown name or output layer, an image size that is not two positive
            multiples of 32, or weights that do not fit.
    """
    if name not in BACKBONES:
        raise ModelError(f"unknown backbone {name!r}; the backbones are {', '.join(BACKBONES)}")
    model = BACKBONES[name](_check_image_size(image_size))
    features = model.output
    if output_layer is not None:
        features = _layer(model, f"backbone {name}", output_layer).output
    backbone = keras.Model(model.input, features, name="backbone")
    if weights is not None:
        load_weights(backbone, name, weights)
    if freeze is not None:
        last = backbone.layers.index(_layer(backbone, f"backbone {name}", freeze))
        for layer in backbone.layers[: last + 1]:
            layer.trainable = False
    return backbone


def _layer(model: keras.Model, title: str, wanted: str) -> keras.layers.Layer:
    names = [layer.name for layer in model.layers]
    if wanted not in names:
        close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.5)
        raise ModelError(
            f"{title} has no layer {wanted!r}; "
            + (f"close to it are {', '.join(close)}" if close else f"its last is {names[-1]}")
        )
    return model.get_layer(wanted)


def build_regressor(
    backbone: str | keras.Model,
    skeleton: Skeleton,
    dims: int = 2,
    image_size: tuple[int, int] = (256, 192),
    *,
    weights: str | Path | None = None,
    head: str = "pooled",
    feature_norm: bool = True,
    output_layer: str | None = None,
    freeze: str | None = None,
    trained: str = "all",
    pyramid: Sequence[str] = (),
    pyramid_channels: int = 128,
    deconvolutions: int = 0,
    map_sigma: bool = False,
    sigma_dropout: float = 0.0,
    map_window: float | None = None,
    root_sigma: bool = False,
) -> keras.Model:
    """The regressor of Li et al., "Human pose regression with residual log-likelihood estimation"
    (ICCV 2021), section 3.3: the mean and deviation of each joint's coordinates.

    With f the average of the features over the map:

    - head "pooled" (the paper's for ResNet): mu = W f/|f| + b;
    - head "soft_argmax" (the paper's for HRNet; Sun et al., ECCV 2018): a map of scores for each
      joint, mu_xy = sum over its cells of softmax(scores) * the cell's centre; the depth, if any,
      as in "pooled". A cell's centre is ((i + 0.5)/n - 0.5), i of n cells. Where `map_window` is
      set the mean is taken about the highest cell alone, under the map times a normal window: of a
      map with two peaks, left and right, it is one of them and not the place between;
    - both: log_sigma = log_sigmoid(W' f + b'). Where `map_sigma` is set f is here a layer of ReLU
      over the average of the features that the maps are made of, and there are also terms of each
      joint's own, linear in the features where its map softmax(scores) looks (their mean under it)
      and in the logarithm of its variance along x and y: a joint that is hidden looks like
      something else, and its map is wide or has several peaks. What both see is standardised by
      batch normalisation;
    - head "heatmap", no regression but what the paper compares it with (SimpleBaseline; Xiao et
      al., ECCV 2018): mu is where the map is highest, sigma is 1 less its height there
      (`rle_tf.models.heatmap.peaks`). `HeatmapLoss` trains it.

    SimpleBaseline and the paper's integral baseline make a finer map by three `deconvolutions`.

    Whatever the dtype policy, the heads compute in float32. Only layers and operations of Keras
    itself are used: a saved model loads where this package is not installed.

    Args:
        backbone: A name (see `build_backbone`) or a model (B, H, W, 3) -> (B, h, w, C).
        skeleton: Gives the number K of joints.
        dims: Coordinates of a joint, D: 2 (x, y) or 3 (x, y, depth).
        image_size: Height and width in pixels, multiples of 32.
        weights: Pretrained weights of a backbone given by name.
        head: "pooled", "soft_argmax" or "heatmap".
        feature_norm: Whether the mean is taken of f/|f| (as the authors do) or of f.
        output_layer: Where to cut a backbone given by name.
        freeze: Up to which layer a backbone given by name is not trained.
        trained: "all"; "sigma" for its own layers and no others, so that every keypoint stays; or
            "none", for a loss whose flow alone is to learn, and without `sigma_dropout`. A backbone
            that is given as a model is then frozen itself.
        pyramid: Names of layers of the backbone, from fine to coarse. A head with maps then looks
            at the first one's map, merged with the others and the last features (`top_down`).
        pyramid_channels: Of the merged map.
        deconvolutions: Transposed convolutions before the maps, each of which doubles their size.
        map_sigma: Whether sigma sees the maps of head "soft_argmax".
        sigma_dropout: Of what sigma sees then, the share that is left out in training.
        map_window: Standard deviation of the window about a map's highest cell, in cells; None for
            the mean of the whole map (the paper's).
        root_sigma: Whether the sigma of the root's depth stays what the head says, as in the
            authors' models, whose scores count it.

    Returns:
        A functional model named "regressor": float32 "image" (B, H, W, 3) -> {"mu": (B, K, D),
        "log_sigma": (B, K, D)}, float32. x, y of mu = pixel / (W, H) - 0.5, depth = mm / 2000
        relative to the root; sigma = exp(log_sigma), in the same units, is at most 1. The root's
        depth is 0 and its sigma 1e-9.

    Raises:
        ModelError: for an argument that is none of the above, weights that do not fit, a model as
            backbone whose input or output has another shape, or depths without a root.
    """
    image_size = _check_image_size(image_size)
    if dims not in (2, 3):
        raise ModelError(f"dims is {dims!r}; expected 2 or 3")
    if head not in HEADS:
        raise ModelError(f"unknown head {head!r}; the heads are {', '.join(HEADS)}")
    if trained not in TRAINED:
        raise ModelError(f"trained is {trained!r}; expected one of {', '.join(TRAINED)}")
    image = keras.Input((*image_size, 3), dtype="float32", name="image")
    if isinstance(backbone, str):
        backbone = build_backbone(backbone, image_size, weights, output_layer, freeze)
    else:
        _check_backbone(backbone, image, weights, output_layer, freeze)
    with_maps = ("soft_argmax", "heatmap")
    for name, value, fitting in (
        ("trained", trained if trained != "all" else None, ("pooled", "soft_argmax")),
        ("pyramid", list(pyramid), with_maps),
        ("deconvolutions", deconvolutions, with_maps),
        ("map_sigma", map_sigma, with_maps[:1]),
        ("map_window", map_window, with_maps[:1]),
    ):
        if value and head not in fitting:
            raise ModelError(
                f"{name}: found {value} with head {head!r}; expected {' or '.join(fitting)}"
            )
    if head == "heatmap" and dims != 2:
        raise ModelError(f"head 'heatmap' with dims {dims}; expected 2, maps have no depth")
    if not 0 <= sigma_dropout < 1 or sigma_dropout and not map_sigma:
        raise ModelError(
            f"sigma_dropout is {sigma_dropout!r}; expected a share from 0 to less than 1, and 0 "
            "without map_sigma"
        )
    if map_window is not None and not map_window > 0:
        raise ModelError(f"map_window is {map_window!r}; expected cells, a number above 0, or None")
    if pyramid:
        *finer, features = _with_maps(backbone, pyramid)(image)
    else:
        features = backbone(image)

    joints = len(skeleton.joints)
    if head != "pooled":
        fine = top_down([*finer, features], pyramid_channels) if pyramid else features
        fine = deconvolve(fine, deconvolutions)
    if head == "heatmap":
        if min(fine.shape[1:3]) < 2:
            raise ModelError(
                f"head 'heatmap': found maps of {fine.shape[1]}x{fine.shape[2]} cells; expected 2 "
                "or more each way: more deconvolutions, an earlier output_layer or a larger image"
            )
        mu, log_sigma = peaks(score_maps(fine, joints, gain=1e-3))
        return _named_outputs(image, mu, log_sigma)
    pooled = _mean(features, "pool")
    normed, of_joints = pooled, None
    if feature_norm:
        normed = layers.UnitNormalization(dtype="float32", name="feature_norm")(pooled)
    if head == "pooled":
        mu = dense_head(normed, joints, dims, "mu")
    else:
        mu, log_variance, seen = _soft_argmax(fine, joints, map_window)
        if map_sigma:
            of_joints = layers.Concatenate(dtype="float32", name="seen")([seen, log_variance])
        if dims == 3:
            depth = dense_head(normed, joints, 1, "depth")
            mu = layers.Concatenate(dtype="float32", name="mu_xyz")([mu, depth])
    of_crop = pooled
    if map_sigma:
        if trained == "none":  # and the flow sees the sigmas that predictions have
            sigma_dropout = 0.0
        # From the backbone's many channels sigma learns much else than what hides a joint.
        of_crop = _standardised(_mean(fine, "fine_pool"), sigma_dropout, "sigma_pool")
        of_crop = layers.Dense(_SIGMA_UNITS, "relu", dtype="float32", name="sigma_hidden")(of_crop)
        of_joints = _standardised(of_joints, sigma_dropout, "sigma_seen")
    log_sigma = log_sigma_head(of_crop, joints, dims, of_joints)
    if dims == 3:
        mu, known = relative_to_root(mu, log_sigma, skeleton, axes=(0, 0, 1))
        log_sigma = log_sigma if root_sigma else known
    regressor = _named_outputs(image, mu, log_sigma)
    if trained != "all":
        for layer in regressor.layers:
            layer.trainable = trained == "sigma" and layer.name in _SIGMA_LAYERS
    return regressor


def _mean(features, name: str):
    """(B, h, w, C) -> (B, C)."""
    return layers.GlobalAveragePooling2D(dtype="float32", name=name)(features)


def _standardised(x, dropout: float, name: str):
    """Each feature by its mean and deviation, so that all count alike. A share is left out; where
    that is 0 the layer stays, for the order of a model's weights is that of its layers."""
    dtype = "float32"
    x = layers.BatchNormalization(center=False, scale=False, dtype=dtype, name=f"{name}_bn")(x)
    return layers.Dropout(dropout, dtype=dtype, name=f"{name}_dropout")(x)


def _named_outputs(image, mu, log_sigma) -> keras.Model:
    return keras.Model(image, {"mu": mu, "log_sigma": log_sigma}, name="regressor")


def _check_image_size(image_size: tuple[int, int]) -> tuple[int, int]:
    sizes = tuple(image_size) if isinstance(image_size, (tuple, list)) else ()
    if len(sizes) != 2 or not all(
        isinstance(size, int) and size > 0 and size % 32 == 0 for size in sizes
    ):
        raise ModelError(
            f"image_size is {image_size!r}; expected (height, width), positive multiples of 32"
        )
    return sizes


def _check_backbone(backbone: keras.Model, image, weights, output_layer, freeze) -> None:
    if any(argument is not None for argument in (weights, output_layer, freeze)):
        raise ModelError("weights, output_layer and freeze are for a backbone given by its name")
    size, fitting = tuple(backbone.input_shape), image.shape
    if len(size) != 4 or any(
        n not in (None, m) for n, m in zip(size[1:], fitting[1:], strict=True)
    ):
        raise ModelError(f"backbone {backbone.name} takes {size}; expected {fitting}")
    if len(backbone.output_shape) != 4:
        raise ModelError(
            f"backbone {backbone.name} gives {backbone.output_shape}; expected (None, h, w, C)"
        )


def _with_maps(backbone: keras.Model, names: Sequence[str]) -> keras.Model:
    """A backbone that gives the maps of some of its layers, too, before its own."""
    maps = [_layer(backbone, f"model '{backbone.name}'", name).output for name in names]
    sizes = [tuple(m.shape[1:3]) for m in (*maps, backbone.output)]
    for fine, coarse in pairwise(sizes):
        if any(f % c for f, c in zip(fine, coarse, strict=True)):
            raise ModelError(
                f"pyramid: found {list(names)}, whose maps and the last features have sizes "
                f"{sizes}; expected each a multiple of the next one's, from fine to coarse"
            )
    return keras.Model(backbone.input, [*maps, backbone.output], name="backbone")


# Heads. Every layer names its dtype: under a mixed policy the next one without would bring the
# outputs back to half precision.


# Of the layer between the features of a crop and sigma.
_SIGMA_UNITS = 8
# All that have weights.
_SIGMA_LAYERS = (
    "sigma_pool_bn", "sigma_hidden", "sigma_dense", "sigma_seen_bn", "sigma_of_joints"
)  # fmt: skip
# Glorot's uniform initialisation at a gain of 0.01.
_SMALL = {"scale": 1e-4, "mode": "fan_avg", "distribution": "uniform"}


def dense_head(features, joints: int, dims: int, name: str):
    """(B, C) -> (B, joints, dims), initialised near 0."""
    x = layers.Dense(
        joints * dims,
        kernel_initializer=keras.initializers.VarianceScaling(**_SMALL),
        dtype="float32",
        name=f"{name}_dense",
    )(features)
    return layers.Reshape((joints, dims), dtype="float32", name=name)(x)


def log_sigma_head(features, joints: int, dims: int, of_joints=None):
    """(B, C) -> log_sigma (B, joints, dims), below 0; features of each joint (B, joints, C') add
    what is linear in them."""
    x = dense_head(features, joints, dims, "sigma")
    if of_joints is not None:
        own = layers.EinsumDense(
            "bkc,kcd->bkd",
            (joints, dims),
            kernel_initializer=keras.initializers.VarianceScaling(**_SMALL),
            dtype="float32",
            name="sigma_of_joints",
        )(of_joints)
        x = layers.Add(dtype="float32", name="sigma_sum")([x, own])
    return layers.Activation("log_sigmoid", dtype="float32", name="log_sigma")(x)


def relative_to_root(mu, log_sigma, skeleton: Skeleton, axes: tuple[int, int, int]):
    """`mu` and `log_sigma` (B, K, 3) with the coordinates whose axis is 1 relative to the root's.

    The root's own are 0 by definition and not learned: `geometry.KNOWN_LOG_SIGMA`.

    Raises:
        ModelError: if the skeleton has no root.
    """
    root = skeleton.root
    if root is None:
        raise ModelError(
            f"skeleton '{skeleton.name}' has no pelvis, which depths are relative to; expected one "
            "that has, h36m18 for one, for a regressor of three coordinates"
        )
    known = np.zeros((len(skeleton.joints), 3), "float32")
    known[root] = axes
    mu = mu - mu[:, root : root + 1] * np.array(axes, "float32")
    return mu, log_sigma * (1 - known) + known * KNOWN_LOG_SIGMA


def _soft_argmax(features, joints: int, window: float | None):
    """(B, h, w, C) -> a mean of the cells' centres and the log of their variance, (B, joints, 2)
    each, x before y, and a mean of the features, (B, joints, C).

    The variance is under each joint's map, and at least 1e-4, a hundredth of the crop squared; the
    means are too, or where there is a window under the product of both.
    """
    height, width, channels = features.shape[1:]
    x = by_joint(score_maps(features, joints), "score_cells")
    probability = layers.Softmax(dtype="float32", name="cell_probability")(x)
    grid = centres(height, width)
    # A constant and not a frozen layer: setting `trainable` on the model would thaw the latter.
    centre = keras.ops.matmul(probability, grid)
    variance = keras.ops.matmul(probability, grid**2) - centre**2
    looked_at = probability
    if window is not None:
        looked_at = _about_the_highest(x, grid * (width, height), window)
    cells = layers.Reshape((height * width, channels), dtype="float32", name="cells")(features)
    mean, seen = keras.ops.matmul(looked_at, grid), keras.ops.matmul(looked_at, cells)
    return mean, keras.ops.log(keras.ops.maximum(variance, 0.0) + 1e-4), seen


def _about_the_highest(scores, cells: np.ndarray, window: float):
    """softmax(scores - d^2 / (2 window^2)), d the distance of a cell to that of the highest score.

    Args:
        scores: (B, joints, n).
        cells: (n, 2) places of the cells.
        window: In units of those.
    """
    cells = cells.astype("float32")
    peak = keras.ops.matmul(highest(scores), cells)
    # -|cell - highest|^2 but for -|highest|^2, which is the same in all cells of a map.
    nearness = 2 * keras.ops.matmul(peak, cells.T) - np.square(cells).sum(axis=-1)
    scores = scores + nearness / (2 * window**2)
    return layers.Softmax(dtype="float32", name="cell_window")(scores)
