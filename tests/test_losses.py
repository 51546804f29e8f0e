"""The losses: golden numbers, closed forms, supervision, numerics, use in Keras and TensorFlow."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from rle_tf.errors import ModelError
from rle_tf.flow import RealNVP
from rle_tf.geometry import KNOWN_LOG_SIGMA
from rle_tf.losses import DensityLoss, DirectLoss, HeatmapLoss, L1Loss, L2Loss, MapLoss, RLELoss

VARIANTS = [
    *itertools.product(["laplace", "gaussian"], ["paper", "official"]),
    ("laplace", "mmpose"),
]


def load_reference_weights(flow, arrays, prefix):
    """Fills the flow from dense weights `<prefix>/{s,t}.<coupling>.{0,2,4}.{weight,bias}`."""
    for letter, nets in [("s", flow.scale_nets), ("t", flow.shift_nets)]:
        for i, net in enumerate(nets):
            for j, dense in zip([0, 2, 4], net.dense, strict=True):
                dense.kernel.assign(arrays[f"{prefix}/{letter}.{i}.{j}.weight"].T)
                dense.bias.assign(arrays[f"{prefix}/{letter}.{i}.{j}.bias"])


def reference_gradients(flow, arrays, prefix):
    """Pairs (variable, the stored gradient in the variable's layout) over the whole flow."""
    pairs = []
    for letter, nets in [("s", flow.scale_nets), ("t", flow.shift_nets)]:
        for i, net in enumerate(nets):
            for j, dense in zip([0, 2, 4], net.dense, strict=True):
                key = f"{prefix}/{letter}.{i}.{j}"
                pairs.append((dense.kernel, arrays[f"{key}.weight"].T))
                pairs.append((dense.bias, arrays[f"{key}.bias"]))
    return pairs


@functools.cache
def bent_flow(dims=2, layers=6):
    """A flow far from the identity; shared, so not to be trained."""
    keras.utils.set_random_seed(0)
    flow = RealNVP(dims, layers)
    for variable in flow.variables:
        variable.assign_add(0.1 * keras.random.normal(variable.shape))
    return flow


def batch(seed=0, dims=2, people=4, joints=5):
    """A target with every weight 1 and an output, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    shape = (people, joints, dims)
    keypoints = rng.uniform(-0.5, 0.5, shape).astype("float32")
    target = {"keypoints": keypoints, "weight": np.ones(shape, "float32")}
    output = {
        "mu": keypoints + rng.normal(0, 0.1, shape).astype("float32"),
        "log_sigma": rng.uniform(-4, -1, shape).astype("float32"),
    }
    return target, output


def mixed_batch():
    """People 0, 2 and 4 with depths, 1 and 3 without, 5 without anything; some joints are not
    supervised, the depth of another one alone is not."""
    target, output = batch(dims=3, people=6)
    keypoints, weight = target["keypoints"], target["weight"]
    weight[:] = np.random.default_rng(1).uniform(0.2, 2, weight.shape)
    weight[[1, 3], :, 2] = 0
    weight[0, 2] = weight[1, 3] = weight[5] = 0
    weight[2, 1, 2] = 0
    keypoints[weight == 0] = np.nan
    return target, output


WITH_DEPTH, WITHOUT_DEPTH = [0, 2, 4], [1, 3]


def mixed_loss(base="laplace", convention="paper", reduction="sum_over_batch_size"):
    return RLELoss(bent_flow(3, 2), base, convention, reduction, flow_2d=bent_flow(2, 2))


def take(tensors, people):
    return {key: value[people] for key, value in tensors.items()}


def flow_variables(loss):
    flows = [flow for flow in (loss.flow, loss.flow_2d) if flow is not None]
    return [variable for flow in flows for variable in flow.trainable_variables]


def value_and_gradients(loss, target, output):
    """The reduced loss and its gradients for mu, log_sigma and the flows' variables, NumPy."""
    output = {key: tf.constant(value) for key, value in output.items()}
    with tf.GradientTape() as tape:
        tape.watch(output)
        value = loss(target, output)
    gradients = tape.gradient(value, [output["mu"], output["log_sigma"], *flow_variables(loss)])
    return value.numpy(), [None if g is None else g.numpy() for g in gradients]


def gradients_by_flow(loss, target, output):
    """Those of the variables of `flow`, and of `flow_2d`."""
    _, (_, _, *gradients) = value_and_gradients(loss, target, output)
    first = len(loss.flow.trainable_variables)
    return gradients[:first], gradients[first:]


@pytest.mark.parametrize("dims", [2, 3])
def test_official_convention_reproduces_the_reference(golden, dims):
    arrays = golden(f"loss{dims}d")
    flows = {"flow": RealNVP(2)} if dims == 2 else {"flow3d": RealNVP(3), "flow2d": RealNVP(2)}
    for name, flow in flows.items():
        load_reference_weights(flow, arrays, f"{name}_weight")
    # The reference divides the sum over everything by the batch size: the mean over samples.
    flow, flow_2d = [*flows.values(), None][:2]
    loss = RLELoss(flow, convention="official", flow_2d=flow_2d)
    mu, raw_sigma = tf.constant(arrays["pred"]), tf.constant(arrays["raw_sigma"])
    target = {"keypoints": arrays["target"], "weight": arrays["weight"]}
    references = [
        pair
        for name, flow in flows.items()
        for pair in reference_gradients(flow, arrays, f"{name}_grad")
    ]
    assert len(references) == len(flow_variables(loss))
    with tf.GradientTape() as tape:
        tape.watch([mu, raw_sigma])
        log_sigma = tf.math.log_sigmoid(raw_sigma)
        if dims == 3:
            log_sigma = tf.math.log(tf.sigmoid(raw_sigma) + 1e-9)
        value = loss(target, {"mu": mu, "log_sigma": log_sigma})
    gradients = tape.gradient(value, [mu, raw_sigma, *(v.value for v, _ in references)])

    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-4)
    # Of terms of the order of 1, which may cancel.
    np.testing.assert_allclose(gradients[0], arrays["grad_pred"], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(gradients[1], arrays["grad_raw_sigma"], rtol=1e-4, atol=2e-6)
    for gradient, (_, reference) in zip(gradients[2:], references, strict=True):
        # A weight's gradient is a sum over all joints, and where the terms cancel their rounding
        # stays: measured against the variable's largest entry.
        np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("base", ["laplace", "gaussian"])
def test_paper_convention_with_identity_flow_is_the_closed_form(base, dims):
    target, output = batch(dims=dims)
    rng = np.random.default_rng(1)
    target["weight"] = rng.uniform(0.2, 2, target["weight"].shape).astype("float32")
    loss = RLELoss(RealNVP(dims, layers=0), base=base, reduction=None)(target, output)

    mu, log_sigma, keypoints, weight = (
        a.astype("float64")
        for a in (output["mu"], output["log_sigma"], target["keypoints"], target["weight"])
    )
    r = (keypoints - mu) / np.exp(log_sigma)
    if base == "laplace":
        log_q = -np.abs(r) - np.log(2)
    else:
        log_q = -(r**2) / 2 - np.log(np.sqrt(2 * np.pi))
    log_g = (-(r**2) / 2 - np.log(np.sqrt(2 * np.pi))).sum(-1)
    per_joint = (weight * (log_sigma - log_q)).sum(-1) - weight.min(-1) * log_g
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss, per_joint.sum(-1), rtol=1e-5)


