"""How sure a calibrated regressor is of each joint, as a function of its sigma."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

# Of the longer side of the crop without its margin, which is about that of the person's box.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Confidence:
    """The probability that a joint is off by less than a tenth of the person's size, by its sigma.

    The size is the longer side of the crop, divided by the margin between box and crop. The
    probability is a piecewise linear function of the mean of log_sigma over x and y, one for each
    joint, and constant beyond its ends.

    Attributes:
        log_sigma: (n,) float64, where the function is given, ascending and equidistant.
        values: (K, n) float64 in [0, 1].
    """

    log_sigma: np.ndarray
    values: np.ndarray

    def __call__(self, sigma: tf.Tensor) -> tf.Tensor:
        """Confidence (..., K) float32 of sigma (..., K, D), in the regressor's coordinates."""
        sigma = tf.cast(sigma, tf.float32)
        log_sigma = tf.reduce_mean(tf.math.log(sigma[..., :2]), axis=-1, keepdims=True)
        step = float(self.log_sigma[1] - self.log_sigma[0])
        # How much of each interval lies below, (..., K, n - 1): additions and products alone, which
        # every runtime has.
        begun = (log_sigma - tf.constant(self.log_sigma[:-1], tf.float32)) / step
        rise = tf.constant(np.diff(self.values), tf.float32)
        first = tf.constant(self.values[:, 0], tf.float32)
        return first + tf.reduce_sum(tf.clip_by_value(begun, 0.0, 1.0) * rise, axis=-1)
