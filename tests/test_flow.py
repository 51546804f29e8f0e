"""The flow: golden numbers, the properties of a density, and its life as a Keras layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.flow import RealNVP


def load_reference_weights(flow, arrays):
    """Fills the flow from dense weights `weight/{s,t}.<coupling>.{0,2,4}.{weight,bias}`."""
    for letter, nets in [("s", flow.scale_nets), ("t", flow.shift_nets)]:
        for i, net in enumerate(nets):
            for j, dense in zip([0, 2, 4], net.dense, strict=True):
                dense.kernel.assign(arrays[f"weight/{letter}.{i}.{j}.weight"].T)
                dense.bias.assign(arrays[f"weight/{letter}.{i}.{j}.bias"])


def bent_flow(dims, layers=6):
    """A flow far from the identity."""
    keras.utils.set_random_seed(dims)
    flow = RealNVP(dims, layers)
    for variable in flow.variables:
        variable.assign_add(0.1 * keras.random.normal(variable.shape))
    return flow


def assert_close_as_vectors(found, reference):
    """Relative error 5e-5 of (N, D) rows: a component near zero is a difference of larger ones."""
    scale = np.abs(reference).max(axis=-1, keepdims=True)
    assert np.all(np.abs(found - reference) <= 5e-5 * scale)


@pytest.mark.parametrize("dims", [2, 3])
def test_reproduces_the_reference(golden, dims):
    arrays = golden(f"flow{dims}d")
    flow = RealNVP(dims)
    load_reference_weights(flow, arrays)
    residual = tf.constant(arrays["residual"])
    with tf.GradientTape() as tape:
        tape.watch(residual)
        log_prob = flow.log_prob(residual)
    log_det = flow.bijector.inverse_log_det_jacobian(residual, event_ndims=1)

    np.testing.assert_allclose(log_prob, arrays["log_prob"], rtol=5e-5)
    np.testing.assert_allclose(log_det, arrays["inverse_log_det"], rtol=5e-5)
    assert_close_as_vectors(flow.bijector.inverse(residual), arrays["z"])
    assert_close_as_vectors(flow.bijector.forward(residual[:200]), arrays["forward_of_first_200"])
    assert_close_as_vectors(tape.gradient(log_prob, residual), arrays["grad_residual"])


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_inverse_undoes_forward(dims):
    flow = bent_flow(dims)
    z = tf.random.stateless_normal((100, dims), seed=[0, 1])
    x = flow.bijector.forward(z)
    assert np.abs(x - z).max() > 0.5
    np.testing.assert_allclose(flow.bijector.inverse(x), z, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_log_det_is_that_of_the_jacobian(dims):
    flow = bent_flow(dims, layers=3)
    z = tf.random.stateless_normal((20, dims), seed=[0, 2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        x = flow.bijector.forward(z)
    _, log_det = np.linalg.slogdet(
        tape.batch_jacobian(x, z, experimental_use_pfor=False).numpy().astype("float64")
    )
    assert np.abs(log_det).max() > 0.1
    forward = flow.bijector.forward_log_det_jacobian(z, event_ndims=1)
    np.testing.assert_allclose(forward, log_det, atol=1e-4)
    inverse = flow.bijector.inverse_log_det_jacobian(x, event_ndims=1)
    np.testing.assert_allclose(inverse, -log_det, atol=1e-4)


def test_density_integrates_to_one():
    flow = bent_flow(2, layers=3)
    samples = flow.sample(2000, seed=0).numpy()
    assert np.abs(samples).max() < 12
    step = 0.16
    axis = np.arange(-16, 16, step)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    density = np.exp(tf.function(flow.log_prob)(grid).numpy().astype("float64"))
    np.testing.assert_allclose(density.sum() * step**2, 1, atol=1e-3)


def test_samples_follow_log_prob():
    """The entropy of the samples, and their share of a half-plane, are those of the density."""
    flow = bent_flow(2, layers=2)
    samples = flow.sample(20_000, seed=3)
    axis = np.arange(-12, 12, 0.15)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    log_prob = flow.log_prob(grid).numpy().astype("float64")
    probability = np.exp(log_prob) * 0.15**2
    np.testing.assert_allclose(
        np.mean(flow.log_prob(samples)), (probability * log_prob).sum(), atol=0.03
    )
    for d in range(2):
        mean = (probability * grid[..., d]).sum()
        np.testing.assert_allclose(np.mean(samples[:, d]), mean, atol=0.04)


def test_samples_are_repeatable_by_seed():
    flow = bent_flow(3)
    first = flow.sample(5, seed=7)
    assert first.shape == (5, 3) and first.dtype == tf.float32
    np.testing.assert_array_equal(first, flow.sample(5, seed=7))
    assert np.all(first != flow.sample(5, seed=8))


@pytest.mark.parametrize("dims", [2, 3])
def test_without_couplings_it_is_the_standard_normal(dims):
    flow = RealNVP(dims, layers=0)
    x = np.random.default_rng(0).normal(0, 3, (4, 5, dims)).astype("float32")
    expected = (-(x**2) / 2 - np.log(np.sqrt(2 * np.pi))).sum(-1)
    np.testing.assert_allclose(flow.log_prob(x), expected, rtol=1e-5)
    assert flow.variables == []
    np.testing.assert_array_equal(flow.bijector.forward(x), x)


def test_masks_are_those_of_the_paper():
    """What a single coupling, the even or the odd one, leaves as it is."""
    for dims, kept in [(2, [[1], [0]]), (3, [[2], [0, 1]]), (5, [[3, 4], [0, 1, 2]])]:
        flow = bent_flow(dims, layers=2)
        z = tf.random.stateless_normal((10, dims), seed=[0, 3])
        odd, even = flow.bijector.bijectors
        for coupling, expected in [(even, kept[0]), (odd, kept[1])]:
            same = np.all(coupling.forward(z).numpy() == z.numpy(), axis=0)
            assert list(np.flatnonzero(same)) == expected


def test_starts_close_to_the_identity_and_is_seeded():
    keras.utils.set_random_seed(5)
    flow = RealNVP(2)
    keras.utils.set_random_seed(5)
    twin = RealNVP(2)
    x = tf.random.stateless_normal((100, 2), seed=[0, 4])
    np.testing.assert_array_equal(flow.log_prob(x), twin.log_prob(x))
    difference = np.abs(flow.log_prob(x) - RealNVP(2, layers=0).log_prob(x))
    assert 0 < difference.max() < 0.5
    assert np.any(RealNVP(2).log_prob(x) != flow.log_prob(x))


def test_every_variable_is_trainable_and_moves_in_fit():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    flow = RealNVP(2, layers=3)
    assert len(flow.variables) == len(flow.trainable_variables) == 3 * 2 * 3 * 2
    model = keras.Model(inputs, flow(inputs))
    model.compile(
        keras.optimizers.Adam(1e-3), loss=lambda _, log_prob: -log_prob, jit_compile=False
    )
    before = [v.numpy() for v in flow.variables]
    x = np.random.default_rng(0).normal(1, 2, (256, 2)).astype("float32")
    history = model.fit(x, np.zeros(256), batch_size=64, epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    for old, variable in zip(before, flow.trainable_variables, strict=True):
        assert np.any(old != variable.numpy()), variable.path


def test_every_variable_gets_a_gradient():
    flow = RealNVP(3)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(flow(tf.random.stateless_normal((64, 3), seed=[0, 5])))
    for gradient in tape.gradient(value, flow.trainable_variables):
        assert gradient is not None and np.any(gradient != 0)


def test_log_prob_notices_that_variables_changed():
    """On the very same tensor: the bijectors' memory of it must not survive the change."""
    flow = RealNVP(2)
    x = tf.random.stateless_normal((8, 2), seed=[0, 6])
    before = flow.log_prob(x)
    flow.shift_nets[0].dense[-1].bias.assign([1.0, 1.0])
    assert np.all(flow.log_prob(x) != before)


