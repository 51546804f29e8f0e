"""EfficientNetV2 of keras.applications (Tan and Le, ICML 2021), without its classifier.

Each function takes the height and width in pixels (multiples of 32) and gives a functional model
from a float image (B, H, W, 3) to features (B, H/32, W/32, 1280). Their ImageNet weights expect
different inputs.
"""

import keras


def efficientnet_v2_b0(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """The smallest of the family; RGB in [0, 1] less ImageNet's mean and over its deviation."""
    return keras.applications.EfficientNetV2B0(
        input_shape=(*image_size, 3),
        include_top=False,
        weights=weights,
        include_preprocessing=False,
    )


def efficientnet_v2_s(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """The paper's small one; RGB in [-1, 1]."""
    return keras.applications.EfficientNetV2S(
        input_shape=(*image_size, 3),
        include_top=False,
        weights=weights,
        include_preprocessing=False,
    )
