"""A regressor as its exports compute it."""

from itertools import product

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def float32_twin(regressor: keras.Model) -> keras.Model:
    """The same function and weights, in float32, without transposed convolutions where it can be.

    A graph traced under mixed precision computes in float16, which is slow on CPUs, and TensorFlow
    Lite has no such convolution: the conversion would fail.

    A transposed convolution of 4x4 and stride 2 becomes four convolutions of 2x2, which give the
    pixels of even and odd rows and columns. LiteRT's kernel for it, a product of matrices of
    Eigen's and a sum of what overlaps, is slow (benchmarks/README.md).
    """
    copies = []

    def clone(operation):
        if not isinstance(operation, layers.Layer):
            return operation
        weights = operation.get_weights()
        if _doubles(operation):
            copy = _Doubling(operation)
            weights = [*_by_parity(weights[0]), *weights[1:]]
        else:
            copy = type(operation).from_config({**operation.get_config(), "dtype": "float32"})
        copies.append((copy, weights))
        return copy

    # The new Model about the same graph leaves behind a `compile`, which cloning would repeat.
    graph = keras.Model(regressor.input, regressor.output, name=regressor.name)
    twin = keras.models.clone_model(graph, clone_function=clone, recursive=True)
    for copy, weights in copies:
        copy.set_weights(weights)
    return twin


def _doubles(operation) -> bool:
    return type(operation) is layers.Conv2DTranspose and (
        operation.kernel_size == (4, 4)
        and operation.strides == (2, 2)
        and operation.padding == "same"
        and operation.output_padding is None
        and operation.data_format == "channels_last"
    )


def _by_parity(kernel: np.ndarray) -> list[np.ndarray]:
    """Of (4, 4, out, in), for pixels of even and odd rows, and in those of even and odd columns,
    what meets no zeros: (2, 2, in, out) each."""
    # Row i of the input meets row 2 i + k - 1 of the output under row k of the kernel.
    met = [3, 1], [2, 0]
    return [kernel[np.ix_(rows, columns)].swapaxes(2, 3) for rows, columns in product(met, met)]


class _Doubling(layers.Layer):
    """(B, h, w, C) -> (B, 2 h, 2 w, out); its weights are those of `_by_parity`, and a bias."""

    def __init__(self, transposed: layers.Conv2DTranspose):
        super().__init__(name=transposed.name, dtype="float32")
        self.filters, self.activation = transposed.filters, transposed.activation
        self.use_bias = transposed.use_bias

    def build(self, input_shape):
        self.kernels = [self.add_weight((2, 2, input_shape[-1], self.filters)) for _ in range(4)]
        self.bias = self.add_weight((self.filters,)) if self.use_bias else None

    def call(self, x):
        # An even row or column of the output has the input's before it, too, an odd one the next.
        around = [1, 0], [0, 1]
        parts = [
            tf.nn.conv2d(x, kernel, 1, [[0, 0], rows, columns, [0, 0]])
            for kernel, (rows, columns) in zip(self.kernels, product(around, around), strict=True)
        ]
        x = tf.nn.depth_to_space(tf.concat(parts, axis=-1), 2)
        return self.activation(x if self.bias is None else tf.nn.bias_add(x, self.bias))