def test_conventions_differ_as_documented():
    """With the same flow and unit weights: official = paper + the terms its docstring lists."""
    target, output = batch()
    flow = bent_flow()
    r = (target["keypoints"] - output["mu"]) / np.exp(output["log_sigma"])
    sigma_term = output["log_sigma"].sum((1, 2))
    paper = RLELoss(flow, reduction=None)(target, output)
    official = RLELoss(flow, convention="official", reduction=None)(target, output)
    difference = (
        sigma_term
        - (2 * flow.log_prob(-r) - flow.log_prob(r)).numpy().sum(-1)
        + (np.log(np.sqrt(2 * np.pi)) - np.log(2) + np.abs(r) * (1 / np.sqrt(2) - 1)).sum((1, 2))
    )
    np.testing.assert_allclose(official - paper, difference, rtol=1e-4, atol=1e-3)
    gaussian = RLELoss(flow, base="gaussian", convention="official", reduction=None)
    difference = (r**2 / 2 - np.abs(r) / np.sqrt(2)).sum((1, 2))
    np.testing.assert_allclose(
        gaussian(target, output) - official, difference, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("base", ["laplace", "gaussian"])
def test_mmposes_convention_is_the_formula_of_its_code(base):
    target, output = batch()
    flow = bent_flow()
    sigma = np.exp(output["log_sigma"])
    error = (output["mu"] - target["keypoints"]) / sigma
    log_q = -np.abs(error) - np.log(2 * sigma)
    if base == "gaussian":
        log_q = -(error**2) / 2 - np.log(sigma * np.sqrt(2 * np.pi))
    log_phi = flow.log_prob(error).numpy()[..., None]
    expected = (np.log(sigma) - log_phi - log_q).sum((1, 2))
    loss = RLELoss(flow, base=base, convention="mmpose", reduction=None)(target, output)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-3)


def test_l1_is_the_weighted_absolute_error_and_leaves_sigma_alone():
    target, output = batch()
    target["weight"][1, 2, 0] = 0.5
    target["weight"][0, 0] = 0
    target["keypoints"][0, 0] = np.nan
    value, (grad_mu, grad_log_sigma) = value_and_gradients(L1Loss("sum"), target, output)
    error = np.nan_to_num(np.abs(target["keypoints"] - output["mu"]))
    np.testing.assert_allclose(value, (target["weight"] * error).sum(), rtol=1e-5)
    sign = np.sign(np.nan_to_num(output["mu"] - target["keypoints"]))
    np.testing.assert_array_equal(grad_mu, sign * target["weight"])
    np.testing.assert_array_equal(grad_log_sigma, np.zeros_like(grad_log_sigma))
    assert L1Loss().flow is None


