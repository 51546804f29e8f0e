"""ResNet 18 to 152 as the paper and torchvision have it.

He et al., "Deep residual learning for image recognition" (CVPR 2016), with the bottleneck's stride
on its 3x3 convolution (known as v1.5). keras.applications strides on the 1x1 instead, pads
differently and expects BGR, so weights published for torchvision do not fit there.
"""

import keras
from keras import layers

from rle_tf.errors import ModelError

# Depth: (blocks in each of the four stages, whether a block is a bottleneck).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def resnet(depth: int, image_size: tuple[int, int]) -> keras.Model:
    """A ResNet without its classifier.

    Layers are named after torchvision's modules, dots as underscores (`layer1.0.downsample.0` is
    `layer1_0_downsample_0`), so that a state dict maps by rule.

    Args:
        depth: 18, 34, 50, 101 or 152.
        image_size: Height and width in pixels, multiples of 32.

    Returns:
        A functional model: float image (B, H, W, 3) -> features (B, H/32, W/32, C), with C = 512
        for depths 18 and 34, else 2048.

    Raises:
        ModelError: for a depth that is not in `DEPTHS`.
    """
    if depth not in DEPTHS:
        raise ModelError(f"no ResNet of depth {depth!r}; the depths are {sorted(DEPTHS)}")
    stages, is_bottleneck = DEPTHS[depth]
    block = bottleneck if is_bottleneck else basic_block

    image = keras.Input((*image_size, 3), dtype="float32", name="image")
    x = conv_bn(image, 64, 7, 2, "conv1", "bn1")
    x = layers.ReLU(name="relu")(x)
    # Padding with zeros before the maximum is right only because nothing here is negative.
    x = layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for stage, blocks in enumerate(stages, start=1):
        for index in range(blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            x = block(x, 64 * 2 ** (stage - 1), stride, f"layer{stage}_{index}")
    return keras.Model(image, x, name=f"resnet{depth}")


def basic_block(x, filters: int, stride: int, name: str):
    """Two 3x3 convolutions with a shortcut: (B, h, w, C) -> (B, h/stride, w/stride, filters)."""
    y = conv_bn(x, filters, 3, stride, f"{name}_conv1", f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = conv_bn(y, filters, 3, 1, f"{name}_conv2", f"{name}_bn2")
    return _add_shortcut(x, y, stride, name)


def bottleneck(x, filters: int, stride: int, name: str):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: (B, h, w, C) -> (B, h/stride, w/stride,
    4 filters)."""
    y = conv_bn(x, filters, 1, 1, f"{name}_conv1", f"{name}_bn1")
    y = layers.ReLU(name=f"{name}_relu1")(y)
    y = conv_bn(y, filters, 3, stride, f"{name}_conv2", f"{name}_bn2")
    y = layers.ReLU(name=f"{name}_relu2")(y)
    y = conv_bn(y, 4 * filters, 1, 1, f"{name}_conv3", f"{name}_bn3")
    return _add_shortcut(x, y, stride, name)


def _add_shortcut(x, y, stride: int, name: str):
    channels = y.shape[-1]
    if stride > 1 or x.shape[-1] != channels:
        x = conv_bn(x, channels, 1, stride, f"{name}_downsample_0", f"{name}_downsample_1")
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([x, y]))


def conv_bn(x, filters: int, kernel: int, stride: int, conv_name: str, bn_name: str):
    """A convolution that pads as PyTorch does, and batch normalisation."""
    # PyTorch pads both sides alike; "same" with a stride pads an even input on one side only.
    padding = "same"
    if stride > 1:
        padding = "valid"
        if kernel > 1:
            x = layers.ZeroPadding2D(kernel // 2, name=f"{conv_name}_pad")(x)
    x = layers.Conv2D(
        filters,
        kernel,
        stride,
        padding,
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=conv_name,
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=bn_name)(x)
