import keras
import pytest

from rle_tf.models.cost import multiply_adds, parameters
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17


@pytest.mark.parametrize(
    ("backbone", "head", "deconvolutions", "millions", "giga"),
    [
        # The paper's Table 5.
        ("resnet50", "pooled", 0, 23.6, 4.0),
        ("resnet50", "heatmap", 3, 34.0, 9.7),
        # The HRNet paper's Table 1 has these parameters.
        pytest.param("hrnet_w32", "heatmap", 0, 28.5, 7.6, marks=pytest.mark.slow),
        pytest.param("hrnet_w48", "heatmap", 0, 63.6, 15.7, marks=pytest.mark.slow),
    ],
)
def test_what_models_cost_at_256x192(backbone, head, deconvolutions, millions, giga):
    model = build_regressor(backbone, COCO17, head=head, deconvolutions=deconvolutions)
    assert round(parameters(model) / 1e6, 1) == millions
    assert round(multiply_adds(model) / 1e9, 1) == giga


def test_each_kind_of_layer_by_hand():
    image = keras.Input((8, 6, 4))
    x = keras.layers.Conv2D(10, 3, 2, "same")(image)  # 4x3
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = keras.layers.SeparableConv2D(5, 3, padding="same")(x)
    x = keras.layers.Conv2DTranspose(7, 4, 2, "same")(x)  # 8x6
    x = keras.layers.BatchNormalization()(x)
    inner = keras.Model(image, x)
    x = keras.layers.GlobalAveragePooling2D()(inner(image))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    kernels = (9 * 4 * 10, 9 * 10, 9 * 10, 10 * 5, 16 * 5 * 7, 7 * 3)
    places = (12, 12, 12, 12, 48, 1)
    assert multiply_adds(model) == sum(k * p for k, p in zip(kernels, places, strict=True))
    biases = 10 + 5 + 7 + 3
    assert parameters(model) == sum(kernels) + biases + 2 * 7
    model.trainable = False
    assert parameters(model) == sum(kernels) + biases + 2 * 7
    assert multiply_adds(model) == sum(k * p for k, p in zip(kernels, places, strict=True))
