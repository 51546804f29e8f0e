import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.models.lifting import build_lifter
from rle_tf.skeletons import COCO17, H36M18, LSP14, MPII16


def keypoints(people: int, joints: int = 18) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (people, joints, 2)).astype("float32")


@pytest.fixture(scope="module")
def lifter():
    keras.utils.set_random_seed(0)
    return build_lifter(H36M18, width=64)


@pytest.mark.parametrize("skeleton", [H36M18, MPII16], ids=lambda skeleton: skeleton.name)
def test_joints_go_in_and_poses_come_out(skeleton):
    joints, root = len(skeleton.joints), skeleton.root
    lifter = build_lifter(skeleton, width=32)
    assert lifter.name == "regressor" and [tensor.name for tensor in lifter.inputs] == ["keypoints"]
    assert lifter.input_shape == (None, joints, 2)
    outputs = lifter(keypoints(3, joints))
    assert set(outputs) == {"mu", "log_sigma"}
    for value in outputs.values():
        assert value.shape == (3, joints, 3) and value.dtype == tf.float32
        assert np.isfinite(value).all()
    others = np.arange(joints) != root
    assert (outputs["mu"].numpy()[:, root] == 0).all()
    assert (outputs["mu"].numpy()[:, others] != 0).all()
    assert (outputs["log_sigma"].numpy()[:, root] == np.log(np.float32(1e-9))).all()
    assert np.abs(outputs["log_sigma"].numpy()[:, others] - np.log(0.5)).max() < 0.5


def test_moving_all_joints_moves_nothing(lifter):
    before = lifter(keypoints(2))
    bias = lifter.get_layer("mu_dense").bias
    original = bias.numpy()
    bias.assign((original.reshape(18, 3) + (0.5, -0.25, 1)).ravel())
    np.testing.assert_allclose(lifter(keypoints(2))["mu"], before["mu"], rtol=0, atol=1e-6)
    bias.assign(original)


def test_the_network_is_the_published_one():
    lifter = build_lifter(H36M18)
    dense = [layer for layer in lifter.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [1024] * 5 + [54] * 2
    kinds = [type(layer) for layer in lifter.layers]
    for kind in (keras.layers.BatchNormalization, keras.layers.ReLU, keras.layers.Dropout):
        assert kinds.count(kind) == 5
    assert kinds.count(keras.layers.Add) == 2
    # 36 values in; four square layers; a normalisation and a bias each; two heads.
    expected = 36 * 1024 + 4 * 1024**2 + 5 * 3 * 1024 + 2 * (1024 + 1) * 54
    assert sum(np.prod(variable.shape) for variable in lifter.trainable_variables) == expected


def test_a_block_adds_to_its_input():
    lifter = build_lifter(H36M18, width=16, blocks=1)
    lifter.get_layer("block0_1_norm").gamma.assign(np.zeros(16))
    features = keras.Model(
        lifter.input, [lifter.get_layer(name).output for name in ("lift_dropout", "block0_add")]
    )
    before, after = features(keypoints(3))
    assert np.any(before != 0)
    np.testing.assert_array_equal(after, before)


def test_a_person_alone_is_as_in_a_batch(lifter):
    people = keypoints(5)
    together = lifter.predict(people, verbose=0)
    for row in range(5):
        alone = lifter(people[row : row + 1], training=False)
        for name, value in together.items():
            np.testing.assert_allclose(alone[name][0], value[row], rtol=1e-5, atol=1e-6)


def test_training_drops_units_and_follows_the_batch(lifter):
    people = keypoints(5)
    one, other = (lifter(people, training=True)["mu"] for _ in range(2))
    assert np.any(one != other)
    still = build_lifter(H36M18, width=16, dropout=0.0)
    norm = still.get_layer("lift_norm")
    before = norm.moving_mean.numpy()
    still(people, training=True)
    assert np.any(norm.moving_mean.numpy() != before)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_stay_float32_under_a_mixed_policy(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        lifter = build_lifter(H36M18, width=16)
    finally:
        keras.config.set_dtype_policy(previous)
    assert lifter.get_layer("block1_add").output.dtype == policy.removeprefix("mixed_")
    outputs = lifter(keypoints(2))
    for value in outputs.values():
        assert value.dtype == tf.float32 and np.isfinite(value).all()
    assert (outputs["mu"].numpy()[:, H36M18.root] == 0).all()


@pytest.mark.parametrize("skeleton", [COCO17, LSP14], ids=lambda skeleton: skeleton.name)
def test_a_skeleton_without_a_root_is_refused(skeleton):
    with pytest.raises(ModelError, match=f"'{skeleton.name}' has no pelvis"):
        build_lifter(skeleton)
