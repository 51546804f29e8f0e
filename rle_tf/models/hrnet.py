"""HRNet as its authors have it for poses (Sun et al., "Deep high-resolution representation learning
for human pose estimation", CVPR 2019)."""

import keras
from keras import layers

from rle_tf.errors import ModelError
from rle_tf.models.resnet import basic_block, bottleneck, conv_bn

# Width of the finest branch; each coarser one has twice as many channels.
WIDTHS = (32, 48)
# Modules of stages 2, 3 and 4, which have as many branches.
MODULES = (1, 4, 3)
_BLOCKS = 4


def hrnet(width: int, image_size: tuple[int, int]) -> keras.Model:
    """An HRNet without its last 1x1 convolution.

    Layers are named after the modules of the authors' code, dots as underscores
    (`stage2.0.fuse_layers.1.0.0.0` is `stage2_0_fuse_layers_1_0_0_0`), so that a state dict maps by
    rule.

    Args:
        width: 32 or 48.
        image_size: Height and width in pixels, multiples of 32.

    Returns:
        A functional model: float image (B, H, W, 3) -> features (B, H/4, W/4, width).

    Raises:
        ModelError: for another width.
    """
    if width not in WIDTHS:
        raise ModelError(f"no HRNet of width {width!r}; the widths are {list(WIDTHS)}")
    image = keras.Input((*image_size, 3), dtype="float32", name="image")
    x = image
    for index in (1, 2):
        x = _relu(conv_bn(x, 64, 3, 2, f"conv{index}", f"bn{index}"), f"relu{index}")
    for index in range(4):
        x = bottleneck(x, 64, 1, f"layer1_{index}")
    branches = [x]
    for stage, modules in enumerate(MODULES, start=2):
        branches = _transition(branches, width, stage, f"transition{stage - 1}")
        for module in range(modules):
            last = stage == 4 and module == modules - 1
            branches = _module(branches, f"stage{stage}_{module}", only_finest=last)
    (x,) = branches
    return keras.Model(image, x, name=f"hrnet_w{width}")


def _relu(x, name: str):
    return layers.ReLU(name=name)(x)


def _transition(branches: list, width: int, count: int, name: str) -> list:
    """So many branches of the widths that the stage wants: the coarsest new one from the last."""
    found = []
    for index in range(count):
        channels = width * 2**index
        if index >= len(branches):
            step = f"{name}_{index}_0"
            x = conv_bn(branches[-1], channels, 3, 2, f"{step}_0", f"{step}_1")
            found.append(_relu(x, f"{step}_relu"))
        elif branches[index].shape[-1] != channels:
            step = f"{name}_{index}"
            x = conv_bn(branches[index], channels, 3, 1, f"{step}_0", f"{step}_1")
            found.append(_relu(x, f"{step}_relu"))
        else:
            found.append(branches[index])
    return found


def _module(branches: list, name: str, only_finest: bool) -> list:
    """Blocks on each branch, then each resolution gets the sum of all."""
    grown = []
    for index, x in enumerate(branches):
        for block in range(_BLOCKS):
            x = basic_block(x, x.shape[-1], 1, f"{name}_branches_{index}_{block}")
        grown.append(x)
    fused = []
    for target in range(1 if only_finest else len(grown)):
        terms = [
            _resized(x, source, target, grown[target].shape[-1], name)
            for source, x in enumerate(grown)
        ]
        x = layers.Add(name=f"{name}_fuse_{target}_add")(terms)
        fused.append(_relu(x, f"{name}_fuse_{target}_relu"))
    return fused


def _resized(x, source: int, target: int, channels: int, name: str):
    step = f"{name}_fuse_layers_{target}_{source}"
    if source > target:
        x = conv_bn(x, channels, 1, 1, f"{step}_0", f"{step}_1")
        return layers.UpSampling2D(2 ** (source - target), name=f"{step}_2")(x)
    for index in range(target - source):
        last = index == target - source - 1
        filters = channels if last else x.shape[-1]
        x = conv_bn(x, filters, 3, 2, f"{step}_{index}_0", f"{step}_{index}_1")
        if not last:
            x = _relu(x, f"{step}_{index}_relu")
    return x
