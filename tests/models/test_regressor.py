import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.models.lifting import build_lifter
from rle_tf.models.regressor import BACKBONES, HEADS, build_backbone, build_regressor
from rle_tf.skeletons import COCO17, H36M18, LSP14, MPII16

# Keras reads variables by np.array, which TensorFlow's do not support in full under NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ":keras.src.backend.tensorflow.core"
)


def patch_means(height: int, width: int, patch: int = 32) -> keras.Model:
    """A backbone whose features are the mean colours of an image's square patches."""
    image = keras.Input((height, width, 3))
    return keras.Model(image, keras.layers.AveragePooling2D(patch)(image), name="patch_means")


# Layers by the hundred, for the slow suite.
HEAVY = ("resnet101", "resnet152", "efficientnet_v2_s", "hrnet_w32", "hrnet_w48")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n in HEAVY)) for n in BACKBONES],
)
def backbone(request):
    return build_backbone(request.param, (64, 64))


def test_every_backbone_gives_the_contracts_outputs(backbone):
    assert backbone.name == "backbone"
    cells = 2 if backbone.output_shape[-1] > 48 else 16  # of an HRNet
    assert backbone.output_shape[:3] == (None, cells, cells)
    image = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")
    for dims, skeleton in ((2, LSP14), (3, MPII16)):
        for head in HEADS if dims == 2 else HEADS[:2]:
            regressor = build_regressor(backbone, skeleton, dims, (64, 64), head=head)
            assert regressor.name == "regressor"
            assert [tensor.name for tensor in regressor.inputs] == ["image"]
            outputs = regressor(image)
            assert set(outputs) == {"mu", "log_sigma"}
            for value in outputs.values():
                assert value.shape == (2, len(skeleton.joints), dims)
                assert value.dtype == tf.float32
                assert np.isfinite(value).all()
            assert (outputs["log_sigma"].numpy() <= 0).all()


def test_regressor_by_name_is_the_papers_size():
    regressor = build_regressor("resnet50", COCO17)
    assert regressor.input_shape == (None, 256, 192, 3)
    # Table 1 of the paper: 23.6 M.
    parameters = sum(np.prod(variable.shape) for variable in regressor.trainable_variables)
    assert parameters == 23_508_032 + 2 * (2048 * 34 + 34)


def test_layers_up_to_the_frozen_one_stay_as_they_are():
    regressor = build_regressor(
        "mobilenet", LSP14, 2, (64, 64), output_layer="conv_pw_6_relu", freeze="conv_pw_3_relu"
    )
    before = [v.numpy() for v in regressor.variables]
    regressor.compile("sgd", loss={"mu": "mse", "log_sigma": "mse"})
    image = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype("float32")
    target = {key: np.ones((4, 14, 2), "float32") for key in ("mu", "log_sigma")}
    regressor.fit(image, target, epochs=2, verbose=0)
    moved = {}
    for variable, old in zip(regressor.variables, before, strict=True):
        number = int((re.findall(r"conv_(?:pw|dw)_(\d+)", variable.path) or [0])[0])
        if "backbone" in variable.path or "conv" in variable.path:
            moved.setdefault(number, []).append(not np.array_equal(variable.numpy(), old))
    assert not any(any(moved[number]) for number in range(4))
    assert all(all(moved[number]) for number in range(4, 7))
    with pytest.raises(ModelError, match="backbone mobilenet has no layer 'conv_pw_99'; close to"):
        build_backbone("mobilenet", (64, 64), freeze="conv_pw_99")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("map_sigma", [False, True, None])