def test_l2_is_the_weighted_squared_error_and_leaves_sigma_alone():
    target, output = batch()
    target["weight"][1, 2, 0] = 0.5
    target["weight"][0, 0] = 0
    target["keypoints"][0, 0] = np.nan
    value, (grad_mu, grad_log_sigma) = value_and_gradients(L2Loss("sum"), target, output)
    error = np.nan_to_num(output["mu"] - target["keypoints"])
    np.testing.assert_allclose(value, (target["weight"] * error**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(grad_mu, 2 * error * target["weight"], rtol=1e-5)
    np.testing.assert_array_equal(grad_log_sigma, np.zeros_like(grad_log_sigma))
    assert np.isnan(L2Loss().spread(2)).all() and np.isnan(L1Loss().spread(3)).all()


@pytest.mark.parametrize("base", ["laplace", "gaussian"])
def test_a_density_alone_is_a_negative_log_likelihood(base):
    density = {"laplace": stats.laplace, "gaussian": stats.norm}[base]
    target, output = batch(dims=3)
    scale = np.exp(output["log_sigma"].astype(float))
    wanted = -density.logpdf(target["keypoints"], output["mu"], scale)
    value = DensityLoss(base, None)(target, output)
    np.testing.assert_allclose(value, wanted.sum((1, 2)), rtol=1e-5)
    # What one sigma is worth: the error that 68.27 % of this density stay within.
    quantile = density.ppf(0.5 + 0.6827 / 2)
    np.testing.assert_allclose(DensityLoss(base).spread(2), [quantile] * 2, rtol=0.01)


# exp(log density) of one coordinate under a flow that is the identity, but for a constant. With two
# coordinates the official convention has G twice.
PRODUCTS = {
    ("laplace", "paper"): lambda r: np.exp(-np.abs(r) - r**2 / 2),
    ("gaussian", "paper"): lambda r: np.exp(-(r**2)),
    ("laplace", "official"): lambda r: np.exp(-np.abs(r) / np.sqrt(2) - r**2),
    ("gaussian", "official"): lambda r: np.exp(-1.5 * r**2),
    ("laplace", "mmpose"): lambda r: np.exp(-np.abs(r) - r**2),
}


@pytest.mark.parametrize(("base", "convention"), PRODUCTS)
def test_the_learned_density_is_base_times_flow(base, convention):
    loss = RLELoss(RealNVP(2, layers=0), base, convention)
    grid = np.linspace(-8, 8, 4001)
    density = PRODUCTS[base, convention](grid)
    share = np.cumsum(density) / density.sum()
    quantile = grid[np.searchsorted(share, 0.5 + 0.6827 / 2)]
    np.testing.assert_allclose(loss.spread(2), [quantile] * 2, rtol=0.01)
    draws = loss.draws(2)
    assert draws.shape == (20_000, 2)
    np.testing.assert_allclose(np.quantile(np.abs(draws), 0.6827, axis=0), quantile, rtol=0.04)
    np.testing.assert_allclose(draws.mean(axis=0), [0, 0], atol=0.03)


@pytest.mark.parametrize("convention", ["paper", "official"])
def test_the_learned_density_is_what_the_loss_minimises(convention):
    """At a sigma of 1 the loss of a joint is -log density, but for a constant."""
    keras.utils.set_random_seed(3)
    loss = RLELoss(bent_flow(2), convention=convention, reduction=None)
    residual = np.random.default_rng(0).normal(size=(50, 1, 2)).astype("float32")
    target = {"keypoints": residual, "weight": np.ones_like(residual)}
    output = {"mu": np.zeros_like(residual), "log_sigma": np.zeros_like(residual)}
    difference = loss(target, output).numpy() + loss.log_density(residual[:, 0]).numpy()
    np.testing.assert_allclose(difference, difference[0], rtol=1e-4, atol=1e-4)


def test_a_flow_off_centre_moves_the_draws():
    flow = RealNVP(2, layers=2)
    for net in flow.shift_nets:
        net.dense[-1].kernel.assign(tf.zeros_like(net.dense[-1].kernel))
        net.dense[-1].bias.assign([0.5, 0.5])
    for net in flow.scale_nets:
        net.dense[-1].kernel.assign(tf.zeros_like(net.dense[-1].kernel))
    # N(0.5, 1) times N(0, 1) is N(0.25, 1/2).
    draws = RLELoss(flow, "gaussian").draws(2)
    np.testing.assert_allclose(draws.mean(axis=0), [0.25, 0.25], atol=0.03)
    np.testing.assert_allclose(draws.std(axis=0), [np.sqrt(0.5)] * 2, rtol=0.03)
    assert (draws == RLELoss(flow, "gaussian").draws(2)).all()
    assert np.isnan(L1Loss().draws(3)).all() and L1Loss().log_density(np.zeros((1, 2))) is None


@pytest.mark.parametrize("base", ["laplace", "gaussian"])
def test_a_density_alone_is_rle_without_g(base):
    target, output = batch()
    flow = bent_flow()
    r = (target["keypoints"] - output["mu"]) / np.exp(output["log_sigma"])
    rle = RLELoss(flow, base=base, reduction=None)(target, output)
    log_g = tf.reduce_sum(flow.log_prob(tf.constant(r, tf.float32)), axis=1)
    np.testing.assert_allclose(
        DensityLoss(base, None)(target, output), rle + log_g, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("base", ["laplace", "gaussian"])
def test_a_density_alone_passes_over_what_is_not_supervised_and_stays_finite(base):
    target, output = batch()
    target["weight"][0, 0] = 0
    target["keypoints"][0, 0] = np.nan
    output["mu"][1, 1] = 1e5
    output["log_sigma"][1, 1] = -80
    value, gradients = value_and_gradients(DensityLoss(base, "sum"), target, output)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    assert not any(g[0, 0].any() for g in gradients)
    with pytest.raises(ModelError, match="base is 'cauchy', expected one of laplace, gaussian"):
        DensityLoss("cauchy")


@pytest.mark.parametrize("base,convention", VARIANTS)
@pytest.mark.parametrize("absent", [np.nan, np.inf])
def test_unsupervised_joints_add_exactly_nothing(base, convention, absent):
    """The same as a batch in which those joints do not exist: value and every gradient."""
    target, output = batch(joints=5)
    present = [0, 2, 3]
    target["keypoints"][:, [1, 4]] = absent
    target["weight"][:, [1, 4]] = 0
    output["log_sigma"][:, 4] = -80
    loss = RLELoss(bent_flow(), base, convention)
    value, gradients = value_and_gradients(loss, target, output)
    without, gradients_without = value_and_gradients(
        loss,
        {key: a[:, present] for key, a in target.items()},
        {key: a[:, present] for key, a in output.items()},
    )
    np.testing.assert_allclose(value, without, rtol=1e-6)
    for gradient, reference in zip(gradients[:2], gradients_without[:2], strict=True):
        np.testing.assert_array_equal(gradient[:, [1, 4]], 0)
        np.testing.assert_allclose(gradient[:, present], reference, rtol=1e-5, atol=1e-5)
    for gradient, reference in zip(gradients[2:], gradients_without[2:], strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("base,convention", VARIANTS)
def test_a_batch_without_supervision_is_exactly_zero(base, convention):
    target, output = batch()
    target["weight"][:] = 0
    target["keypoints"][:] = np.nan
    value, gradients = value_and_gradients(RLELoss(bent_flow(), base, convention), target, output)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("convention", ["paper", "official"])
def test_a_joint_supervised_in_part(convention):
    """z unsupervised (a 2D annotation in a 3D model): its mean, sigma and target do not matter."""
    target, output = batch(dims=3)
    target["weight"][..., 2] = 0
    loss = RLELoss(bent_flow(3), convention=convention)
    value, gradients = value_and_gradients(loss, target, output)
    assert np.all(gradients[0][..., 2] == 0) and np.all(gradients[1][..., 2] == 0)
    assert np.all(gradients[0][..., :2] != 0)
    for gradient in gradients[2:]:
        # The joint density counts where every coordinate is supervised, or once per coordinate.
        assert np.any(gradient != 0) == (convention == "official")
    target["keypoints"][..., 2] = np.nan
    output["mu"][..., 2] += 3
    output["log_sigma"][..., 2] -= 5
    assert loss(target, output) == value


@pytest.mark.parametrize("base,convention", VARIANTS)
def test_each_person_of_a_mix_is_as_among_its_kind_alone(base, convention):
    """Without depth as under the 2D loss, with depth as under the 3D loss."""
    target, output = mixed_batch()
    mixed = mixed_loss(base, convention, None)(target, output)
    loss_3d = RLELoss(bent_flow(3, 2), base, convention, None)
    loss_2d = RLELoss(bent_flow(2, 2), base, convention, None)
    np.testing.assert_allclose(
        mixed.numpy()[WITH_DEPTH],
        loss_3d(take(target, WITH_DEPTH), take(output, WITH_DEPTH)),
        rtol=1e-5,
    )
    planar = [
        {key: value[..., :2] for key, value in take(tensors, WITHOUT_DEPTH).items()}
        for tensors in (target, output)
    ]
    np.testing.assert_allclose(mixed.numpy()[WITHOUT_DEPTH], loss_2d(*planar), rtol=1e-5)
    assert mixed[5] == 0


@pytest.mark.parametrize("base,convention", VARIANTS)
def test_each_flow_learns_of_its_own_kind_alone(base, convention):
    target, output = mixed_batch()
    loss = mixed_loss(base, convention, "sum")
    mixed = gradients_by_flow(loss, target, output)
    for own, (kind, other) in enumerate([(WITH_DEPTH, WITHOUT_DEPTH), (WITHOUT_DEPTH, WITH_DEPTH)]):
        alone = gradients_by_flow(loss, take(target, kind), take(output, kind))[own]
        without = gradients_by_flow(loss, take(target, other), take(output, other))[own]
        for gradient, reference, absent in zip(mixed[own], alone, without, strict=True):
            assert np.any(gradient != 0)
            scale = np.abs(reference).max()
            np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-5 * scale)
            np.testing.assert_array_equal(absent, 0)


@pytest.mark.parametrize("base,convention", VARIANTS)
@pytest.mark.parametrize("depth", [np.nan, 1e30])
def test_the_depth_of_people_without_one_does_not_matter(base, convention, depth):
    target, output = mixed_batch()
    loss = mixed_loss(base, convention)
    results = []
    for target_z, mu_z, log_sigma_z in [(0, 0, 0), (depth, 1e30, -80)]:
        target["keypoints"][WITHOUT_DEPTH, :, 2] = target_z
        output["mu"][WITHOUT_DEPTH, :, 2] = mu_z
        output["log_sigma"][WITHOUT_DEPTH, :, 2] = log_sigma_z
        value, gradients = value_and_gradients(loss, target, output)
        assert np.isfinite(value)
        results.append([value, *gradients])
    for plain, spoilt in zip(*results, strict=True):
        np.testing.assert_array_equal(spoilt, plain)
    for gradient in results[0][1:3]:
        assert np.all(gradient[WITHOUT_DEPTH, :, 2] == 0)


@pytest.mark.parametrize("base,convention", VARIANTS)
def test_extremes_stay_finite(base, convention):
    """Through a network as well: errors to 1e6, log_sigma to -80, residuals to 1e6 and beyond."""
    magnitudes = [0, 1e-30, 1e-12, 1e-6, 1e-3, 1, 1e3, 1e6]
    log_sigmas = [-80, -40, -20.7, -13.8, -5, 0, 3]
    grid = np.array([(e, s) for e, s in itertools.product(magnitudes, log_sigmas)], "float32")
    error = np.stack([grid[:, 0], -grid[::-1, 0]], axis=-1)[None]
    log_sigma = np.stack([grid[:, 1], grid[:, 1]], axis=-1)[None]
    target = {"keypoints": error, "weight": np.ones_like(error)}
    loss = RLELoss(bent_flow(), base, convention)
    kernel = tf.Variable(tf.zeros((3, 2)))
    features = tf.random.stateless_normal((1, len(grid), 3), seed=[0, 1])
    with tf.GradientTape() as tape:
        mu = features @ kernel
        output = {"mu": mu, "log_sigma": log_sigma + features @ kernel}
        tape.watch(output)
        value = loss(target, output)
    flow = [v.value for v in loss.flow.trainable_variables]
    gradients = tape.gradient(value, [kernel, output["mu"], output["log_sigma"], *flow])
    for number in [value, *gradients]:
        assert np.all(np.isfinite(number))
    # Where a sigma is far too small its joint's are pushed up, so that training can come back.
    too_small = (np.abs(error) > 1e3 * np.exp(log_sigma)).any(axis=-1)
    assert too_small.sum() > 20
    assert np.all(gradients[2].numpy().sum(axis=-1)[too_small] < 0)


@pytest.mark.parametrize("base,convention", VARIANTS)
def test_the_bound_changes_nothing_inside(base, convention, monkeypatch):
    target, output = batch()
    output["log_sigma"] -= 6  # residuals to a few thousand
    loss = RLELoss(bent_flow(), base, convention)
    value, gradients = value_and_gradients(loss, target, output)
    monkeypatch.setattr("rle_tf.losses.MAX_RESIDUAL", 1e30)
    monkeypatch.setattr("rle_tf.losses.MIN_SIGMA", 1e-30)
    value_unbounded, gradients_unbounded = value_and_gradients(loss, target, output)
    assert value == value_unbounded
    for bounded, unbounded in zip(gradients, gradients_unbounded, strict=True):
        np.testing.assert_array_equal(bounded, unbounded)


@pytest.mark.parametrize("base,convention", VARIANTS)
def test_training_recovers_from_far_outside_the_bound(base, convention):
    """One joint, error 1, sigma e^-80: signed steps on log_sigma alone find a sensible sigma."""
    ones = tf.ones((1, 1, 2))
    loss = RLELoss(RealNVP(2, layers=0), base, convention)

    @tf.function
    def descend(log_sigma):
        for _ in tf.range(200):
            with tf.GradientTape() as tape:
                tape.watch(log_sigma)
                output = {"mu": 0 * ones, "log_sigma": log_sigma}
                value = loss({"keypoints": ones, "weight": ones}, output)
            log_sigma -= 0.5 * tf.sign(tape.gradient(value, log_sigma))
        return log_sigma

    assert np.all(np.abs(descend(-80 * ones)) < 1.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_outputs_are_computed_in_float32(dtype):
    target, output = batch()
    loss = RLELoss(bent_flow())
    half = {key: tf.cast(a, dtype) for key, a in output.items()}
    rounded = {key: tf.cast(a, "float32") for key, a in half.items()}
    value = loss(target, half)
    assert value.dtype == tf.float32
    assert value == loss(target, rounded)


def test_a_confident_hit_scores_below_zero():
    target, output = batch()
    output["mu"] = target["keypoints"]
    output["log_sigma"][:] = -6
    loss = RLELoss(RealNVP(2, layers=0))
    value, (_, grad_log_sigma) = value_and_gradients(loss, target, output)
    assert value < -20
    np.testing.assert_allclose(grad_log_sigma, 1 / 4, rtol=1e-6)  # mean over 4 people


def test_reduction_is_the_mean_over_samples_and_takes_sample_weights():
    target, output = batch()
    flow = bent_flow()
    each = RLELoss(flow, reduction=None)(target, output).numpy()
    np.testing.assert_allclose(RLELoss(flow)(target, output), each.mean(), rtol=1e-6)
    weighted = RLELoss(flow, reduction="sum")(target, output, sample_weight=[0.0, 1, 0, 2])
    np.testing.assert_allclose(weighted, each[1] + 2 * each[3], rtol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("convention", ["paper", "official"])
@pytest.mark.parametrize("mixed", [False, True])
def test_compiled_equals_eager(convention, jit_compile, mixed):
    target, output = mixed_batch() if mixed else batch()
    target["weight"][0, 1] = 0
    target["keypoints"][0, 1] = np.nan
    if mixed:
        loss = mixed_loss(convention=convention)
    else:
        loss = RLELoss(bent_flow(layers=2), convention=convention)

    @tf.function(jit_compile=jit_compile)
    def compiled(target, output):
        with tf.GradientTape() as tape:
            tape.watch(output)
            value = loss(target, output)
        variables = [variable.value for variable in flow_variables(loss)]
        return value, tape.gradient(value, [output["mu"], output["log_sigma"], *variables])

    value, gradients = value_and_gradients(loss, target, output)
    compiled_value, compiled_gradients = compiled(
        {key: tf.constant(a) for key, a in target.items()},
        {key: tf.constant(a) for key, a in output.items()},
    )
    np.testing.assert_allclose(compiled_value, value, rtol=1e-4)
    for gradient, reference in zip(compiled_gradients, gradients, strict=True):
        assert np.any(reference != 0)
        np.testing.assert_allclose(gradient, reference, rtol=1e-3, atol=1e-3)


def test_both_flows_of_a_mix_serialise():
    loss = RLELoss(RealNVP(3, layers=1, hidden=8), flow_2d=RealNVP(2, layers=2, hidden=4))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    for mine, other in zip(flow_variables(loss), flow_variables(again), strict=True):
        other.assign(mine)
    target, output = mixed_batch()
    assert again(target, output) == loss(target, output)


def test_a_loss_saved_before_there_was_a_second_flow():
    config = RLELoss(RealNVP(2, layers=1, hidden=8)).get_config()
    assert config.pop("flow_2d") is None
    assert RLELoss.from_config(config).flow_2d is None


def test_rle_serialises_with_its_flow():
    loss = RLELoss(
        RealNVP(3, layers=2, hidden=8), "gaussian", "official", reduction="sum", name="mine"
    )
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert isinstance(again, RLELoss)
    assert again.get_config() == loss.get_config()
    assert (again.base, again.convention) == ("gaussian", "official")
    assert (again.flow.dims, again.flow.hidden, len(again.flow.scale_nets)) == (3, 8, 2)
    for mine, other in zip(loss.flow.variables, again.flow.variables, strict=True):
        other.assign(mine)
    target, output = batch(dims=3)
    assert again(target, output) == loss(target, output)


@pytest.mark.parametrize(
    "loss",
    [
        L1Loss("sum", name="mine"),
        L2Loss("sum", name="mine"),
        DensityLoss("gaussian", reduction="sum", name="mine"),
    ],
)
def test_losses_without_a_flow_serialise(loss):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    assert again.get_config()["name"] == "mine" and again.get_config()["reduction"] == "sum"


@pytest.mark.parametrize(
    "make",
    [
        lambda: L1Loss("sum"),
        lambda: L2Loss("sum"),
        lambda: DensityLoss(reduction="sum"),
        lambda: mixed_loss(reduction="sum"),
    ],
)
def test_what_is_known_is_passed_over_whatever_its_weight(make):
    """A batch made by hand: weights of 1 for the root's depth, too, and depths that miss 0."""
    target, output = batch(dims=3)
    output["mu"][:, 0, 2] = 0
    output["log_sigma"][:, 0, 2] = KNOWN_LOG_SIGMA
    expected = None
    for depth, weight in [(0, 0), (0, 1), (0.005, 1), (np.nan, 1)]:
        target["keypoints"][:, 0, 2], target["weight"][:, 0, 2] = depth, weight
        found = value_and_gradients(make(), target, output)
        assert np.isfinite(found[0]) and np.abs(found[0]) < 1e4
        assert not found[1][0][:, 0, 2].any() and not found[1][1][:, 0, 2].any()
        expected = expected or found
        for value, first in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
            np.testing.assert_array_equal(value, first)


@pytest.mark.parametrize("convention", ["paper", "official"])
def test_the_flow_sees_a_joint_of_which_one_coordinate_is_known(convention):
    """Else the root's sigma would not be in units of the flow's density."""
    target, output = batch(dims=3)
    output["mu"][:, 0, 2] = 0
    output["log_sigma"][:, 0, 2] = KNOWN_LOG_SIGMA
    target["weight"][:, 1:, :2] = 0  # of the others the depth alone
    of_flow, of_flow_2d = gradients_by_flow(mixed_loss(convention=convention), target, output)
    assert any(gradient.any() for gradient in of_flow)
    assert not any(gradient.any() for gradient in of_flow_2d)


def test_a_joint_that_is_known_altogether_adds_nothing():
    """A lifter's root."""
    target, output = batch(dims=3)
    loss = mixed_loss(reduction=None)
    without = {key: value[:, 1:] for key, value in output.items()}
    expected = loss({key: value[:, 1:] for key, value in target.items()}, without)
    output["log_sigma"][:, 0] = KNOWN_LOG_SIGMA
    np.testing.assert_allclose(loss(target, output), expected, rtol=1e-6)


def test_unknown_options_are_refused_with_the_valid_ones():
    with pytest.raises(ModelError, match="base is 'laplacian', expected one of laplace, gaussian"):
        RLELoss(RealNVP(2, layers=0), base="laplacian")
    with pytest.raises(ModelError, match="convention is 'mmdet', expected one of paper, official"):
        RLELoss(RealNVP(2, layers=0), convention="mmdet")


@pytest.mark.parametrize(("dims", "dims_2d"), [(3, 3), (2, 2), (2, 3)])
def test_flows_of_other_dimensions_are_refused(dims, dims_2d):
    found = f"flow has {dims} dimensions and flow_2d {dims_2d}, expected 3 and 2"
    with pytest.raises(ModelError, match=found):
        RLELoss(RealNVP(dims, layers=0), flow_2d=RealNVP(dims_2d, layers=0))


def test_shapes_that_do_not_fit_are_refused():
    target, output = batch()
    with pytest.raises(ModelError, match=r"\(4, 5, 2\), expected \(B, K, 3\) for a flow of 3"):
        RLELoss(RealNVP(3, layers=0))(target, output)
    loss = RLELoss(RealNVP(2, layers=0))
    with pytest.raises(ModelError, match=r"'weight' has shape \(4, 5, 1\).*\(4, 5, 2\)"):
        loss({**target, "weight": target["weight"][..., :1]}, output)
    with pytest.raises(ModelError, match=r"'keypoints' has shape \(4, 1, 2\).*\(4, 5, 2\)"):
        L1Loss()({**target, "keypoints": target["keypoints"][:, :1]}, output)
    with pytest.raises(ModelError, match=r"'log_sigma' has shape \(4, 5, 1\).*\(4, 5, 2\)"):
        loss(target, {**output, "log_sigma": output["log_sigma"][..., :1]})


# ---- maps


def test_maps_learn_where_the_joint_is():
    """Scores that are the log of the wanted distribution have its entropy as loss, others more."""
    target = {
        "keypoints": np.array([[[0.1, -0.3], [-0.5 + 1 / 16, 0.25]]], "float32"),
        "weight": np.ones((1, 2, 2), "float32"),
    }
    columns, rows = np.arange(8), np.arange(4)  # cells of 1/8 by 1/4
    scores, entropy = np.zeros((1, 2, 4, 8), "float32"), 0.0
    for joint, (x, y) in enumerate(target["keypoints"][0]):
        place = ((x + 0.5) * 8 - 0.5, (y + 0.5) * 4 - 0.5)
        log = -0.5 * ((columns - place[0]) ** 2 + (rows[:, None] - place[1]) ** 2)
        scores[0, joint] = log + 7  # a constant is nothing
        p = np.exp(log) / np.exp(log).sum()
        entropy -= (p * np.log(p)).sum()
        assert np.unravel_index(p.argmax(), p.shape) == (round(place[1]), round(place[0]))
    np.testing.assert_allclose(MapLoss()(target, scores), entropy, rtol=1e-5)
    assert MapLoss()(target, scores[:, :, ::-1].copy()) > entropy + 0.5
    even = float(MapLoss()(target, np.zeros_like(scores)))
    assert even == pytest.approx(2 * np.log(32), rel=1e-5)


def test_maps_of_joints_that_no_cell_shows_count_nothing():
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-0.4, 0.4, (2, 4, 3)).astype("float32")
    weight = np.ones_like(keypoints)
    scores = tf.Variable(rng.normal(size=(2, 4, 4, 4)).astype("float32"))
    loss = MapLoss(None)
    whole = loss({"keypoints": keypoints, "weight": weight}, scores).numpy()
    keypoints[0, 0, 0], weight[0, 1], keypoints[0, 2, 1] = 0.51, 0, np.nan
    weight[0, 2], keypoints[0, 1] = 0, np.nan
    with tf.GradientTape() as tape:
        value = loss({"keypoints": keypoints, "weight": weight}, scores)
    gradient = tape.gradient(value, scores).numpy()
    np.testing.assert_allclose(value[1], whole[1], rtol=1e-6)
    assert 0 < value[0] < whole[0]
    assert (gradient[0, :3] == 0).all() and (np.abs(gradient[0, 3]) > 0).all()
    assert np.isfinite(gradient).all()
    weight[1, :, 2] = 0  # a depth that is not known is no matter
    again = loss({"keypoints": keypoints, "weight": weight}, scores).numpy()
    np.testing.assert_allclose(again[1], whole[1], rtol=1e-6)


def heatmaps(keypoints, width: int, height: int, sigma: float) -> np.ndarray:
    """(B, K, h, w) normal bumps at the joints, by a loop over cells."""
    maps = np.zeros((*keypoints.shape[:2], height, width))
    for (row, joint), _ in np.ndenumerate(keypoints[..., 0]):
        x, y = (keypoints[row, joint] + 0.5) * (width, height) - 0.5
        for j in range(height):
            for i in range(width):
                distance = (i - x) ** 2 + (j - y) ** 2
                maps[row, joint, j, i] = np.exp(-distance / (2 * sigma**2))
    return maps


def output_of(scores) -> dict:
    nothing = tf.zeros((*scores.shape[:2], 2))
    return {"mu": nothing, "log_sigma": nothing - 0.1, "scores": scores}


def test_heatmaps_are_compared_cell_by_cell():
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-0.5, 0.5, (2, 3, 2)).astype("float32")
    weight = rng.uniform(0.5, 2, (2, 3, 1)).repeat(2, axis=-1).astype("float32")
    scores = rng.normal(size=(2, 3, 6, 4)).astype("float32")
    target = {"keypoints": keypoints, "weight": weight}
    wanted = heatmaps(keypoints, 4, 6, 1.5)
    loss = HeatmapLoss(1.5, reduction=None)
    by_hand = 0.5 * (weight[..., 0] * np.square(scores - wanted).mean(axis=(2, 3))).mean(axis=1)
    np.testing.assert_allclose(loss(target, output_of(scores)), by_hand, rtol=1e-5)
    np.testing.assert_allclose(loss(target, output_of(wanted.astype("float32"))), 0, atol=1e-12)


def test_heatmaps_of_joints_that_no_cell_shows_count_nothing():
    rng = np.random.default_rng(1)
    keypoints = np.float32([[[0.1, 0.2], [np.nan, 0.1], [5.0, 0.0], [0.6, 0.0]]])
    weight = np.float32([[[1, 1], [0, 0], [1, 1], [1, 1]]])
    scores = tf.Variable(rng.normal(size=(1, 4, 8, 8)).astype("float32"))
    with tf.GradientTape() as tape:
        value = HeatmapLoss()({"keypoints": keypoints, "weight": weight}, output_of(scores))
    gradient = tape.gradient(value, scores).numpy()
    assert np.isfinite(value) and (gradient[0, 1:3] == 0).all()
    # Its bump reaches in from outside.
    assert (np.abs(gradient[0, [0, 3]]).max(axis=(1, 2)) > 0).all()


def test_what_heatmaps_refuse():
    with pytest.raises(ModelError, match="sigma_cells is 0, expected more than 0"):
        HeatmapLoss(0)
    deep = {key: np.ones((1, 2, 3), "float32") for key in ("keypoints", "weight")}
    nothing = tf.zeros((1, 2, 3))
    with pytest.raises(ModelError, match=r"expected \(B, K, 2\): maps have no depth"):
        HeatmapLoss()(deep, {"mu": nothing, "log_sigma": nothing, "scores": tf.zeros((1, 2, 4, 4))})


# ---- the flow alone


@pytest.mark.parametrize("dims", [2, 3])
def test_direct_likelihood_is_rle_without_q(dims):
    target, output = batch(dims=dims)
    target["weight"] = np.random.default_rng(0).uniform(0.5, 2, target["weight"].shape)
    flow = bent_flow(dims)
    residual = (target["keypoints"] - output["mu"]) * np.exp(-output["log_sigma"])
    of_q = (target["weight"] * (np.abs(residual) + np.log(2))).sum(axis=(1, 2))
    np.testing.assert_allclose(
        DirectLoss(flow, reduction=None)(target, output),
        RLELoss(flow, reduction=None)(target, output) - of_q,
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_a_flow_that_bends_places_is_tfp_s_transformed_density(dims):
    import tensorflow_probability as tfp

    target, output = batch(dims=dims)
    flow = bent_flow(dims)
    normal = tfp.distributions.MultivariateNormalDiag(output["mu"], np.exp(output["log_sigma"]))
    bent = tfp.distributions.TransformedDistribution(normal, flow.bijector)
    wanted = -bent.log_prob(target["keypoints"]).numpy().sum(axis=1)
    loss = DirectLoss(flow, reparameterised=False, reduction=None)
    np.testing.assert_allclose(loss(target, output), wanted, rtol=1e-4)
    assert np.isnan(loss.spread(dims)).all()


def test_the_spread_of_a_flow_alone_is_that_of_its_draws():
    loss = DirectLoss(bent_flow())
    of_flow = np.quantile(np.abs(bent_flow().sample(100_000, 5)), 0.6827, axis=0)
    np.testing.assert_allclose(loss.spread(2), of_flow, rtol=0.03)
    assert np.isfinite(loss.draws(2)).all()


@pytest.mark.parametrize("reparameterised", [True, False])
def test_the_flow_alone_passes_over_what_is_not_supervised_and_stays_finite(reparameterised):
    loss = DirectLoss(bent_flow(), reparameterised, reduction=None)
    target, output = batch()
    whole = loss(target, output).numpy()
    part = {key: value[:, :3] for key, value in target.items()}
    of_part = loss(part, {key: value[:, :3] for key, value in output.items()}).numpy()
    target["weight"][0, 3:] = 0
    target["keypoints"][0, 3:] = np.nan
    value, gradients = value_and_gradients(loss, target, output)
    np.testing.assert_allclose(value[0], of_part[0], rtol=1e-5)
    np.testing.assert_allclose(value[1:], whole[1:], rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][0, 3:] == 0).all() and (gradients[1][0, 3:] == 0).all()
    # Of a joint that is supervised in part nothing is left, sigma neither.
    target["weight"][0, :3, 0] = 0
    value, gradients = value_and_gradients(loss, target, output)
    assert value[0] == 0 and all((gradient[0] == 0).all() for gradient in gradients[:2])
    target, output = batch()
    output["mu"] += 1e6
    output["log_sigma"][:] = -80
    value, gradients = value_and_gradients(loss, target, output)
    assert np.isfinite(value).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("reparameterised", [True, False])
def test_direct_likelihood_serialises_with_its_flow(reparameterised):
    loss = DirectLoss(RealNVP(2, 2), reparameterised)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    again.flow.set_weights(loss.flow.get_weights())
    target, output = batch()
    assert again.reparameterised == reparameterised
    np.testing.assert_array_equal(again(target, output), loss(target, output))
    with pytest.raises(ModelError, match="for a flow of 3 dimensions"):
        DirectLoss(bent_flow(3))(target, output)


@pytest.mark.parametrize("make", [RLELoss, DirectLoss])
def test_a_flow_for_each_joint_sees_that_joint_alone(make):
    keras.utils.set_random_seed(3)
    flow = RealNVP(2, 2, hidden=8, joints=5)
    for variable in flow.variables:
        variable.assign_add(0.1 * keras.random.normal(variable.shape))
    target, output = batch()
    target["weight"][:, 1] = 0
    _, (_, _, *gradients) = value_and_gradients(make(flow), target, output)
    assert all((g[1] == 0).all() and np.abs(g[[0, 2, 3, 4]]).max() > 0 for g in gradients)
    of_one = []
    for joint in (0, 2, 3, 4):
        alone = RealNVP(2, 2, hidden=8)
        alone.set_weights([value[joint] for value in flow.get_weights()])
        one = [{key: v[:, [joint]] for key, v in each.items()} for each in (target, output)]
        of_one.append(make(alone, reduction=None)(*one))
    whole = make(flow, reduction=None)(target, output)
    np.testing.assert_allclose(whole, np.sum(of_one, axis=0), rtol=1e-4)
