import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from rle_tf.export.litert import export_litert, operators
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.export.twin import float32_twin
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17


@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 2, 4)])
@pytest.mark.parametrize(
    ("options", "replaced"),
    [
        ({}, True),
        ({"use_bias": False, "activation": "relu"}, True),
        ({"kernel_size": 3}, False),
        ({"strides": 1}, False),
        ({"padding": "valid"}, False),
        ({"output_padding": 1}, False),
        ({"dtype": "mixed_bfloat16"}, True),
    ],
)
def test_a_transposed_convolution_without_its_zeros(shape, options, replaced):
    keras.utils.set_random_seed(0)
    options = {"kernel_size": 4, "strides": 2, "padding": "same"} | options
    layer = layers.Conv2DTranspose(6, bias_initializer="normal", name="up", **options)
    image = keras.Input(shape)
    model = keras.Model(image, layer(image))
    twin = float32_twin(model)
    assert twin.output.dtype == "float32"
    assert isinstance(twin.get_layer("up"), layers.Conv2DTranspose) == (not replaced)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    # Of a sum of 16 bits' products, about 1 here.
    atol = 0.02 if model.output.dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(twin(x), tf.cast(model(x), tf.float32), rtol=0, atol=atol)


def test_an_exported_model_has_none(tmp_path):
    image = keras.Input((32, 32, 3))
    backbone = keras.Model(image, layers.Conv2D(8, 3, 4, "same", activation="relu")(image))
    regressor = build_regressor(backbone, COCO17, 2, (32, 32), head="heatmap", deconvolutions=2)
    version = export_savedmodel(
        regressor, tmp_path, skeleton=COCO17, mean=(0.5,) * 3, std=(0.5,) * 3, box_margin=1.25
    )
    found = operators(export_litert(version, tmp_path / "1-float32.tflite"))
    assert found["DEPTH_TO_SPACE"] == 2 and "TRANSPOSE_CONV" not in found
