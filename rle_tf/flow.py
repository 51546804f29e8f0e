"""The normalising flow of RLE: a RealNVP that learns the density of the normalised residual.

The only module that imports TensorFlow Probability. The flow is used by the loss while training and
by nothing afterwards.
"""

import math
import warnings

import keras
import tensorflow as tf

from rle_tf.errors import ModelError

with warnings.catch_warnings():
    # TFP 0.25 compares version numbers with distutils when its first name is looked up.
    warnings.filterwarnings(
        "ignore", "distutils Version classes are deprecated", DeprecationWarning
    )
    import tensorflow_probability as tfp

    tfb = tfp.bijectors


class _Conditioner(keras.layers.Layer):
    """(..., D) -> (..., D): dense layers D-hidden-hidden-D with LeakyReLU(0.01) between them.

    With `joints` (..., K, D) -> (..., K, D), by weights of each joint's own.
    """

    def __init__(self, dims: int, hidden: int, joints: int | None, name: str):
        super().__init__(name=name, dtype="float32")
        self.dims = dims
        # Glorot's, with gain 0.01 as the reference heads: the flow starts close to the identity, so
        # the loss starts close to that of the base density. The first to be made, and so the first
        # to draw a seed: the same seed goes on giving the same flow.
        last = _dense(hidden, dims, joints, 0.01, "dense_2")
        first = _dense(dims, hidden, joints, 1.0, "dense_0")
        self.dense = [first, _dense(hidden, hidden, joints, 1.0, "dense_1"), last]

    def build(self, input_shape):
        for layer in self.dense:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], layer.bias.shape[-1])

    def call(self, x):
        first, second, last = self.dense
        x = tf.nn.leaky_relu(first(x), 0.01)
        x = tf.nn.leaky_relu(second(x), 0.01)
        return last(x)


def _dense(
    inputs: int, units: int, joints: int | None, gain: float, name: str
) -> keras.layers.Layer:
    # Glorot's by hand: of a kernel with an axis of joints Keras takes other fans than of one joint.
    limit = gain * math.sqrt(6 / (inputs + units))
    initial = keras.initializers.RandomUniform(-limit, limit)
    if joints is None:
        return keras.layers.Dense(units, kernel_initializer=initial, dtype="float32", name=name)
    return keras.layers.EinsumDense(
        "...kc,kcd->...kd",
        (joints, units),
        bias_axes="kd",
        kernel_initializer=initial,
        dtype="float32",
        name=name,
    )


