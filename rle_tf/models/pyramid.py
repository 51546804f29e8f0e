"""A fine map that knows what the coarse ones say."""

from collections.abc import Sequence

from keras import layers


def top_down(maps: Sequence, channels: int):
    """Merges feature maps from the coarsest to the finest, as feature pyramids do (Lin et al.,
    "Feature pyramid networks for object detection", CVPR 2017), with separable convolutions.

    At each step the coarser map is enlarged to the finer one's size, the finer one is projected and
    added, and a 3x3 depthwise and a 1x1 convolution mix what was added.

    Args:
        maps: (B, h, w, C) each, two at least, from fine to coarse; each size a multiple of the
            next one's.
        channels: Of the result.

    Returns:
        (B, h, w, channels) of the finest map.
    """
    *finer, x = maps
    x = layers.Conv2D(channels, 1, use_bias=False, name="pyramid_top")(x)
    for level, fine in reversed(list(enumerate(finer))):
        factor = tuple(f // c for f, c in zip(fine.shape[1:3], x.shape[1:3], strict=True))
        if factor != (1, 1):
            x = layers.UpSampling2D(factor, interpolation="bilinear", name=f"pyramid_{level}_up")(x)
        lateral = layers.Conv2D(channels, 1, use_bias=False, name=f"pyramid_{level}_lateral")(fine)
        x = layers.Add(name=f"pyramid_{level}_add")([x, lateral])
        x = _normalised(x, f"pyramid_{level}_merged")
        x = layers.DepthwiseConv2D(
            3, padding="same", use_bias=False, name=f"pyramid_{level}_depthwise"
        )(x)
        x = layers.Conv2D(channels, 1, use_bias=False, name=f"pyramid_{level}_pointwise")(x)
        x = _normalised(x, f"pyramid_{level}_mixed")
    return x


def _normalised(x, name: str):
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)
