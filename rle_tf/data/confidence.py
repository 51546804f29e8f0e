"""How sure a calibrated regressor is of each joint, as a function of its sigma."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

# Of the longer side of the crop without its margin, which is about that of the person's box.
TOLERANCE = 0.1
# Above it float32 no longer tells sigma from 1.
LARGEST_LOG_SIGMA = -1e-6


@dataclass(frozen=True)
class Confidence:
    """The probability that a joint is off by less than a tenth of the person's size, by its sigma.

    The size is the longer side of the crop, divided by the margin between box and crop. The
    probability is a piecewise linear function, one for each joint, of the logit of sigma's
    geometric mean over x and y, and constant beyond its ends. A sigma cannot exceed 1, and those of
    joints that are nowhere to be seen crowd there; their logits do not.

    Attributes:
        logit_sigma: (n,) float64, where the function is given, ascending and equidistant.
        values: (K, n) float64 in [0, 1].
    """

    logit_sigma: np.ndarray
    values: np.ndarray

    def __call__(self, sigma: tf.Tensor) -> tf.Tensor:
        """Confidence (..., K) float32 of sigma (..., K, D), in the regressor's coordinates."""
        sigma = tf.cast(sigma, tf.float32)
        log_sigma = tf.reduce_mean(tf.math.log(sigma[..., :2]), axis=-1, keepdims=True)
        log_sigma = tf.minimum(log_sigma, LARGEST_LOG_SIGMA)
        place = log_sigma - tf.math.log(1 - tf.exp(log_sigma))
        step = float(self.logit_sigma[1] - self.logit_sigma[0])
        # How much of each interval lies below, (..., K, n - 1): operations that every runtime has.
        begun = (place - tf.constant(self.logit_sigma[:-1], tf.float32)) / step
        rise = tf.constant(np.diff(self.values), tf.float32)
        first = tf.constant(self.values[:, 0], tf.float32)
        return first + tf.reduce_sum(tf.clip_by_value(begun, 0.0, 1.0) * rise, axis=-1)


def logit_sigma(log_sigma: np.ndarray) -> np.ndarray:
    """The logit of sigma, of its logarithm."""
    log_sigma = np.minimum(log_sigma, LARGEST_LOG_SIGMA)
    return log_sigma - np.log(-np.expm1(log_sigma))
