import numpy as np
import pytest

from rle_tf.errors import ModelError
from rle_tf.models.hrnet import hrnet
from rle_tf.models.regressor import build_backbone

# Some of the authors' modules: name in a state dict, shape in PyTorch's order.
AUTHORS = {
    "conv1.weight": (64, 3, 3, 3),
    "bn2.running_var": (64,),
    "layer1.0.conv2.weight": (64, 64, 3, 3),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.3.bn3.bias": (256,),
    "transition1.0.0.weight": (32, 256, 3, 3),
    "transition1.1.0.0.weight": (64, 256, 3, 3),
    "stage2.0.branches.1.3.conv2.weight": (64, 64, 3, 3),
    "stage2.0.fuse_layers.0.1.0.weight": (32, 64, 1, 1),
    "stage2.0.fuse_layers.1.0.0.1.weight": (64,),
    "transition2.2.0.0.weight": (128, 64, 3, 3),
    "stage3.3.fuse_layers.2.0.0.0.weight": (32, 32, 3, 3),
    "stage3.3.fuse_layers.2.0.1.0.weight": (128, 32, 3, 3),
    "transition3.3.0.1.running_mean": (256,),
    "stage4.2.fuse_layers.0.3.0.weight": (32, 256, 1, 1),
}


@pytest.fixture(scope="module")
def w32():
    return hrnet(32, (64, 96))


def torch_names(model) -> dict[str, tuple]:
    """The names and shapes that a state dict of the model would have."""
    parts = {"kernel": "weight", "gamma": "weight", "beta": "bias",
             "moving_mean": "running_mean", "moving_variance": "running_var"}  # fmt: skip
    found = {}
    for layer in model.layers:
        name = layer.name.replace("_", ".").replace("fuse.layers", "fuse_layers")
        for variable in layer.weights:
            shape = tuple(variable.shape)
            order = (3, 2, 0, 1) if len(shape) == 4 else range(len(shape))
            found[f"{name}.{parts[variable.name]}"] = tuple(shape[axis] for axis in order)
    return found


def test_its_layers_are_the_authors(w32):
    assert w32.output_shape == (None, 16, 24, 32)
    names = torch_names(w32)
    for name, shape in AUTHORS.items():
        assert names[name] == shape, name
    # The last module has the finest resolution alone.
    assert not any(name.startswith("stage4.2.fuse_layers.1") for name in names)
    assert any(name.startswith("stage4.1.fuse_layers.3.0.2") for name in names)


@pytest.mark.slow
def test_weights_of_the_authors_layout_fit(w32, tmp_path):
    rng = np.random.default_rng(0)
    state = {
        name: rng.uniform(0.1, 1, shape).astype("float32")
        for name, shape in torch_names(w32).items()
    }
    np.savez(tmp_path / "hrnet.npz", **state, **{"final_layer.weight": np.zeros((17, 32, 1, 1))})
    backbone = build_backbone("hrnet_w32", (64, 96), tmp_path / "hrnet.npz")
    kernel = backbone.get_layer("stage3_3_fuse_layers_2_0_1_0").kernel.numpy()
    theirs = state["stage3.3.fuse_layers.2.0.1.0.weight"]
    np.testing.assert_array_equal(kernel, theirs.transpose(2, 3, 1, 0))
    del state["stage4.2.fuse_layers.0.3.0.weight"]
    np.savez(tmp_path / "part.npz", **state)
    with pytest.raises(ModelError, match=r"stage4\.2\.fuse_layers\.0\.3\.0\.weight\) is missing"):
        build_backbone("hrnet_w32", (64, 96), tmp_path / "part.npz")


def test_its_branches_are_joined_as_the_authors_do(w32):
    def layer(name):
        return w32.get_layer(name)

    up = layer("stage3_1_fuse_layers_0_2_2")
    assert up.interpolation == "nearest" and up.size == (4, 4)
    # A new branch starts from the coarsest one, as the module before left it.
    assert layer("transition2_2_0_0_pad").input is layer("stage2_0_fuse_1_relu").output
    assert layer("transition3_3_0_0_pad").input is layer("stage3_3_fuse_2_relu").output
    # Steps down have an activation between them, and none before the sum.
    assert layer("stage4_0_fuse_layers_3_0_1_0_pad").input is (
        layer("stage4_0_fuse_layers_3_0_0_relu").output
    )
    terms = layer("stage4_0_fuse_3_add").input
    assert terms[0] is layer("stage4_0_fuse_layers_3_0_2_1").output
    assert terms[3] is layer("stage4_0_branches_3_3_out").output


def test_other_widths():
    with pytest.raises(ModelError, match=r"no HRNet of width 18; the widths are \[32, 48\]"):
        hrnet(18, (64, 64))
