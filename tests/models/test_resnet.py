"""ResNet against the authors' regressor, whose weights are drawn by a rule from their names.

The rule, for every key of the checkpoint but `*.num_batches_tracked` and the flow's:
z = default_rng(crc32(key)).standard_normal(shape), then by the first match
`*running_var` 1 + 0.1|z|; `*running_mean` 0.1 z; 1-D `*.weight` 0.5 + 0.05 z; other 1-D 0.1 z;
4-D z sqrt(2 / fan_in); 2-D z sqrt(1 / fan_in), those of `fc_sigma` times 0.1.
"""

import json
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

from rle_tf.errors import ModelError
from rle_tf.models.regressor import build_regressor
from rle_tf.models.resnet import resnet
from rle_tf.skeletons import COCO17, H36M18

GOLDEN = Path(__file__).parents[1] / "golden"


def draw(key: str, shape: list[int]) -> np.ndarray:
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif key.endswith("running_mean"):
        z = 0.1 * z
    elif len(shape) == 1:
        z = 0.5 + 0.05 * z if key.endswith(".weight") else 0.1 * z
    elif len(shape) == 4:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    else:
        z = z * np.sqrt(1 / shape[1]) * (0.1 if key.startswith("fc_sigma") else 1)
    return z.astype("float32")


@pytest.mark.parametrize(
    ("depth", "trainable_parameters"),
    # torchvision's counts less the classifier's.
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
def test_parameter_count(depth, trainable_parameters):
    variables = resnet(depth, (64, 64)).trainable_variables
    assert sum(np.prod(variable.shape) for variable in variables) == trainable_parameters


@pytest.mark.parametrize(("dims", "depth"), [(2, 18), (2, 50), (3, 50)])
def test_authors_outputs_are_reproduced(dims, depth, golden, tmp_path):
    name = f"{dims}d_resnet{depth}"
    expected = golden(f"regressor_{name}")
    keys = json.loads((GOLDEN / f"checkpoint_keys_{name}.json").read_text())
    state = {
        key: draw(key, shape)
        for key, shape in keys.items()
        if not key.endswith("num_batches_tracked") and not key.startswith("flow")
    }
    backbone_state = {
        key.removeprefix("preact."): value
        for key, value in state.items()
        if key.startswith("preact.")
    }
    path = tmp_path / "backbone.safetensors"
    safetensors.numpy.save_file(backbone_state, path)

    height, width = (int(n) for n in expected["image_hw"])
    skeleton = COCO17 if dims == 2 else H36M18
    regressor = build_regressor(f"resnet{depth}", skeleton, dims, (height, width), weights=path)
    for layer, key in (("mu_dense", "fc_coord"), ("sigma_dense", "fc_sigma")):
        key = f"{key}.linear" if f"{key}.linear.weight" in state else key
        kernel, bias = regressor.get_layer(layer).weights
        kernel.assign(state[f"{key}.weight"].T)
        bias.assign(state[f"{key}.bias"])
    image = np.random.default_rng(int(expected["input_seed"])).uniform(
        -0.5, 0.55, (2, height, width, 3)
    )
    outputs = {**regressor.output, "pool": regressor.get_layer("pool").output}
    actual = keras.Model(regressor.input, outputs)(image.astype("float32"))

    sigma = np.exp(actual["log_sigma"])
    # A deviation that is the same everywhere would pass a loose tolerance.
    assert expected["pred_jts"].std() > 0.1 and expected["sigma"].std() > 0.01
    np.testing.assert_allclose(actual["pool"], expected["feature_mean"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(actual["mu"], expected["pred_jts"], rtol=0, atol=1e-4)
    if dims == 3:
        # That of the root's depth is free there, and so is the root's score.
        assert (expected["sigma"][:, H36M18.root, 2] > 0.01).all()
        sigma[:, H36M18.root, 2] = expected["sigma"][:, H36M18.root, 2]
    np.testing.assert_allclose(sigma, expected["sigma"], rtol=0, atol=1e-4)
    score = 1 - sigma.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(score, expected["score"], rtol=0, atol=1e-4)


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
