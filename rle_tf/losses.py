"""Losses between a regressor's output and the annotated joints.

Every loss is called as `loss(target, output)` with

    target = {"keypoints": (B, K, D), "weight": (B, K, D)}
    output = {"mu": (B, K, D), "log_sigma": (B, K, D)}

in the units of the target (x, y = pixel / size - 0.5; z = mm / 2000). It is computed in float32
whatever the dtypes given. A coordinate of weight 0 adds exactly nothing to the loss or to any
gradient, whatever stands there (NaN too). So does one that the regressor knows by definition, the
root's depth (`geometry.KNOWN_LOG_SIGMA`), whatever its weight. The loss of a sample is the sum over
its joints and coordinates; `reduction` is that of `keras.losses.Loss`.
"""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.geometry import KNOWN_LOG_SIGMA

MAX_RESIDUAL = 1e6
MIN_SIGMA = 1e-9

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def _quantile(values: np.ndarray, weight: np.ndarray, share: float) -> float:
    """The quantile of values (m,) that count by weight (m,), which adds up to 1."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), share)])


class PoseLoss(keras.losses.Loss):
    """A loss over poses.

    `flow` and `flow_2d` are the layers whose variables must be trained with the regressor's, or
    None: a Keras loss tracks no variables, so the model that trains has to hold them.
    """

    flow = None
    flow_2d = None
    # Whether the output needs "scores" (B, K, h, w), the maps of a head that has some.
    of_maps = False

    def __init__(self, name: str, reduction: str | None):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    @property
    def flows(self) -> list[keras.layers.Layer]:
        """Those of the two that there are."""
        return [flow for flow in (self.flow, self.flow_2d) if flow is not None]

    def log_density(self, residual) -> tf.Tensor | None:
        """Log of the density of residuals (target - mu) / sigma that the loss learns, but for a
        constant: (..., D) -> (...), or where each joint has its own (..., K, D) -> (..., K). None
        where no sigma is trained."""
        return None

    def proposals(self, dims: int, n: int, seed: int) -> list[tuple[tf.Tensor, Callable]]:
        """Densities that the learned one is near to: (n, [K,] dims) draws of each, and the function
        (..., [K,] dims) -> (..., [K]) of its log."""
        return []

    def _weighted(self, dims: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Residuals (m, [K,] dims), n of each proposal (where each joint has a density fewer of
        each), and weights (m, [K]) under which they are of the learned density: importance sampling
        from the mixture of the proposals."""
        # Flows of K joints are as much work as one flow of K times as many points.
        n = max(4_000, n // (getattr(self.flow, "joints", None) or 1))
        proposals = self.proposals(dims, n, seed)
        if not proposals:
            return np.full((n, dims), np.nan), np.full(n, 1 / n)
        points = tf.concat([points for points, _ in proposals], axis=0)
        mixture = tf.reduce_logsumexp([log(points) for _, log in proposals], axis=0)
        log_weight = np.float64(self.log_density(points) - mixture)
        weight = np.exp(log_weight - log_weight.max(axis=0))
        return points.numpy().astype(np.float64), weight / weight.sum(axis=0)

    def draws(self, dims: int, n: int = 20_000, seed: int = 0) -> np.ndarray:
        """(n, dims) float64 residuals drawn from the learned density, base times flow, normalised,
        or where each joint has its own (n, K, dims); NaN where no sigma is trained."""
        points, weight = self._weighted(dims, 8 * n, seed)
        rng = np.random.default_rng(seed)
        if weight.ndim == 1:
            return points[rng.choice(len(weight), n, p=weight)]
        columns = [
            points[rng.choice(len(weight), n, p=of_joint), joint]
            for joint, of_joint in enumerate(weight.T)
        ]
        return np.stack(columns, axis=1)

    def spread(self, dims: int) -> np.ndarray:
        """(dims,) what one sigma is worth: the 68.27 % quantile of |residual| under the learned
        density, where a normal one has its standard deviation; NaN where no sigma is trained.
        (K, dims) where each joint has a density of its own.

        The loss settles the product of sigma and this, not sigma alone: a density twice as narrow
        fits with sigmas twice as large. So an error is to be expected within `sigma * spread`.
        """
        points, weight = self._weighted(dims, 100_000, 0)
        weight = np.broadcast_to(weight[..., None], points.shape).reshape(len(points), -1)
        columns = np.abs(points).reshape(len(points), -1)
        found = [_quantile(c, w, 0.6827) for c, w in zip(columns.T, weight.T, strict=True)]
        return np.array(found).reshape(points.shape[1:])

    def _supervised_error(self, target, output):
        """`keypoints - mu` with 0 where the weight is 0, the weight, and what is known (B, K, D).

        The weight is 0 where the regressor's output is known by definition, whatever was given.
        """
        keypoints, weight = target["keypoints"], target["weight"]
        mu, log_sigma = output["mu"], output["log_sigma"]
        for found, tensor in [
            ("target 'keypoints'", keypoints),
            ("target 'weight'", weight),
            ("output 'log_sigma'", log_sigma),
        ]:
            if not mu.shape.is_compatible_with(tensor.shape):
                raise ModelError(
                    f"{self.name}: {found} has shape {tensor.shape}, "
                    f"expected that of output 'mu', {mu.shape}"
                )
        known = tf.cast(log_sigma, tf.float32) == KNOWN_LOG_SIGMA
        weight = tf.where(known, 0.0, weight)
        # A product with 0 would keep a NaN, in the value or in the gradient.
        return tf.where(weight != 0, keypoints - mu, 0.0), weight, known


class _MeanLoss(PoseLoss):
    """`sum_d weight * penalty(target - mu)`, (B,).

    `log_sigma` gets a gradient of 0: its head stays as it was initialised.

    Raises (when called):
        ModelError: the shapes of target and `mu` differ.
    """

    def call(self, target, output):
        error, weight, _ = self._supervised_error(target, output)
        # Zero, but a gradient: without any, Keras warns of a head that was forgotten.
        untrained = 0.0 * output["log_sigma"]
        return tf.reduce_sum(weight * self.penalty(error) + untrained, axis=[1, 2])


@keras.saving.register_keras_serializable(package="rle_tf")
class L1Loss(_MeanLoss):
    """The paper's l1 baseline, plain regression: `sum_d weight * |target - mu|`, (B,)."""

    penalty = staticmethod(tf.abs)

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "l1_loss"):
        super().__init__(name, reduction)


