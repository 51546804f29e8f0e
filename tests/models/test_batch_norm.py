"""Fused batch normalisation is Keras's, value for value."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.models.batch_norm import fuse


def model(dtype="float32", **keys) -> keras.Model:
    image = keras.Input((6, 5, 3))
    x = keras.layers.BatchNormalization(name="norm", dtype=dtype, epsilon=1e-3, **keys)(image)
    return keras.Model(image, x)


def trained(one: keras.Model, x, fused: bool):
    """Outputs, gradients, and statistics after a step."""
    layer = one.get_layer("norm")
    rng = np.random.default_rng(1)
    layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
    if fused:
        fuse(one)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = one(x, training=True)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
        return y, tape.gradient(loss, [x, *one.trainable_variables])

    y, gradients = step(tf.constant(x))
    return [y, *gradients, *layer.weights, one(x, training=False)]


@pytest.mark.parametrize(
    "keys",
    [{}, {"dtype": "mixed_bfloat16"}, {"scale": False}, {"trainable": False}, {"axis": 1}],
    ids=str,
)
def test_it_is_what_keras_computes(keys):
    x = np.random.default_rng(0).normal(2, 3, (4, 6, 5, 3)).astype("float32")
    for found, wanted in zip(
        trained(model(**keys), x, True), trained(model(**keys), x, False), strict=True
    ):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(
            np.float32(found), np.float32(wanted), rtol=1e-4, atol=1e-4, err_msg=str(keys)
        )


def test_training_has_one_operation_for_it():
    one = model()
    fuse(one)
    graph = tf.function(lambda x: one(x, training=True)).get_concrete_function(
        tf.TensorSpec((None, 6, 5, 3))
    )
    assert [o.type for o in graph.graph.get_operations()].count("FusedBatchNormV3") == 1


def test_it_is_saved_as_keras_s_own(tmp_path):
    one = model()
    fuse(one)
    one.save(tmp_path / "model.keras")
    layer = keras.saving.load_model(tmp_path / "model.keras").get_layer("norm")
    assert type(layer) is keras.layers.BatchNormalization
    assert "call" not in vars(layer)
