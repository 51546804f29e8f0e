"""ConvNeXt of keras.applications (Liu et al., CVPR 2022), without its classifier."""

import keras


def convnext_tiny(image_size: tuple[int, int], weights: str | None = None) -> keras.Model:
    """ConvNeXt-Tiny: a float image (B, H, W, 3), RGB in [0, 1] less ImageNet's mean and over its
    deviation, to features (B, H/32, W/32, 768). Height and width in pixels, multiples of 32."""
    model = keras.applications.ConvNeXtTiny(
        input_shape=(*image_size, 3),
        include_top=False,
        weights=weights,
        include_preprocessing=False,
    )
    # Keras numbers the last one through, so that weights would not find it by its name.
    last = model.layers[-1]
    named = keras.layers.LayerNormalization(epsilon=last.epsilon, name="convnext_tiny_layernorm")
    features = named(last.input)
    named.set_weights(last.get_weights())
    return keras.Model(model.input, features, name=model.name)