@keras.saving.register_keras_serializable(package="rle_tf")
class L2Loss(_MeanLoss):
    """The paper's l2 baseline, a Gaussian of constant variance: `sum_d weight * (target - mu)^2`,
    (B,)."""

    penalty = staticmethod(tf.square)

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "l2_loss"):
        super().__init__(name, reduction)


@keras.saving.register_keras_serializable(package="rle_tf")
class HeatmapLoss(PoseLoss):
    """The loss of heatmap methods (Xiao et al., "Simple baselines for human pose estimation and
    tracking", ECCV 2018): half the mean squared difference between the maps and the wanted ones,
    over cells and joints, (B,).

    A wanted map is `exp(-d^2 / (2 sigma_cells^2))`, d the distance from the joint in cells. A joint
    farther outside the crop than three such sigmas is not supervised (as there); a joint's term is
    times its smallest weight.

    Called with `output["scores"]` (B, K, h, w), the maps of head "heatmap", beside "mu" and
    "log_sigma", which get no gradient.

    Args:
        sigma_cells: Of the wanted peaks; 2 on 64x48 cells in SimpleBaseline.
        reduction: that of `keras.losses.Loss`.
        name: name of the loss.

    Raises:
        ModelError: `sigma_cells` is not above 0; when called, shapes differ, or joints have depths.
    """

    of_maps = True

    def __init__(
        self,
        sigma_cells: float = 2.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "heatmap_loss",
    ):
        if not sigma_cells > 0:
            raise ModelError(f"HeatmapLoss: sigma_cells is {sigma_cells}, expected more than 0")
        super().__init__(name, reduction)
        self.sigma_cells = sigma_cells

    def call(self, target, output):
        _, weight, _ = self._supervised_error(target, output)
        if weight.shape[-1] != 2:
            raise ModelError(
                f"{self.name}: target has shape {weight.shape}, expected (B, K, 2): maps have no "
                "depth"
            )
        scores = output["scores"]
        size = np.array(scores.shape[:1:-1], "float32")  # width, height
        place, counted = _cells(target["keypoints"], weight, size)
        reach = 3 * self.sigma_cells
        counted &= tf.reduce_all((place > -reach - 1) & (place < size + reach), axis=-1)
        wanted = tf.exp(_log_normal(place, size, self.sigma_cells))
        squares = tf.reduce_mean(tf.square(scores - wanted), axis=[2, 3])
        weight = tf.where(counted, tf.reduce_min(weight, axis=-1), 0.0)
        return 0.5 * tf.reduce_mean(weight * squares, axis=-1)

    def get_config(self):
        return {"sigma_cells": self.sigma_cells, **super().get_config()}