@pytest.mark.parametrize("trained", ["sigma", "none"])
def test_the_mean_stays_where_it_is_not_trained(trained, map_sigma, dims):
    maps = {} if map_sigma is None else {"head": "soft_argmax", "map_sigma": map_sigma}
    if maps:
        maps["pyramid"] = ["conv_pw_3_relu"]  # whose batch normalisation has statistics
    regressor = build_regressor(
        "mobilenet", H36M18, dims, (64, 64), output_layer="conv_pw_6_relu", trained=trained, **maps,
        sigma_dropout=0.5 if map_sigma else 0.0,
    )  # fmt: skip
    names = {variable.path for variable in regressor.trainable_variables}
    kinds = {name.partition("/")[0] for name in names}
    of_maps = {"sigma_hidden", "sigma_of_joints"} if map_sigma else set()
    assert kinds == ({"sigma_dense"} | of_maps if trained == "sigma" else set())
    image = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype("float32")
    before, old = regressor(image), [weight.numpy() for weight in regressor.weights]
    if trained == "none":
        training = regressor(image, training=True)["log_sigma"]
        np.testing.assert_array_equal(training, before["log_sigma"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(regressor(image, training=True)["log_sigma"][:, 1:] ** 2)
    gradients = tape.gradient(loss, regressor.trainable_variables)
    for variable, gradient in zip(regressor.trainable_variables, gradients, strict=True):
        variable.assign_sub(0.01 * gradient)
    moved = {
        weight.path
        for weight, value in zip(regressor.weights, old, strict=True)
        if (weight.numpy() != value).any()
    }
    statistics = {name for name in moved if "moving_" in name}
    assert moved - statistics == names
    seen = {"sigma_pool_bn", "sigma_seen_bn"} if names and map_sigma else set()
    assert {name.partition("/")[0] for name in statistics} == seen
    after = regressor(image)
    np.testing.assert_array_equal(after["mu"], before["mu"])
    assert (after["log_sigma"] != before["log_sigma"]).numpy().any() == bool(names)


def test_what_can_be_trained():
    with pytest.raises(ModelError, match="trained is 'flow'; expected one of all, sigma, none"):
        build_regressor(patch_means(64, 64), LSP14, 2, (64, 64), trained="flow")
    with pytest.raises(ModelError, match="trained: found sigma with head 'heatmap'; expected pool"):
        build_regressor(patch_means(64, 64), LSP14, 2, (64, 64), head="heatmap", trained="sigma")
    backbone = build_backbone("mobilenet", (64, 64), output_layer="conv_pw_6_relu")
    build_regressor(backbone, LSP14, 2, (64, 64), trained="sigma")
    assert not backbone.trainable_variables


@pytest.mark.parametrize("map_sigma", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_pyramid_gives_a_finer_map(dims, map_sigma):
    regressor = build_regressor(
        "mobilenet", H36M18, dims, (64, 96), head="soft_argmax", output_layer="conv_pw_12_relu",
        pyramid=("conv_pw_5_relu", "conv_pw_11_relu"), pyramid_channels=16, map_sigma=map_sigma,
    )  # fmt: skip
    assert regressor.get_layer("score_maps").output.shape == (None, 8, 12, 18)
    # The depth is of the backbone's last features, and sigma of those that the maps are made of.
    names = {layer.name for layer in regressor.layers}
    assert ("pool" in names) == (dims == 3 or not map_sigma)
    sigma = regressor.get_layer("sigma_hidden" if map_sigma else "sigma_dense")
    assert sigma.kernel.shape[0] == (16 if map_sigma else 1024)
    output = regressor(np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32"))
    assert output["mu"].shape == output["log_sigma"].shape == (2, 18, dims)
    assert np.abs(output["mu"][..., :2]).max() < 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_sigma_sees_how_wide_a_map_is(dims):
    """The same mean colours and another arrangement: only the maps can tell."""
    regressor = build_regressor(
        patch_means(128, 128), H36M18, dims, (128, 128), head="soft_argmax", map_sigma=True
    )
    regressor.get_layer("score_maps").kernel.assign(8 * tf.ones((1, 1, 3, 18)))
    assert regressor.get_layer("sigma_hidden").kernel.shape == (3, 8)
    assert regressor.get_layer("sigma_dense").kernel.shape == (8, 18 * dims)
    kernel = regressor.get_layer("sigma_of_joints").kernel
    assert kernel.shape == (18, 3 + 2, dims)
    kernel.assign(0.1 * keras.random.normal(kernel.shape, seed=0))
    one, two = np.zeros((2, 1, 128, 128, 3), "float32")
    one[:, 32:64, 32:64] = 1
    two[:, 32:64, 32:48] = two[:, 96:128, 96:112] = 1
    narrow, wide = regressor(one), regressor(two)
    difference = np.abs(narrow["log_sigma"] - wide["log_sigma"])
    assert difference[:, 1:].min() > 1e-4 and difference.max() > 0.1
    # An even map has the variance of its cells' centres, and a peak none: no NaN of a log.
    flat = regressor(np.zeros((1, 128, 128, 3), "float32"))
    assert np.isfinite(flat["log_sigma"]).all()
    with pytest.raises(ModelError, match="map_sigma: found True with head 'pooled'"):
        build_regressor(patch_means(64, 64), LSP14, 2, (64, 64), map_sigma=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_sigma_sees_is_left_out_in_training_alone(dims):
    plain, dropping = (
        build_regressor(
            patch_means(128, 128), H36M18, dims, (128, 128), head="soft_argmax", map_sigma=True,
            sigma_dropout=share,
        )
        for share in (0.0, 0.5)
    )  # fmt: skip
    dropping.set_weights(plain.get_weights())
    for regressor in (plain, dropping):
        for name in ("sigma_dense", "sigma_of_joints"):
            kernel = regressor.get_layer(name).kernel
            kernel.assign(0.5 * keras.random.normal(kernel.shape, seed=1))
    image = np.random.default_rng(0).normal(size=(8, 128, 128, 3)).astype("float32")
    expected, at_rest = plain(image), dropping(image)
    for name in ("mu", "log_sigma"):
        np.testing.assert_allclose(at_rest[name], expected[name], atol=1e-6)
    first, second = (dropping(image, training=True) for _ in range(2))
    np.testing.assert_array_equal(first["mu"], second["mu"])
    assert (first["log_sigma"][:, 1:].numpy() != second["log_sigma"][:, 1:].numpy()).mean() > 0.5
    for share, map_sigma in ((1.0, True), (-0.1, True), (0.5, False)):
        with pytest.raises(ModelError, match=f"sigma_dropout is {share}; expected a share from 0"):
            build_regressor(
                patch_means(64, 64), LSP14, 2, (64, 64), head="soft_argmax", map_sigma=map_sigma,
                sigma_dropout=share,
            )  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
def test_a_window_takes_one_of_two_peaks(dims):
    whole, windowed = (
        build_regressor(
            patch_means(128, 128),
            H36M18,
            dims,
            (128, 128),
            head="soft_argmax",
            map_sigma=True,
            map_window=window,
        )  # fmt: skip
        for window in (None, 1.0)
    )
    windowed.set_weights(whole.get_weights())
    for regressor in (whole, windowed):
        regressor.get_layer("score_maps").kernel.assign(20 * tf.ones((1, 1, 3, 18)))
    image = np.zeros((2, 128, 128, 3), "float32")
    image[:, 64:96, :32] = 1  # the left peak
    image[0, 64:96, 96:], image[1, 64:96, 96:] = 0.99, 1.01  # the right one, lower or higher
    between, one = (regressor(image)["mu"][:, 1:, :2] for regressor in (whole, windowed))
    np.testing.assert_allclose(between, np.broadcast_to([0.0, 0.125], between.shape), atol=0.2)
    expected = np.broadcast_to([[[-0.375, 0.125]], [[0.375, 0.125]]], one.shape)
    np.testing.assert_allclose(one, expected, atol=0.01)
    with pytest.raises(ModelError, match="map_window: found 1.0 with head 'pooled'"):
        build_regressor(patch_means(64, 64), LSP14, 2, (64, 64), map_window=1.0)
    with pytest.raises(ModelError, match="map_window is -1.0; expected cells, a number above 0"):
        build_regressor(
            patch_means(64, 64), LSP14, 2, (64, 64), head="soft_argmax", map_window=-1.0
        )


def test_a_window_is_a_normal_density_about_the_highest_cell():
    regressor = build_regressor(
        patch_means(96, 128), LSP14, 2, (96, 128), head="soft_argmax", map_window=0.8
    )
    regressor.get_layer("score_maps").kernel.assign(3 * keras.random.normal((1, 1, 3, 14), seed=1))
    image = np.random.default_rng(0).normal(size=(3, 96, 128, 3)).astype("float32")
    image = np.repeat(np.repeat(image[:, ::32, ::32], 32, axis=1), 32, axis=2)
    maps = keras.Model(regressor.input, regressor.get_layer("score_maps").output)(image).numpy()
    rows, columns = np.mgrid[:3, :4]
    for found, scores in zip(regressor(image)["mu"].numpy(), maps, strict=True):
        for joint in range(14):
            score = scores[..., joint]
            y, x = np.unravel_index(score.argmax(), score.shape)
            p = np.exp(score - ((rows - y) ** 2 + (columns - x) ** 2) / (2 * 0.8**2))
            p /= p.sum()
            place = ((p * (columns + 0.5)).sum() / 4 - 0.5, (p * (rows + 0.5)).sum() / 3 - 0.5)
            np.testing.assert_allclose(found[joint], place, atol=1e-5)


def test_a_pyramid_of_a_model_of_one_s_own():
    image = keras.Input((64, 64, 3))
    fine = keras.layers.Conv2D(4, 3, 8, "same", name="fine")(image)
    backbone = keras.Model(image, keras.layers.Conv2D(8, 3, 4, "same")(fine), name="mine")
    regressor = build_regressor(
        backbone, LSP14, 2, (64, 64), head="soft_argmax", pyramid=["fine"], pyramid_channels=8
    )
    assert regressor.get_layer("score_maps").output.shape == (None, 8, 8, 14)
    with pytest.raises(ModelError, match="model 'mine' has no layer 'other'"):
        build_regressor(backbone, LSP14, 2, (64, 64), head="soft_argmax", pyramid=["other"])
    with pytest.raises(ModelError, match="with head 'pooled'; expected soft_argmax"):
        build_regressor(backbone, LSP14, 2, (64, 64), pyramid=["fine"])
    with pytest.raises(ModelError, match=r"from fine to coarse"):
        build_regressor(
            "mobilenet", LSP14, 2, (64, 64), head="soft_argmax",
            pyramid=["conv_pw_12_relu", "conv_pw_5_relu"],
        )  # fmt: skip


def test_heads_begin_with_a_gain_of_one_hundredth():
    regressor = build_regressor(patch_means(64, 64), COCO17, image_size=(64, 64))
    limit = 0.01 * np.sqrt(6 / (3 + 34))
    for layer in ("mu_dense", "sigma_dense"):
        kernel = regressor.get_layer(layer).kernel.value.numpy()
        assert 0.9 * limit < np.abs(kernel).max() <= limit


@pytest.mark.parametrize(
    ("head", "more"), [*((head, {}) for head in HEADS), ("soft_argmax", {"deconvolutions": 1})]
)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_stay_float32_under_a_mixed_policy(policy, head, more):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        cut = build_backbone("mobilenet", (64, 64), output_layer="conv_pw_3_relu")
        dims = 2 if head == "heatmap" else 3
        regressor = build_regressor(cut, H36M18, dims, (64, 64), head=head, **more)
    finally:
        keras.config.set_dtype_policy(previous)
    backbone = regressor.get_layer("backbone")
    assert backbone.output.dtype == policy.removeprefix("mixed_")
    # Those of the head: the backbone is one layer here, and deconvolutions go on in its precision.
    assert {
        layer.compute_dtype
        for layer in regressor.layers
        if layer is not backbone
        and not isinstance(layer, keras.layers.InputLayer)
        and not layer.name.startswith("deconv")
    } == {"float32"}
    outputs = regressor(np.zeros((1, 64, 64, 3), "float32"))
    assert {name: value.dtype for name, value in outputs.items()} == {
        "mu": tf.float32,
        "log_sigma": tf.float32,
    }


def test_feature_norm_divides_the_means_features_alone():
    image = np.random.default_rng(1).uniform(0.1, 1, (2, 64, 96, 3)).astype("float32")
    backbone = patch_means(64, 96)
    normed = build_regressor(backbone, COCO17, image_size=(64, 96))
    plain = build_regressor(backbone, COCO17, image_size=(64, 96), feature_norm=False)
    np.testing.assert_allclose(normed(image)["mu"], normed(5 * image)["mu"], rtol=0, atol=1e-7)
    for regressor, name in ((normed, "log_sigma"), (plain, "log_sigma"), (plain, "mu")):
        assert not np.allclose(regressor(image)[name], regressor(5 * image)[name], rtol=1e-4)

    kernel, bias = (v.value.numpy() for v in normed.get_layer("mu_dense").weights)
    feature = image.mean(axis=(1, 2))
    expected = feature / np.linalg.norm(feature, axis=1, keepdims=True) @ kernel + bias
    np.testing.assert_allclose(normed(image)["mu"], expected.reshape(2, 17, 2), rtol=0, atol=1e-7)


def test_zero_features_give_finite_outputs_and_gradients():
    regressor = build_regressor(patch_means(64, 64), COCO17, image_size=(64, 64))
    image = tf.zeros((1, 64, 64, 3))
    with tf.GradientTape() as tape:
        tape.watch(image)
        outputs = regressor(image)
        total = tf.reduce_sum(outputs["mu"]) + tf.reduce_sum(outputs["log_sigma"])
    np.testing.assert_array_equal(outputs["mu"], 0)
    for gradient in tape.gradient(total, [image, *regressor.trainable_variables]):
        assert np.isfinite(gradient).all()


def test_log_sigma_is_finite_and_not_positive_for_any_raw_sigma():
    regressor = build_regressor(patch_means(64, 64), COCO17, image_size=(64, 64))
    kernel, bias = regressor.get_layer("sigma_dense").weights
    kernel.assign(np.zeros(kernel.shape))
    raw = np.zeros(34, "float32")
    raw[:9] = 0, 1, -1, 100, -100, 1e30, -1e30, np.finfo("float32").max, -np.finfo("float32").max
    bias.assign(raw)
    log_sigma = regressor(np.zeros((1, 64, 64, 3)))["log_sigma"].numpy().ravel()
    expected = -np.logaddexp(0, -raw.astype("float64"))
    np.testing.assert_allclose(log_sigma, expected, rtol=1e-6, atol=1e-30)
    assert np.isfinite(log_sigma).all() and (log_sigma <= 0).all()


def test_soft_argmax_of_a_peaked_map_is_the_cells_centre():
    regressor = build_regressor(
        patch_means(64, 96), COCO17, image_size=(64, 96), head="soft_argmax"
    )
    kernel, _ = regressor.get_layer("score_maps").weights
    scores = np.zeros(kernel.shape, "float32")
    scores[0, 0, 0, 3] = 1e3  # joint 3 reads the first colour, the others see flat maps
    kernel.assign(scores)
    for row in range(2):
        for column in range(3):
            image = np.zeros((1, 64, 96, 3), "float32")
            image[0, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32, 0] = 1
            mu = regressor(image)["mu"].numpy()[0]
            # The middle of the cell's pixels, in the contract's coordinates.
            expected = (32 * column + 16) / 96 - 0.5, (32 * row + 16) / 64 - 0.5
            np.testing.assert_allclose(mu[3], expected, atol=1e-6)
            np.testing.assert_allclose(np.delete(mu, 3, axis=0), 0, atol=1e-6)


def test_soft_argmax_of_two_equal_peaks_is_between_them():
    regressor = build_regressor(
        patch_means(64, 96), COCO17, image_size=(64, 96), head="soft_argmax"
    )
    kernel, _ = regressor.get_layer("score_maps").weights
    kernel.assign(np.full(kernel.shape, 1e3))
    image = np.zeros((1, 64, 96, 3), "float32")
    image[0, :32, :32] = image[0, 32:, :32] = 1
    np.testing.assert_allclose(regressor(image)["mu"][0, 0], (16 / 96 - 0.5, 0), atol=1e-6)


def test_soft_argmax_grid_is_no_variable_and_survives_cloning():
    regressor = build_regressor(
        patch_means(64, 96), H36M18, 3, (64, 96), head="soft_argmax", feature_norm=False
    )
    assert {variable.path.split("/")[0] for variable in regressor.variables} == {
        "score_maps",
        "depth_dense",
        "sigma_dense",
    }
    clone = keras.models.clone_model(regressor)
    for copy, original in zip(clone.variables, regressor.variables, strict=True):
        copy.assign(original)
    image = np.random.default_rng(2).normal(size=(1, 64, 96, 3)).astype("float32")
    for name, value in regressor(image).items():
        np.testing.assert_array_equal(clone(image)[name], value)


def test_depth_of_the_soft_argmax_head_comes_from_pooled_features():
    regressor = build_regressor(
        patch_means(64, 96), H36M18, 3, (64, 96), head="soft_argmax", feature_norm=False
    )
    image = np.random.default_rng(3).normal(size=(1, 64, 96, 3)).astype("float32")
    kernel, bias = (v.value.numpy() for v in regressor.get_layer("depth_dense").weights)
    expected = image.mean(axis=(1, 2)) @ kernel + bias
    expected -= expected[:, [H36M18.root]]
    np.testing.assert_allclose(regressor(image)["mu"][..., 2], expected, atol=1e-6)


@pytest.mark.parametrize("skeleton", [H36M18, MPII16], ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize(
    ("head", "layer"), [("pooled", "mu_dense"), ("soft_argmax", "depth_dense")]
)
def test_depths_are_relative_to_a_root_that_is_known(skeleton, head, layer):
    regressor = build_regressor(patch_means(64, 96), skeleton, 3, (64, 96), head=head)
    image = np.random.default_rng(5).normal(size=(3, 64, 96, 3)).astype("float32")
    _, bias = regressor.get_layer(layer).weights
    before = regressor(image)
    joints, root = len(skeleton.joints), skeleton.root
    raw = bias.numpy().reshape(joints, -1)
    raw[:, -1] += 0.5
    bias.assign(raw.ravel())
    after = regressor(image)
    others = np.arange(joints) != root
    for outputs in (before, after):
        mu, log_sigma = (outputs[name].numpy() for name in ("mu", "log_sigma"))
        assert (mu[:, root, 2] == 0).all() and (mu[:, others, 2] != 0).all()
        assert (log_sigma[:, root, 2] == np.log(np.float32(1e-9))).all()
        assert (log_sigma[:, others] > -2).all() and (log_sigma[:, root, :2] > -2).all()
        assert (mu[..., :2] != 0).all()
    # Moving everything away from the camera moves nothing.
    np.testing.assert_allclose(after["mu"], before["mu"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(after["log_sigma"], before["log_sigma"])


def test_the_depth_of_the_root_is_not_learned():
    regressor = build_regressor(patch_means(64, 64), H36M18, 3, (64, 64))
    image = np.random.default_rng(6).normal(size=(2, 64, 64, 3)).astype("float32")
    with tf.GradientTape() as tape:
        outputs = regressor(image)
        depth = [outputs[name][:, H36M18.root, 2] for name in ("mu", "log_sigma")]
    for gradient in tape.gradient(depth, regressor.trainable_variables):
        assert gradient is not None
        np.testing.assert_array_equal(gradient, 0)


def test_saved_models_load_without_this_package(tmp_path):
    rng = np.random.default_rng(4)
    models = {"lifter": build_lifter(H36M18, width=32)}
    for head in HEADS:
        backbone = build_backbone("mobilenet", (64, 96), output_layer="conv_pw_5_relu")
        dims = 2 if head == "heatmap" else 3
        models[head] = build_regressor(backbone, H36M18, dims, (64, 96), head=head)
    arrays = {}
    for key, model in models.items():
        model.save(tmp_path / f"{key}.keras")
        given = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
        arrays[f"{key}_input"] = given
        for name, value in model(given).items():
            arrays[f"{key}_{name}"] = value.numpy()
    np.savez(tmp_path / "expected.npz", **arrays)
    script = """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("rle_tf", "tensorflow_probability"):
                    raise ImportError(f"{name} is blocked")

        sys.meta_path.insert(0, Blocker())
        try:
            import rle_tf
        except ImportError:
            pass
        else:
            raise SystemExit("the package is not blocked")

        import keras
        import numpy as np

        arrays = np.load("expected.npz")
        for key in ("lifter", "pooled", "soft_argmax", "heatmap"):
            outputs = keras.saving.load_model(f"{key}.keras")(arrays[f"{key}_input"])
            for name in ("mu", "log_sigma"):
                np.testing.assert_array_equal(outputs[name].numpy(), arrays[f"{key}_{name}"])
        print("equal")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "equal\n", result.stderr


def test_backbone_is_cut_at_the_named_layer():
    backbone = build_backbone("mobilenet", (64, 96), output_layer="conv_pw_11_relu")
    assert backbone.output_shape == (None, 4, 6, 512)
    assert backbone.layers[-1].name == "conv_pw_11_relu"
    regressor = build_regressor("mobilenet", COCO17, 2, (64, 96), output_layer="conv_pw_11_relu")
    assert regressor.get_layer("backbone").output_shape == (None, 4, 6, 512)


def test_a_backbone_of_ones_own_may_leave_its_size_open():
    image = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(8, 3, strides=8)(image)
    regressor = build_regressor(
        keras.Model(image, features), COCO17, 2, (64, 96), head="soft_argmax"
    )
    assert regressor(np.zeros((1, 64, 96, 3)))["mu"].shape == (1, 17, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet51"}, "'resnet51'.*resnet18.*resnet50.*mobilenet_v3_large"),
        ({"head": "hourglass"}, "'hourglass'.*pooled, soft_argmax, heatmap"),
        (
            {"head": "heatmap", "image_size": (32, 64)},
            "head 'heatmap': found maps of 1x2 cells; expected 2 or more each way",
        ),
        ({"head": "heatmap", "dims": 3}, "head 'heatmap' with dims 3; expected 2"),
        (
            {"deconvolutions": 3},
            "deconvolutions: found 3 with head 'pooled'; expected soft_a",
        ),
        ({"head": "heatmap", "map_sigma": True}, "map_sigma: found True with head 'heatmap'"),
        ({"dims": 4}, "dims is 4; expected 2 or 3"),
        ({"dims": 3}, "'coco17' has no pelvis.*expected one that has, h36m18 for one"),
        ({"dims": 3, "head": "soft_argmax"}, "'coco17' has no pelvis"),
        ({"image_size": (64, 50)}, r"\(64, 50\); expected \(height, width\).*multiples of 32"),
        ({"image_size": (0, 64)}, r"\(0, 64\); expected"),
        ({"image_size": (64, 64, 3)}, r"\(64, 64, 3\); expected"),
        ({"image_size": 64}, "64; expected"),
        (
            {"output_layer": "conv_pw_14_relu"},
            "mobilenet has no layer 'conv_pw_14_relu'; close to it are .*conv_pw_1[0-3]_relu",
        ),
        ({"output_layer": "@"}, "no layer '@'; its last is conv_pw_13_relu"),
        ({"backbone": patch_means(64, 96)}, r"takes \(None, 64, 96, 3\); expected"),
        ({"backbone": patch_means(64, 64), "weights": "imagenet"}, "given by its name"),
        ({"backbone": patch_means(64, 64), "output_layer": "pool"}, "given by its name"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    arguments = {"backbone": "mobilenet", "skeleton": COCO17, "image_size": (64, 64), **arguments}
    with pytest.raises(ModelError, match=message):
        build_regressor(**arguments)


def test_a_backbone_that_gives_no_map_is_refused():
    image = keras.Input((64, 64, 3))
    pooled = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    with pytest.raises(ModelError, match=r"\(None, 3\); expected \(None, h, w, C\)"):
        build_regressor(pooled, COCO17, image_size=(64, 64))
