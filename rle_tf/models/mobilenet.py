"""MobileNet v1, v2 and v3 of keras.applications, without their classifiers; and v2 as PyTorch's
libraries have it.

Each function takes the height and width in pixels (multiples of 32) and gives a functional model
from a float image (B, H, W, 3) to features (B, H/32, W/32, C). With `weights="imagenet"` Keras
downloads weights that were trained on inputs in [-1, 1]; at sizes other than 224x224 Keras warns
about that, so load at 224x224 and copy: the variables' shapes do not depend on the size.
"""

import keras
from keras import layers

# MobileNet v2: (expansion, channels, blocks, stride of the first) of its seven stages.
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """MobileNet v1 (Howard et al., 2017), C = 1024."""
    return keras.applications.MobileNet((*image_size, 3), include_top=False, weights=weights)


def mobilenet_v2(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """MobileNet v2 (Sandler et al., CVPR 2018), C = 1280."""
    return keras.applications.MobileNetV2((*image_size, 3), include_top=False, weights=weights)


def mobilenet_v3_small(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """MobileNet v3 small (Howard et al., ICCV 2019), C = 576; no rescaling inside."""
    return keras.applications.MobileNetV3Small(
        (*image_size, 3), include_top=False, weights=weights, include_preprocessing=False
    )


def mobilenet_v3_large(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """MobileNet v3 large (Howard et al., ICCV 2019), C = 960; no rescaling inside."""
    return keras.applications.MobileNetV3Large(
        (*image_size, 3), include_top=False, weights=weights, include_preprocessing=False
    )


def mobilenet_v2_torch(image_size: tuple[int, int]) -> keras.Model:
    """MobileNet v2 with PyTorch's padding, C = 1280: weights that were trained there fit.

    Keras's own pads before a stride on one side only, which shifts what every layer sees. Layers
    are named after mmpose's modules, dots as underscores (`layer2.0.conv.1.conv` is
    `layer2_0_conv_1_conv`), so that a state dict maps by rule.
    """
    image = keras.Input((*image_size, 3), dtype="float32", name="image")
    x = _conv_module(image, 32, 3, 2, "conv1")
    for stage, (expansion, channels, blocks, first_stride) in enumerate(_V2_STAGES, start=1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            x = _inverted_residual(x, expansion, channels, stride, f"layer{stage}_{block}")
    return keras.Model(image, _conv_module(x, 1280, 1, 1, "conv2"), name="mobilenet_v2_torch")


def _inverted_residual(x, expansion: int, channels: int, stride: int, name: str):
    wide = expansion * x.shape[-1]
    y = x if expansion == 1 else _conv_module(x, wide, 1, 1, f"{name}_conv_0")
    depthwise = int(expansion > 1)
    y = _conv_module(y, None, 3, stride, f"{name}_conv_{depthwise}")
    y = _conv_module(y, channels, 1, 1, f"{name}_conv_{depthwise + 1}", relu=False)
    if stride > 1 or x.shape[-1] != channels:
        return y
    return layers.Add(name=f"{name}_add")([x, y])


def _conv_module(x, filters: int | None, kernel: int, stride: int, name: str, relu: bool = True):
    """A convolution, depthwise without `filters`, with normalisation and ReLU6."""
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    options = {"use_bias": False, "name": f"{name}_conv"}
    if filters is None:
        x = layers.DepthwiseConv2D(kernel, stride, **options)(x)
    else:
        x = layers.Conv2D(filters, kernel, stride, **options)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x