def _cells(keypoints, weight, size):
    """x and y (B, K, 2) of joints in cells of a map, from the centre of the first, and which joints
    are supervised in both, (B, K); 0 for the others."""
    counted = tf.reduce_all(weight[..., :2] != 0, axis=-1)
    xy = tf.where(counted[..., None], keypoints[..., :2], 0.0)
    return (xy + 0.5) * size - 0.5, counted


def _log_normal(place, size, sigma: float):
    """-d^2 / (2 sigma^2) in each cell, d its distance from `place` (B, K, 2): (B, K, h, w)."""
    width, height = size
    along_x = tf.square((tf.range(width) - place[..., 0, None]) / sigma)
    along_y = tf.square((tf.range(height) - place[..., 1, None]) / sigma)
    return -0.5 * (along_y[..., :, None] + along_x[..., None, :])


def _inverse_sigma(error, log_sigma):
    """1 / sigma, with sigma raised to where `MAX_RESIDUAL` and `MIN_SIGMA` hold."""
    # A sigmoid's sigma underflows long before log_sigma does. Clipping would stop the gradient
    # just where sigma has to grow; adding a constant does not, and inside the bounds it adds 0.
    log_error = tf.math.log(tf.maximum(tf.abs(error), 1e-30))
    log_least = tf.maximum(log_error - math.log(MAX_RESIDUAL), math.log(MIN_SIGMA))
    return tf.exp(-(log_sigma + tf.stop_gradient(tf.maximum(log_least - log_sigma, 0.0))))


def _laplace(residual):
    return tf.abs(residual) + math.log(2)


def _gaussian(residual):
    return 0.5 * tf.square(residual) + _LOG_SQRT_2PI


def _official_laplace(residual, inverse_sigma):
    # |target - mu| / (sqrt(2) sigma + 1e-9), with sigma divided out of both.
    return tf.abs(residual) / (math.sqrt(2) + 1e-9 * inverse_sigma) + _LOG_SQRT_2PI


# -log Q of the normalised residual, one coordinate.
_BASES = {"laplace": _laplace, "gaussian": _gaussian}
_CONVENTIONS = ("paper", "official", "mmpose")


def _base_proposal(base: str, scale: float, event_shape: tuple[int, ...], n: int, seed: int):
    """Draws (n, *event_shape) of Q at a scale, and its log density."""
    rng = np.random.default_rng([seed, 1])
    unit = {"laplace": rng.laplace, "gaussian": rng.standard_normal}[base](size=(n, *event_shape))
    log_volume = event_shape[-1] * math.log(scale)

    def log(residual):
        return -tf.reduce_sum(_BASES[base](residual / scale), axis=-1) - log_volume

    return tf.constant(unit * scale, tf.float32), log


@keras.saving.register_keras_serializable(package="rle_tf")
class DensityLoss(PoseLoss):
    """Maximum likelihood under a simple density whose scale is learned, without a flow: the paper's
    baselines of learned variance. With r = (target - mu) / sigma

        sum_d weight * (-log Q(r_d) + log sigma_d), (B,)

    which is `RLELoss` in the paper's convention with G = 1; the same values and gradients are
    finite.

    Args:
        base: Q, "laplace" or "gaussian".
        reduction: that of `keras.losses.Loss`.
        name: name of the loss.

    Raises:
        ModelError: unknown `base`; when called, the shapes of target and output differ.
    """

    def __init__(
        self,
        base: str = "laplace",
        reduction: str | None = "sum_over_batch_size",
        name: str = "density_loss",
    ):
        if base not in _BASES:
            raise ModelError(f"DensityLoss: base is {base!r}, expected one of {', '.join(_BASES)}")
        super().__init__(name, reduction)
        self.base = base

    def log_density(self, residual):
        return -tf.reduce_sum(_BASES[self.base](residual), axis=-1)

    def proposals(self, dims, n, seed):
        return [_base_proposal(self.base, 1.0, (dims,), n, seed)]

    def call(self, target, output):
        error, weight, _ = self._supervised_error(target, output)
        log_sigma = tf.where(weight != 0, output["log_sigma"], 0.0)
        residual = error * _inverse_sigma(error, log_sigma)
        return tf.reduce_sum(weight * (_BASES[self.base](residual) + log_sigma), axis=[1, 2])

    def get_config(self):
        return {"base": self.base, **super().get_config()}


