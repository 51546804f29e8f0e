import logging
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy

from rle_tf.errors import ModelError
from rle_tf.models.regressor import build_backbone, build_regressor
from rle_tf.models.resnet import resnet
from rle_tf.models.weights import load_weights
from rle_tf.skeletons import COCO17

# Keras reads variables by np.array, which TensorFlow's do not support in full under NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ":keras.src.backend.tensorflow.core"
)

SAMPLES = Path(__file__).parents[3] / "shared" / "data"
SIZE = (64, 96)


def values_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Every variable by `layer|variable`."""
    return {
        f"{layer.name}|{variable.name}": variable.value.numpy()
        for layer in model.layers
        for variable in layer.weights
    }


def randomise(model: keras.Model) -> keras.Model:
    """Makes every variable, those of the normalisations too, unlike a new model's."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def assert_same(model: keras.Model, expected: dict[str, np.ndarray]) -> None:
    actual = values_of(model)
    for key in actual:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


def torch_state(model: keras.Model) -> dict[str, np.ndarray]:
    """The state dict that torchvision's module of the same weights would have."""
    names = {
        "kernel": "weight",
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    state = {"fc.weight": np.zeros((1000, 512), "float32"), "fc.bias": np.zeros(1000, "float32")}
    for key, value in values_of(model).items():
        layer, variable = key.split("|")
        module = layer.replace("_", ".")
        if variable == "kernel":
            value = np.ascontiguousarray(np.moveaxis(value, (3, 2), (0, 1)))
        if variable == "gamma":
            state[f"{module}.num_batches_tracked"] = np.array(7)
        state[f"{module}.{names[variable]}"] = value
    return state


@pytest.fixture(scope="module")
def resnet18():
    return randomise(resnet(18, SIZE))


@pytest.fixture(scope="module")
def mobilenet():
    return randomise(build_backbone("mobilenet", SIZE))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_torchvision_keys(resnet18, suffix, tmp_path, caplog):
    state = torch_state(resnet18)
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".npz":
        np.savez(path, **state)
    else:
        safetensors.numpy.save_file(state, path)
    with caplog.at_level(logging.INFO, "rle_tf"):
        assert_same(build_backbone("resnet18", SIZE, path), values_of(resnet18))
    # 20 convolutions and 20 normalisations with four variables each; the latter have a counter.
    assert f"{path}: loaded 100 variables; ignored 22 entries" in caplog.text


@pytest.mark.parametrize("name", ["kernel", "depthwise_kernel"])
def test_keras_keys_with_either_name_of_the_depthwise_kernel(mobilenet, name, tmp_path):
    path = tmp_path / "mobilenet.npz"
    values = values_of(mobilenet)
    np.savez(
        path,
        **{
            key.replace("|kernel", f"|{name}") if "_dw_" in key else key: value
            for key, value in values.items()
        },
    )
    assert_same(build_backbone("mobilenet", SIZE, str(path)), values)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_files_of_keras(mobilenet, suffix, tmp_path):
    path = tmp_path / f"mobilenet{suffix}"
    if suffix == ".keras":
        mobilenet.save(path)
    else:
        mobilenet.save_weights(path)
    assert_same(build_backbone("mobilenet", SIZE, path), values_of(mobilenet))
    cut = build_backbone("mobilenet", SIZE, path, output_layer="conv_pw_3_relu")
    assert_same(cut, values_of(mobilenet))


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_the_backbone_inside_a_saved_regressor(suffix, tmp_path):
    regressor = randomise(build_regressor("mobilenet_v3_small", COCO17, 2, SIZE))
    path = tmp_path / f"regressor{suffix}"
    if suffix == ".keras":
        regressor.save(path)
    else:
        regressor.save_weights(path)
    backbone = build_backbone("mobilenet_v3_small", SIZE, path)
    assert_same(backbone, values_of(regressor.get_layer("backbone")))


def test_the_backbone_of_a_run(tmp_path):
    """As the paper's starred rows: heatmaps first, then a regressor on their backbone."""
    heatmaps = build_regressor(
        "mobilenet_v3_small", COCO17, 2, SIZE, head="heatmap", deconvolutions=1
    )
    randomise(heatmaps).save(tmp_path / "regressor.keras")
    regressor = build_regressor("mobilenet_v3_small", COCO17, 2, SIZE, weights=tmp_path)
    assert_same(regressor.get_layer("backbone"), values_of(heatmaps.get_layer("backbone")))
    with pytest.raises(ModelError, match="regressor.keras does not fit the backbone mobilenet"):
        build_backbone("mobilenet", SIZE, tmp_path)


@pytest.mark.parametrize("name", ["efficientnet_v2_b0", "convnext_tiny"])
def test_a_run_of_keras_s_other_backbones(name, tmp_path):
    """Whose layers are nested, or have variables without names."""
    randomise(build_regressor(name, COCO17, 2, SIZE)).save(tmp_path / "regressor.keras")
    regressor = keras.saving.load_model(tmp_path / "regressor.keras")
    backbone = build_backbone(name, SIZE, tmp_path)
    image = np.random.default_rng(0).normal(size=(1, *SIZE, 3)).astype("float32")
    np.testing.assert_allclose(
        backbone(image), regressor.get_layer("backbone")(image), rtol=1e-5, atol=1e-5
    )


def test_missing_variable_is_named_and_nothing_is_changed(resnet18, tmp_path):
    before = values_of(resnet18)
    state = {key: value + 1 for key, value in torch_state(resnet18).items()}
    del state["layer3.0.downsample.1.running_var"]
    path = tmp_path / "weights.npz"
    np.savez(path, **state)
    with pytest.raises(ModelError) as error:
        load_weights(resnet18, "resnet18", path)
    message = str(error.value)
    assert str(path) in message and "of its 100 variables 1 cannot" in message
    assert "layer3.0.downsample.1.running_var" in message and "expected shape (256,)" in message
    assert_same(resnet18, before)


@pytest.mark.parametrize(
    ("key", "found", "expected"),
    [
        ("layer1.0.conv1.weight", (3, 3, 64, 64), "(64, 64, 3, 3)"),
        ("layer2.0.downsample.0.weight", (64, 128, 1, 1), "(128, 64, 1, 1)"),
        ("bn1.bias", (65,), "(64,)"),
    ],
)
def test_misshapen_variable(resnet18, key, found, expected, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({**torch_state(resnet18), key: np.zeros(found, "float32")}, path)
    with pytest.raises(ModelError) as error:
        load_weights(resnet18, "resnet18", path)
    assert f"{key} has shape {found}, expected {expected}" in str(error.value)
    assert str(path) in str(error.value)


def test_weights_of_another_architecture(mobilenet, resnet18, tmp_path):
    path = tmp_path / "mobilenet.weights.h5"
    mobilenet.save_weights(path)
    with pytest.raises(ModelError, match="does not fit the backbone resnet18: of its 100"):
        load_weights(resnet18, "resnet18", path)


def test_absent_file(mobilenet, tmp_path):
    path = tmp_path / "nothing.npz"
    with pytest.raises(ModelError, match=f"{path} does not exist"):
        load_weights(mobilenet, "mobilenet", path)


@pytest.mark.parametrize("name", ["weights.bin", "weights.h5", "imagnet"])
def test_other_kinds_of_file(mobilenet, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"?")
    with pytest.raises(ModelError, match=f'{name}.*"imagenet" or .*safetensors, .npz, .weights.h5'):
        load_weights(mobilenet, "mobilenet", path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".weights.h5", ".keras"])
@pytest.mark.parametrize("content", [b"", b"no weights at all, only words"])
def test_unreadable_file(mobilenet, suffix, content, tmp_path):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{path} cannot be read as {suffix}"):
        load_weights(mobilenet, "mobilenet", path)


def test_imagenet_weights_of_a_resnet(resnet18, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(torch_state(resnet18), path)
    asked = []

    def get_file(fname, origin, cache_subdir):
        asked.append((fname, origin))
        return str(path)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    assert_same(build_backbone("resnet18", SIZE, "imagenet"), values_of(resnet18))
    # A name of its own for each depth: all of them are called model.safetensors there.
    assert asked == [
        (
            "resnet18.tv_in1k.safetensors",
            "https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors",
        )
    ]


def test_imagenet_weights_of_a_mobilenet(mobilenet, tmp_path, monkeypatch):
    path = tmp_path / "mobilenet.weights.h5"
    mobilenet.save_weights(path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    cut = build_backbone("mobilenet", SIZE, "imagenet", output_layer="conv_pw_11_relu")
    assert_same(cut, values_of(mobilenet))


@pytest.mark.parametrize(
    ("name", "target", "tried"),
    [
        ("resnet18", "keras.utils.get_file", "https://huggingface.co/timm/resnet18.tv_in1k/"),
        ("mobilenet_v2", "keras.src.utils.file_utils.get_file", "keras.applications"),
    ],
)
def test_failed_download(mobilenet, name, target, tried, monkeypatch):
    def get_file(*_, **__):
        raise Exception("URL fetch failure: no route to host")

    monkeypatch.setattr(target, get_file)
    with pytest.raises(ModelError) as error:
        load_weights(mobilenet, name, "imagenet")
    message = str(error.value)
    assert f"ImageNet weights of {name}" in message and tried in message
    assert "no route to host" in message and "the path of a local file" in message


def test_real_weights_fit_the_cut_backbone_alone():
    path = SAMPLES / "weights" / "mobilenet_v1_1.0_224_imagenet_partial.npz"
    if not path.is_file():
        pytest.skip(f"needs {path}, which is not distributed")
    backbone = build_backbone("mobilenet", (224, 224), path, output_layer="conv_pw_12_relu")
    with np.load(path) as arrays:
        kernel = backbone.get_layer("conv_dw_12").kernel.value.numpy()
        np.testing.assert_array_equal(kernel, arrays["conv_dw_12|depthwise_kernel"])
        variance = backbone.get_layer("conv_pw_12_bn").moving_variance.value.numpy()
        np.testing.assert_array_equal(variance, arrays["conv_pw_12_bn|moving_variance"])
    with pytest.raises(
        ModelError, match=r"conv_pw_13\|kernel.*expected shape \(1, 1, 1024, 1024\)"
    ):
        build_backbone("mobilenet", (224, 224), path)
