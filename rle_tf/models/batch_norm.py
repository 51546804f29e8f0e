"""Batch normalisation as one operation while training."""

from types import MethodType

import keras
import tensorflow as tf


def fuse(model: keras.Model) -> None:
    """Makes the batch normalisations of a model compute by TensorFlow's fused operation in
    training, where it fits: of maps (B, H, W, C) in float32, without synchronisation.

    Keras's own takes a dozen passes over the maps, forwards and back. What they compute, hold and
    are saved as stays the same.
    """
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.BatchNormalization:
            layer.call = MethodType(_call, layer)


def _call(self, inputs, training=None, mask=None):
    fits = (
        training
        and self.trainable
        and mask is None
        and self.scale
        and self.center
        and not self.renorm
        and not self.synchronized
        and len(inputs.shape) == 4
        and self.axis in (-1, 3)
        and inputs.dtype == self.compute_dtype == "float32"
    )
    if not fits:
        return type(self).call(self, inputs, training=training, mask=mask)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=self.gamma,
        offset=self.beta,
        mean=[],
        variance=[],
        epsilon=self.epsilon,
        is_training=True,
    )
    # That of a larger population, which the batch is drawn from; Keras keeps the batch's own.
    count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
    variance *= (count - 1) / count
    for moving, found in ((self.moving_mean, mean), (self.moving_variance, variance)):
        moving.assign(moving * self.momentum + found * (1 - self.momentum))
    return outputs
