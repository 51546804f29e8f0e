"""What a model costs: parameters and multiply-adds."""

import math

import keras

from rle_tf.models.regressor import BACKBONES, build_regressor
from rle_tf.skeletons import COCO17


def parameters(model: keras.Model) -> int:
    """Trainable parameters, and frozen ones that could be trained; no statistics."""
    statistics = ("moving_mean", "moving_variance")
    return sum(math.prod(v.shape) for v in model.weights if v.name not in statistics)


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of the convolutions and dense layers for one input, which papers on poses call
    FLOPs.

    A transposed convolution counts its whole kernel at each output, as the figures of the paper's
    Table 5 do, though of stride 2 three quarters of those products are with zeros.
    """
    total = 0
    for layer in model._flatten_layers(include_self=False):
        kernels = [v for v in layer._trainable_variables if v.name.endswith("kernel")]
        if isinstance(layer, keras.layers.EinsumDense):  # each place has a kernel of its own
            places = 1
        else:
            places = math.prod(layer.output.shape[1:-1]) if kernels else 0
        total += places * sum(math.prod(kernel.shape) for kernel in kernels)
    return total


def cost_table(image_size: tuple[int, int]) -> list[dict]:
    """For every backbone a row of the regressor and one of the heatmap model: `backbone`, `head`,
    `maps` (their size), `parameters`, `multiply_adds`.

    Heatmaps are a quarter of the image, as in the paper's Table 5: three deconvolutions after most
    backbones, none after an HRNet.
    """
    rows = []
    for name in BACKBONES:
        for head in ("pooled", "heatmap"):
            deconvolutions = 3 if head == "heatmap" and not name.startswith("hrnet") else 0
            model = build_regressor(
                name, COCO17, 2, image_size, head=head, deconvolutions=deconvolutions
            )
            maps = ""
            if head == "heatmap":
                maps = "x".join(map(str, model.get_layer("score_maps").output.shape[1:3]))
            rows.append(
                {
                    "backbone": name,
                    "head": head,
                    "maps": maps,
                    "parameters": parameters(model),
                    "multiply_adds": multiply_adds(model),
                }
            )
            keras.backend.clear_session()
    return rows