@keras.saving.register_keras_serializable(package="rle_tf")
class RLELoss(PoseLoss):
    """Residual log-likelihood estimation (Li et al., ICCV 2021).

    `convention="paper"` is equation 8. With r = (target - mu) / sigma a joint's loss is

        -log G(r) + sum_d (-log Q(r_d) + log sigma_d)

    where G is the density of the flow and Q a normalised density of scale 1: Laplace
    `exp(-|r|) / 2` or Gaussian `exp(-r^2 / 2) / sqrt(2 pi)`. Each `sum_d` term is times its
    coordinate's weight. G is a joint density that only counts where every coordinate is supervised:
    it is times the joint's smallest weight. A known coordinate counts there with a residual of 0.

    `convention="official"` is what the authors' code computes. Each coordinate adds weight times

        2 log sigma - log G(r) + log sqrt(2 pi) + |target - mu| / (sqrt(2) sigma + 1e-9)

    It differs from equation 8 in that r is (mu - target) / sigma, log sigma is counted twice, the
    joint density G once per coordinate, and Q is a Laplace density of scale sqrt(2) sigma with the
    constant of a Gaussian. `base="gaussian"` replaces the last term by `r^2 / 2`. A coordinate of
    weight 0 enters its joint's G as a residual of 0.

    `convention="mmpose"` is what weights of mmpose were trained with: that of the authors but for
    its Q, which is a normalised density of scale sigma: the last two terms are `log 2 + |r|`.

    Mixed supervision, D = 3: with a `flow_2d`, people none of whose depths has a weight take that
    flow's density of (x, y) as G. Each flow sees the people of its kind alone, and its gradient is
    exactly 0 in a batch without any. Without `flow_2d` such people have no G in the paper's
    convention.

    A density may exceed 1, so the loss may go below 0.

    Values and gradients stay finite for errors up to 1e6 with log_sigma down to -80: where
    |r| would exceed 1e6 or sigma fall below 1e-9 (the authors' epsilon), r is computed with the
    smallest sigma that stays inside. The term log sigma is not limited, and r passes its gradient
    on to `log_sigma` as if that sigma were the given one, so training can come back from outside.

    Args:
        flow: the flow G, an `rle_tf.flow.RealNVP` of D dimensions. A Keras layer that the training
            model has to hold.
        base: Q, "laplace" or "gaussian".
        convention: "paper", "official" or "mmpose".
        reduction: that of `keras.losses.Loss`.
        name: name of the loss.
        flow_2d: the flow of two dimensions for people without depths, where D = 3.

    Raises:
        ModelError: unknown `base` or `convention`; a `flow_2d` that is none or is given beside a
            flow of other than three dimensions; when called, the flow's dimensions are not D or the
            shapes of target and output differ.
    """

    def __init__(
        self,
        flow: keras.layers.Layer,
        base: str = "laplace",
        convention: str = "paper",
        reduction: str | None = "sum_over_batch_size",
        name: str = "rle_loss",
        *,
        flow_2d: keras.layers.Layer | None = None,
    ):
        if base not in _BASES:
            raise ModelError(f"RLELoss: base is {base!r}, expected one of {', '.join(_BASES)}")
        if convention not in _CONVENTIONS:
            raise ModelError(
                f"RLELoss: convention is {convention!r}, expected one of {', '.join(_CONVENTIONS)}"
            )
        if flow_2d is not None and (flow.dims, flow_2d.dims) != (3, 2):
            raise ModelError(
                f"RLELoss: flow has {flow.dims} dimensions and flow_2d {flow_2d.dims}, expected 3 "
                "and 2"
            )
        super().__init__(name, reduction)
        self.flow = flow
        self.flow_2d = flow_2d
        self.base = base
        self.convention = convention

    def log_density(self, residual):
        residual = tf.cast(residual, tf.float32)
        if self.convention == "paper":
            return self.flow.log_prob(residual) - tf.reduce_sum(
                _BASES[self.base](residual), axis=-1
            )
        # Each coordinate has the joint density of all once, mirrored.
        base = self._base_term(residual, 0.0)
        return self.flow.dims * self.flow.log_prob(-residual) - tf.reduce_sum(base, axis=-1)

    def _base_term(self, residual, inverse_sigma):
        if (self.convention, self.base) == ("official", "laplace"):
            return _official_laplace(residual, inverse_sigma)
        return _BASES[self.base](residual)

    def proposals(self, dims, n, seed):
        scale = math.sqrt(2) if (self.convention, self.base) == ("official", "laplace") else 1.0
        sign = 1 if self.convention == "paper" else -1
        of_flow = sign * self.flow.sample(n, seed)
        return [
            (of_flow, lambda residual: self.flow.log_prob(sign * residual)),
            _base_proposal(self.base, scale, self.flow.event_shape, n, seed),
        ]

    def call(self, target, output):
        error, weight, known = self._supervised_error(target, output)
        _check_flow(self, error)
        log_sigma = tf.where(weight != 0, output["log_sigma"], 0.0)
        inverse_sigma = _inverse_sigma(error, log_sigma)
        residual = error * inverse_sigma

        if self.convention == "paper":
            per_coordinate = _BASES[self.base](residual) + log_sigma
            log_g, joint_weight = self._log_g(residual, weight, known)
            per_joint = tf.reduce_sum(weight * per_coordinate, axis=-1) - joint_weight * log_g
        else:
            log_g, _ = self._log_g(-residual, weight, known)
            base_term = self._base_term(residual, inverse_sigma)
            per_coordinate = base_term + 2 * log_sigma - log_g[..., None]
            per_joint = tf.reduce_sum(weight * per_coordinate, axis=-1)
        return tf.reduce_sum(per_joint, axis=-1)

    def _log_g(self, residual, weight, known):
        """Log density of residuals (B, K, D), and the smallest weight it is made of; (B, K)."""
        joint_weight = _joint_weight(weight, known)
        if self.flow_2d is None:
            return self.flow.log_prob(residual), joint_weight
        # Both flows see everybody, which keeps shapes static (XLA, replicas). What is not chosen
        # has a gradient of 0, exactly, as residuals are limited and so all densities are finite.
        deep = tf.reduce_any(weight[..., 2] != 0, axis=1)[:, None]
        of_3d = self.flow.log_prob(residual)
        of_2d = self.flow_2d.log_prob(residual[..., :2])
        planar_weight = tf.reduce_min(weight[..., :2], axis=-1)
        return tf.where(deep, of_3d, of_2d), tf.where(deep, joint_weight, planar_weight)

    def get_config(self):
        return {
            "flow": keras.saving.serialize_keras_object(self.flow),
            "flow_2d": keras.saving.serialize_keras_object(self.flow_2d),
            "base": self.base,
            "convention": self.convention,
            **super().get_config(),
        }

    @classmethod
    def from_config(cls, config):
        # Files from before there was a second flow do not name it.
        flows = {
            key: keras.saving.deserialize_keras_object(config.get(key))
            for key in ("flow", "flow_2d")
        }
        return cls(**{**config, **flows})