def test_freezing_the_flow_freezes_every_variable():
    flow = RealNVP(2)
    flow.trainable = False
    assert flow.trainable_variables == []
    assert RealNVP.from_config(flow.get_config()).trainable_variables == []


# Keras 3.15 lets NumPy 2 copy a variable through an __array__ that has no copy argument.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
def test_a_model_that_holds_it_saves_and_reloads(tmp_path):
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, bent_flow(3, layers=2)(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = tf.random.stateless_normal((8, 4, 3), seed=[0, 7])
    assert model(x).shape == (8, 4)
    np.testing.assert_array_equal(model(x), again(x))


def test_config_round_trip():
    flow = RealNVP(3, layers=4, hidden=16, name="density")
    config = flow.get_config()
    assert config == {
        "dims": 3,
        "layers": 4,
        "hidden": 16,
        "name": "density",
        "trainable": True,
        "joints": None,
    }
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(flow))
    assert isinstance(again, RealNVP) and again.get_config() == config
    assert [v.shape for v in again.variables] == [v.shape for v in flow.variables]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_stays_float32_under_any_policy(policy):
    x = tf.random.stateless_normal((8, 2), seed=[0, 8])
    keras.utils.set_random_seed(0)
    reference = RealNVP(2).log_prob(x)
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        flow = RealNVP(2)
        again = RealNVP.from_config(flow.get_config())
        log_prob = flow(x)
        from_half = flow(tf.cast(x, tf.float16))
    finally:
        keras.config.set_dtype_policy("float32")
    assert flow.compute_dtype == again.compute_dtype == "float32"
    assert {v.dtype for v in [*flow.variables, *again.variables]} == {"float32"}
    np.testing.assert_array_equal(log_prob, reference)
    assert from_half.dtype == tf.float32


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_equals_eager(jit_compile):
    flow = bent_flow(3, layers=2)
    x = tf.random.stateless_normal((6, 4, 3), seed=[0, 9])
    compiled = tf.function(flow.log_prob, jit_compile=jit_compile)
    np.testing.assert_allclose(compiled(x), flow.log_prob(x), rtol=1e-4, atol=1e-4)