@keras.saving.register_keras_serializable(package="rle_tf")
class RealNVP(keras.layers.Layer):
    """RealNVP over D-dimensional residuals with base density N(0, I) (RLE paper, section 3.2).

    Coupling i keeps part of its input, `x = z` there, and elsewhere applies
    `x = z * exp(tanh(s_i(kept))) + t_i(kept)`. Even couplings keep the last D // 2 dimensions and
    odd ones the first D - D // 2: masks [0, 1], [1, 0] in 2D and [0, 0, 1], [1, 1, 0] in 3D.
    Sampling (z -> x) applies couplings 0 to layers - 1; the likelihood runs them backwards.
    `s_i` is `scale_nets[i]` and `t_i` is `shift_nets[i]`; both take and give D values, with zeros
    for the dimensions that are not kept, so that weights of the authors' masked networks fit.

    All variables exist once the layer is constructed. Variables and results are float32 under every
    dtype policy: a density needs the range. `keras.utils.set_random_seed` seeds the initial values.

    Args:
        dims: D, at least 2.
        layers: number of couplings; 0 is the identity, whose density is the standard normal.
        hidden: width of both hidden layers of each conditioner.
        name: name of the Keras layer.
        trainable: whether the variables are trained.
        joints: K, for K flows with weights of their own, one a joint; `None` for one that all
            share (the paper's). Below, (..., D) is (..., K, D) then.

    Raises:
        ModelError: `dims` < 2, `layers` < 0, `hidden` < 1 or `joints` < 1.
    """

    def __init__(
        self,
        dims: int,
        layers: int = 6,
        hidden: int = 64,
        name: str | None = None,
        trainable: bool = True,
        joints: int | None = None,
    ):
        for argument, value, least in [
            ("dims", dims, 2),
            ("layers", layers, 0),
            ("hidden", hidden, 1),
            ("joints", 1 if joints is None else joints, 1),
        ]:
            if value < least:
                raise ModelError(f"RealNVP: {argument} is {value}, expected at least {least}")
        super().__init__(name=name, trainable=trainable, dtype="float32")
        self.dims = dims
        self.hidden = hidden
        self.joints = joints
        self.scale_nets = [_Conditioner(dims, hidden, joints, f"scale_{i}") for i in range(layers)]
        self.shift_nets = [_Conditioner(dims, hidden, joints, f"shift_{i}") for i in range(layers)]
        self.build((None, *self.event_shape))

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(D,), or (K, D) of a flow for each joint."""
        return (self.dims,) if self.joints is None else (self.joints, self.dims)

    def build(self, input_shape):
        for net in [*self.scale_nets, *self.shift_nets]:
            net.build(input_shape)

    def _coupling(self, i: int, one_input: bool) -> tfb.RealNVP:
        kept = self.dims // 2 if i % 2 == 0 else self.dims - self.dims // 2
        moved = self.dims - kept
        if i % 2 == 0:
            padding, moved_part, num_masked = [moved, 0], slice(0, moved), -kept
        else:
            padding, moved_part, num_masked = [0, moved], slice(kept, None), kept

        computed = []

        def shift_and_log_scale(kept_values, _):
            # TFP asks once for the inverse and once more for its determinant.
            if computed:
                return computed[0]
            rank = kept_values.shape.rank
            masked = tf.pad(kept_values, [[0, 0]] * (rank - 1) + [padding])
            shift = self.shift_nets[i](masked)[..., moved_part]
            # Unbounded log scales sent training to NaN.
            log_scale = tf.tanh(self.scale_nets[i](masked)[..., moved_part])
            if one_input:
                computed.append((shift, log_scale))
            return shift, log_scale

        return tfb.RealNVP(num_masked=num_masked, shift_and_log_scale_fn=shift_and_log_scale)

    @property
    def bijector(self) -> tfb.Bijector:
        """A `tfp.bijectors.Bijector` whose `forward` maps z (..., D) to x (..., D), float32.

        Bijectors remember results by input tensor and would not notice that the variables changed
        since, so each access builds a new chain.
        """
        return self._chain()

    def _chain(self, one_input: bool = False) -> tfb.Bijector:
        """The bijector; one that is for `one_input` alone asks each network once."""
        # A chain applies its last bijector first.
        couplings = reversed(range(len(self.scale_nets)))
        return tfb.Chain([self._coupling(i, one_input) for i in couplings])

    def log_prob(self, x) -> tf.Tensor:
        """Log density of x.

        Args:
            x: (..., D), any float dtype; computed in float32.

        Returns:
            (...), float32.

        Raises:
            ModelError: x has another shape.
        """
        z, log_det = self.inverse(x)
        log_normaliser = 0.5 * self.dims * math.log(2 * math.pi)
        return log_det - 0.5 * tf.reduce_sum(tf.square(z), axis=-1) - log_normaliser

    def inverse(self, x) -> tuple[tf.Tensor, tf.Tensor]:
        """z (..., D) that the flow bends into x (..., D), and log |det dz/dx| (...), as float32.

        Raises:
            ModelError: as `log_prob`.
        """
        x = tf.cast(x, tf.float32)
        event = self.event_shape
        if x.shape.rank is None or tuple(x.shape[-len(event) :]) != event:
            wanted = ", ".join(map(str, event))
            raise ModelError(
                f"RealNVP '{self.name}': x has shape {x.shape}, expected (..., {wanted})"
            )
        # Dense layers of more than two axes are several times as many operations.
        rows = tf.reshape(x, (-1, self.dims)) if self.joints is None else x
        bijector = self._chain(one_input=True)
        z = bijector.inverse(rows)
        # Of no couplings it is one number for all.
        log_det = bijector.inverse_log_det_jacobian(rows, event_ndims=1) + tf.zeros_like(
            rows[..., 0]
        )
        shape = tf.shape(x)
        z, log_det = tf.reshape(z, shape), tf.reshape(log_det, shape[:-1])
        z.set_shape(x.shape)
        log_det.set_shape(x.shape[:-1])
        return z, log_det

    def sample(self, n: int, seed: int) -> tf.Tensor:
        """Draws (n, D) float32 samples; the same integer seed gives the same samples."""
        z = tf.random.stateless_normal([n, *self.event_shape], seed=[seed, 0])
        return self.bijector.forward(z)

    def call(self, x):
        """`log_prob(x)`."""
        return self.log_prob(x)

    def get_config(self):
        return {
            "dims": self.dims,
            "layers": len(self.scale_nets),
            "hidden": self.hidden,
            "name": self.name,
            "trainable": self.trainable,
            "joints": self.joints,
        }
