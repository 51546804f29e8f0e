"""MobileNet v1, v2 and v3 of keras.applications, without their classifiers.

Each function takes the height and width in pixels (multiples of 32) and gives a functional model
from a float image (B, H, W, 3) to features (B, H/32, W/32, C). With `weights="imagenet"` Keras
downloads weights that were trained on inputs in [-1, 1]; at sizes other than 224x224 Keras warns
about that, so load at 224x224 and copy: the variables' shapes do not depend on the size.
"""

import keras


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