@keras.saving.register_keras_serializable(package="rle_tf")
class DirectLoss(PoseLoss):
    """The flow's likelihood alone, without a simple density beside it: what the paper comes to RLE
    from (section 3.2).

    Reparameterised (its figure 2b, "regression with DLE" in its Table 1) the flow is the density of
    r = (target - mu) / sigma, and a joint's loss is

        -log G(r) + sum_d log sigma_d

    Otherwise (figure 2a) the flow f bends a normal density about mu into that of the target itself:

        -log N(f^-1(target); mu, sigma) - log |det d f^-1(target) / d target|

    and mu is the place of the joint only as far as f is near the identity. That is why it is worse:
    at test time the flow is gone. There is no density of residuals then, and no `spread`.

    Args:
        flow: the flow, an `rle_tf.flow.RealNVP` of D dimensions. A Keras layer that the training
            model has to hold.
        reparameterised: which of the two.
        reduction: that of `keras.losses.Loss`.
        name: name of the loss.

    A joint counts where every coordinate is supervised, by its smallest weight; its log sigma by
    each coordinate's weight where it is reparameterised. Values and gradients are as finite as
    those of `RLELoss`.

    Raises:
        ModelError: when called, the flow's dimensions are not D or the shapes of target and output
            differ.
    """

    def __init__(
        self,
        flow: keras.layers.Layer,
        reparameterised: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "direct_loss",
    ):
        super().__init__(name, reduction)
        self.flow = flow
        self.reparameterised = reparameterised

    def log_density(self, residual):
        return self.flow.log_prob(residual) if self.reparameterised else None

    def proposals(self, dims, n, seed):
        if not self.reparameterised:
            return []
        return [(self.flow.sample(n, seed), self.flow.log_prob)]

    def call(self, target, output):
        error, weight, known = self._supervised_error(target, output)
        _check_flow(self, error)
        log_sigma = tf.where(weight != 0, output["log_sigma"], 0.0)
        joint_weight = _joint_weight(weight, known)
        if self.reparameterised:
            log_g = self.flow.log_prob(error * _inverse_sigma(error, log_sigma))
            of_sigma = tf.reduce_sum(weight * log_sigma, axis=-1)
            per_joint = of_sigma - joint_weight * log_g
            # Of sigma alone nothing would hold it: it would go to 0.
            return tf.reduce_sum(tf.where(joint_weight != 0, per_joint, 0.0), axis=-1)
        place = tf.where(weight != 0, target["keypoints"], 0.0)
        bent, log_det = self.flow.inverse(place)
        offset = tf.where(weight != 0, bent - output["mu"], 0.0)
        residual = offset * _inverse_sigma(offset, log_sigma)
        per_joint = tf.reduce_sum(_gaussian(residual) + log_sigma, axis=-1) - log_det
        # A joint that does not count may have any place.
        return tf.reduce_sum(tf.where(joint_weight != 0, joint_weight * per_joint, 0.0), axis=-1)

    def get_config(self):
        return {
            "flow": keras.saving.serialize_keras_object(self.flow),
            "reparameterised": self.reparameterised,
            **super().get_config(),
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"flow": keras.saving.deserialize_keras_object(config["flow"])})