def test_unknown_batch_size():
    flow = bent_flow(2, layers=2)
    traced = tf.function(flow.log_prob, input_signature=[tf.TensorSpec((None, None, 2))])
    assert traced(tf.zeros((3, 5, 2))).shape == (3, 5)
    assert traced(tf.zeros((0, 5, 2))).shape == (0, 5)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"dims": 1}, "dims is 1, expected at least 2"),
        ({"dims": 2, "layers": -1}, "layers is -1, expected at least 0"),
        ({"dims": 2, "hidden": 0}, "hidden is 0, expected at least 1"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        RealNVP(**arguments)


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (4, 2, 1)])
def test_points_of_other_dimensions_are_refused(shape):
    with pytest.raises(ModelError, match=r"'density': x has shape .*, expected \(\.\.\., 2\)"):
        RealNVP(2, layers=1, name="density").log_prob(np.zeros(shape))


# ---- one flow a joint


def test_a_flow_for_each_joint_is_as_many_flows():
    keras.utils.set_random_seed(0)
    together = RealNVP(3, layers=3, hidden=8, joints=4)
    for variable in together.variables:
        variable.assign_add(0.2 * keras.random.normal(variable.shape))
    x = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
    z = together.sample(6, seed=1)
    assert together.log_prob(x).shape == (5, 4) and z.shape == (6, 4, 3)
    for joint in range(4):
        alone = RealNVP(3, layers=3, hidden=8)
        alone.set_weights([value[joint] for value in together.get_weights()])
        np.testing.assert_allclose(
            together.log_prob(x)[:, joint], alone.log_prob(x[:, joint]), rtol=1e-5, atol=1e-5
        )
        back, log_det = alone.inverse(z[:, joint])
        np.testing.assert_allclose(back, together.inverse(z)[0][:, joint], atol=1e-5)
        np.testing.assert_allclose(log_det, together.inverse(z)[1][:, joint], atol=1e-5)


def test_flows_of_joints_start_as_one_flow_does():
    keras.utils.set_random_seed(0)
    one, many = RealNVP(2), RealNVP(2, joints=50)
    for ours, theirs in zip(many.get_weights(), one.get_weights(), strict=True):
        if theirs.ndim == 2 and theirs.size > 100:  # kernels of enough numbers to compare
            assert ours.std() == pytest.approx(theirs.std(), rel=0.2)


def test_flows_of_joints_want_those_joints():
    flow = RealNVP(2, layers=1, hidden=4, joints=3)
    with pytest.raises(ModelError, match=r"x has shape \(5, 2\), expected \(\.\.\., 3, 2\)"):
        flow.log_prob(np.zeros((5, 2)))
    again = RealNVP.from_config(flow.get_config())
    assert again.joints == 3 and again.event_shape == (3, 2)
    with pytest.raises(ModelError, match="joints is 0, expected at least 1"):
        RealNVP(2, joints=0)
