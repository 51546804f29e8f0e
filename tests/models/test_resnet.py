"""ResNet: its layers and how they start; what they compute is in tests/test_checkpoints.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from rle_tf.errors import ModelError
from rle_tf.models.resnet import resnet

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("depth", "trainable_parameters"),
    # torchvision's counts less the classifier's.
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
def test_parameter_count(depth, trainable_parameters):
    variables = resnet(depth, (64, 64)).trainable_variables
    assert sum(np.prod(variable.shape) for variable in variables) == trainable_parameters


def test_layer_names_follow_torchvision():
    state = json.loads((GOLDEN / "checkpoint_keys_2d_resnet50.json").read_text())
    modules = {
        key.removeprefix("preact.").rsplit(".", 1)[0] for key in state if key.startswith("preact.")
    }
    named = {layer.name for layer in resnet(50, (64, 64)).layers if layer.weights}
    assert named == {module.replace(".", "_") for module in modules}


def test_initial_kernels_differ_and_follow_he():
    model = resnet(18, (64, 64))
    first = model.get_layer("layer1_0_conv1").kernel.value.numpy()
    second = model.get_layer("layer1_0_conv2").kernel.value.numpy()
    assert not np.allclose(first, second)
    assert first.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 64)), rel=0.02)


def test_unknown_depth_is_refused():
    with pytest.raises(ModelError, match=r"depth 20.*\[18, 34, 50, 101, 152\]"):
        resnet(20, (64, 64))