def _check_flow(loss: PoseLoss, error) -> None:
    if error.shape[-1] != loss.flow.dims:
        raise ModelError(
            f"{loss.name}: output 'mu' has shape {error.shape}, "
            f"expected (B, K, {loss.flow.dims}) for a flow of {loss.flow.dims} dimensions"
        )


def _joint_weight(weight, known):
    """The smallest weight (B, K) of a joint's coordinates, of those that are not known."""
    # What is known has a residual of 0 and leaves the weight to the joint's other coordinates.
    least = tf.reduce_min(tf.where(known, math.inf, weight), axis=-1)
    return tf.where(tf.reduce_all(known, axis=-1), 0.0, least)


@keras.saving.register_keras_serializable(package="rle_tf")
class MapLoss(keras.losses.Loss):
    """Cross-entropy between the maps of head "soft_argmax" and where the joints are, (B,).

    The gradient of a soft-argmax tells a cell which way the mean should go, not where the joint is;
    a heatmap's tells it, and features learn from that much faster (Nibali et al., "Numerical
    coordinate regression with convolutional neural networks", 2018, regularise so). A joint's
    wanted distribution falls off from it as a normal density of one cell does. Joints without
    weight, and those outside the crop, which no cell shows, count nothing.

    Called as `loss(target, scores)` with a `PoseLoss`'s target and scores (B, K, h, w).
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str = "map_loss"):
        super().__init__(name=name, reduction=reduction, dtype="float32")

    def call(self, target, scores):
        size = np.array(scores.shape[:1:-1], "float32")  # width, height
        weight = target["weight"][..., :2]
        place, counted = _cells(target["keypoints"], weight, size)
        counted &= tf.reduce_all((place > -0.5) & (place < size - 0.5), axis=-1)
        log_wanted = _log_normal(tf.where(counted[..., None], place, 0.0), size, 1.0)
        flat = tf.concat([tf.shape(scores)[:2], [int(size.prod())]], axis=0)
        entropy = tf.nn.softmax_cross_entropy_with_logits(
            tf.nn.softmax(tf.reshape(log_wanted, flat)), tf.reshape(scores, flat)
        )
        weight = tf.where(counted, tf.reduce_min(weight, axis=-1), 0.0)
        return tf.reduce_sum(weight * entropy, axis=-1)
