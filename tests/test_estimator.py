"""The estimator: a Keras model like any other, on one device and on two."""

import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf.charts import density_chart
from rle_tf.config import TrainConfig
from rle_tf.distribution import make_strategy
from rle_tf.errors import ConfigError, ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.flow import RealNVP
from rle_tf.losses import HeatmapLoss, L1Loss, MapLoss, RLELoss
from rle_tf.models.regressor import build_regressor
from rle_tf.optimization import build_optimizer
from rle_tf.skeletons import H36M18, LSP14

JOINTS = len(LSP14.joints)


def tiny_backbone(regularizer=None) -> keras.Model:
    """(B, 32, 32, 3) -> (B, 8, 8, 8), without batch statistics: replicas do not share those."""
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(
        8, 3, 4, "same", activation="relu", kernel_regularizer=regularizer, name="conv"
    )(image)
    return keras.Model(image, x, name="backbone")


def tiny_estimator(loss=None, regularizer=None) -> PoseEstimator:
    keras.utils.set_random_seed(1)
    regressor = build_regressor(tiny_backbone(regularizer), LSP14, 2, (32, 32))
    estimator = PoseEstimator(regressor, loss or RLELoss(RealNVP(2, layers=2, hidden=8)))
    estimator.compile(keras.optimizers.Adam(1e-2))
    return estimator


def test_maps_are_taught_and_leave_nothing_behind(tmp_path):
    regressor = build_regressor(tiny_backbone(), LSP14, 2, (32, 32), head="soft_argmax")
    loss = RLELoss(RealNVP(2, layers=2, hidden=8))
    image, target = samples(8)
    plain, taught = (
        PoseEstimator(regressor, loss, map_weight=map_weight) for map_weight in (0.0, 2.0)
    )
    for estimator in (plain, taught):
        estimator.compile(keras.optimizers.Adam(1e-2))
    assert len(taught.trainable_variables) == len(plain.trainable_variables)
    scores = keras.Model(regressor.input, regressor.get_layer("score_maps").output)(image)
    maps = MapLoss()(target, tf.transpose(scores, (0, 3, 1, 2)))
    added = (
        taught.evaluate(image, target, verbose=0)[0] - plain.evaluate(image, target, verbose=0)[0]
    )
    assert added == pytest.approx(2 * float(maps), rel=1e-3)
    before = float(maps)
    taught.fit(image, target, epochs=20, verbose=0)
    scores = keras.Model(regressor.input, regressor.get_layer("score_maps").output)(image)
    assert float(MapLoss()(target, tf.transpose(scores, (0, 3, 1, 2)))) < before
    assert set(taught.predict(image, verbose=0)) == {"mu", "log_sigma"}
    taught.save(tmp_path / "taught.keras")
    again = keras.saving.load_model(tmp_path / "taught.keras")
    assert again.map_weight == 2
    np.testing.assert_allclose(
        again.evaluate(image, target, verbose=0)[0],
        taught.evaluate(image, target, verbose=0)[0],
        rtol=1e-5,
    )


def test_a_regressor_without_maps_cannot_be_taught_by_them():
    regressor = build_regressor(tiny_backbone(), LSP14, 2, (32, 32))
    with pytest.raises(ModelError, match="has no maps, which HeatmapLoss and a map_weight teach"):
        PoseEstimator(regressor, L1Loss(), map_weight=1.0)


def test_heatmaps_learn_where_joints_are(tmp_path):
    """All joints are at a bright spot."""
    keras.utils.set_random_seed(2)
    features = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 5, 2, "same", activation="relu")]
    )
    regressor = build_regressor(features, LSP14, 2, (32, 32), head="heatmap", deconvolutions=1)
    estimator = PoseEstimator(regressor, HeatmapLoss(1.0))
    estimator.compile(keras.optimizers.Adam(1e-2))
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.1, (64, 32, 32, 3)).astype("float32")
    places = rng.integers(4, 28, (64, 2))
    for row, (x, y) in enumerate(places):
        image[row, y - 1 : y + 2, x - 1 : x + 2] = 1
    keypoints = np.repeat(np.float32(places / 32 - 0.5 + 0.5 / 32)[:, None], JOINTS, axis=1)
    target = {"keypoints": keypoints, "weight": np.ones_like(keypoints)}
    estimator.fit(image, target, batch_size=8, epochs=10, verbose=0)
    scores = estimator.evaluate(image, target, verbose=0, return_dict=True)
    assert scores["pck"] > 0.9 and scores["sigma"] < 0.5
    assert np.isnan(estimator.spread()).all()
    assert set(estimator.predict(image, verbose=0)) == {"mu", "log_sigma"}
    estimator.save(tmp_path / "heatmaps.keras")
    again = keras.saving.load_model(tmp_path / "heatmaps.keras")
    np.testing.assert_allclose(
        again.evaluate(image, target, verbose=0), estimator.evaluate(image, target, verbose=0)
    )


def test_joints_can_count_more_than_others(tmp_path):
    image, target = samples(8)
    weights = np.linspace(0, 2, JOINTS)
    regressor = build_regressor(tiny_backbone(), LSP14, 2, (32, 32))
    plain, weighted = (
        PoseEstimator(regressor, L1Loss(), joint_weights=each) for each in (None, weights)
    )
    by_hand = {**target, "weight": target["weight"] * np.float32(weights)[:, None]}
    for estimator in (plain, weighted):
        estimator.compile()
    assert weighted.evaluate(image, target, verbose=0)[0] == pytest.approx(
        plain.evaluate(image, by_hand, verbose=0)[0], rel=1e-5
    )
    weighted.save(tmp_path / "weighted.keras")
    again = keras.saving.load_model(tmp_path / "weighted.keras")
    np.testing.assert_allclose(again.joint_weights, weights)
    with pytest.raises(
        ModelError, match=f"joint_weights: found 2; expected one for each of the {JOINTS}"
    ):
        PoseEstimator(regressor, L1Loss(), joint_weights=[1.0, 2.0])


def mixed_estimator(loss=None, regularizer=None) -> PoseEstimator:
    """As `tiny_estimator`, for people in 3D and people without depths."""
    keras.utils.set_random_seed(1)
    regressor = build_regressor(tiny_backbone(regularizer), H36M18, 3, (32, 32))
    flow, flow_2d = (RealNVP(dims, layers=1, hidden=8) for dims in (3, 2))
    estimator = PoseEstimator(regressor, loss or RLELoss(flow, flow_2d=flow_2d))
    estimator.compile(keras.optimizers.Adam(1e-2))
    return estimator


def samples(count: int, seed: int = 0):
    """Images and targets that can be learned; a fifth of the joints is not labelled."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(count, 32, 32, 3)).astype("float32")
    centre = image.mean(axis=(1, 2))[:, None, :2] * 5
    keypoints = (centre + rng.normal(scale=0.1, size=(count, JOINTS, 2))).astype("float32")
    weight = (rng.uniform(size=(count, JOINTS, 1)) > 0.2).astype("float32").repeat(2, axis=-1)
    return image, {"keypoints": keypoints, "weight": weight}


def batches(count: int = 16, batch_size: int = 4) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(samples(count)).batch(batch_size)


def mixed_batches(count: int = 16, batch_size: int = 4) -> tf.data.Dataset:
    """The first half of each batch in 3D, the second without depths."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(count, 32, 32, 3)).astype("float32")
    centre = image.mean(axis=(1, 2))[:, None] * 5
    shape = (count, len(H36M18.joints), 3)
    keypoints = (centre + rng.normal(scale=0.1, size=shape)).astype("float32")
    weight = (rng.uniform(size=(*shape[:2], 1)) > 0.2).astype("float32").repeat(3, axis=-1)
    weight[:, H36M18.root, 2] = 0
    weight[np.arange(count) % batch_size >= batch_size // 2, :, 2] = 0
    keypoints[weight == 0] = np.nan
    target = {"keypoints": keypoints, "weight": weight}
    return tf.data.Dataset.from_tensor_slices((image, target)).batch(batch_size)


MODELS = pytest.mark.parametrize(
    ("make", "make_batches"),
    [(tiny_estimator, batches), (mixed_estimator, mixed_batches)],
    ids=["planar", "mixed"],
)


def flows_of(estimator: PoseEstimator) -> list[RealNVP]:
    return [flow for flow in (estimator.flow, estimator.flow_2d) if flow is not None]


def values(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@MODELS
def test_fit_moves_every_variable_of_regressor_and_flows(make, make_batches):
    estimator = make()
    trained = {id(variable) for variable in estimator.trainable_variables}
    assert len(flows_of(estimator)) == (2 if make is mixed_estimator else 1)
    for flow in flows_of(estimator):
        assert len(flow.trainable_variables) == len(flow.scale_nets) * 2 * 6
        assert {id(variable) for variable in flow.variables} <= trained
    before = values(estimator.trainable_variables)
    history = estimator.fit(make_batches(), shuffle=False, epochs=3, verbose=0).history
    for variable, value in zip(estimator.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != value), variable.path
    assert history["loss"][-1] < history["loss"][0]
    assert set(history) == {"loss", "pck", "sigma"}


def test_predict_and_evaluate():
    estimator = tiny_estimator()
    image, target = samples(6)
    found = estimator.predict(image, verbose=0)
    expected = estimator.regressor(image)
    np.testing.assert_allclose(found["mu"], expected["mu"], atol=1e-6)
    assert found["log_sigma"].shape == (6, JOINTS, 2)
    scores = estimator.evaluate(batches(6, 6), return_dict=True, verbose=0)
    loss = RLELoss(estimator.flow, reduction=None)(target, expected)
    np.testing.assert_allclose(scores["loss"], np.mean(loss), rtol=1e-5)


@MODELS
def test_a_saved_estimator_goes_on_where_it_was(tmp_path, make, make_batches):
    estimator = make()
    estimator.fit(make_batches(), shuffle=False, epochs=2, verbose=0)
    estimator.save(tmp_path / "estimator.keras")
    loaded = keras.saving.load_model(tmp_path / "estimator.keras")

    assert isinstance(loaded, PoseEstimator) and isinstance(loaded.loss, RLELoss)
    assert loaded.loss.flow is loaded.flow and loaded.loss.flow_2d is loaded.flow_2d
    assert len(flows_of(loaded)) == len(flows_of(estimator))
    assert_equal(values(loaded.variables), values(estimator.variables))
    assert_equal(values(loaded.optimizer.variables), values(estimator.optimizer.variables))
    assert int(loaded.optimizer.iterations.numpy()) == 8
    for model in (estimator, loaded):
        model.fit(make_batches(), shuffle=False, epochs=1, verbose=0)
    assert_equal(values(loaded.trainable_variables), values(estimator.trainable_variables))


def test_compile_arguments_are_saved(tmp_path):
    estimator = tiny_estimator()
    estimator.compile("sgd", steps_per_execution=2, run_eagerly=True)
    estimator.save(tmp_path / "estimator.keras")
    loaded = keras.saving.load_model(tmp_path / "estimator.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.SGD)
    assert (loaded.steps_per_execution, loaded.run_eagerly, loaded.jit_compile) == (2, True, False)


@pytest.fixture
def constant_estimator():
    """Says (0, 0) with sigma 0.5 of every joint."""
    image = keras.Input((2, 2, 3))
    zeros = keras.layers.Reshape((3, 2))(
        keras.layers.Dense(6, kernel_initializer="zeros")(keras.layers.Flatten()(image))
    )
    log_sigma = keras.layers.Activation("log_sigmoid")(zeros)
    regressor = keras.Model(image, {"mu": zeros, "log_sigma": log_sigma})
    estimator = PoseEstimator(regressor, L1Loss())
    estimator.compile("sgd")
    return estimator


def test_metrics_by_hand(constant_estimator):
    keypoints = np.array(
        [
            [[0.03, 0.03], [0.03, 0.05], [np.nan, np.nan]],  # 4.2 % and 5.8 % off
            [[0.2, 9.0], [0.0, 0.0], [0.0, -0.04]],  # y not labelled: 20 % off in x
        ]
    )
    weight = np.ones((2, 3, 2))
    weight[0, 2] = 0
    weight[1, 0, 1] = 0
    image = np.zeros((2, 2, 2, 3))
    # float64, as NumPy makes it.
    dataset = tf.data.Dataset.from_tensors((image, {"keypoints": keypoints, "weight": weight}))
    scores = constant_estimator.evaluate(dataset, return_dict=True, verbose=0)
    assert scores["loss"] == pytest.approx((0.06 + 0.08 + 0.2 + 0.04) / 2)
    assert scores["pck"] == pytest.approx(3 / 5)
    assert scores["sigma"] == pytest.approx(0.5)


def test_metrics_are_means_over_joints_not_batches(constant_estimator):
    keypoints = np.zeros((2, 3, 2), "float32")
    keypoints[1] = 1
    weight = np.ones_like(keypoints)
    weight[1, 1:] = 0
    target = {"keypoints": keypoints, "weight": weight}
    dataset = tf.data.Dataset.from_tensor_slices((np.zeros((2, 2, 2, 3), "float32"), target))
    scores = constant_estimator.evaluate(dataset.batch(1), return_dict=True, verbose=0)
    assert scores["pck"] == pytest.approx(3 / 4)


def test_targets_of_weight_zero_do_not_matter():
    image, target = samples(8)
    spoilt = {**target, "keypoints": np.where(target["weight"] > 0, target["keypoints"], np.nan)}
    results = []
    for one in (target, spoilt):
        estimator = tiny_estimator()
        estimator.compile("adam", run_eagerly=True)
        history = estimator.fit(image, one, epochs=1, batch_size=4, shuffle=False, verbose=0)
        results.append((history.history, values(estimator.trainable_variables)))
    assert results[0][0] == results[1][0]
    assert_equal(results[0][1], results[1][1])


def test_regularisers_of_the_backbone_count():
    plain, regularised = tiny_estimator(), tiny_estimator(regularizer=keras.regularizers.L2(10.0))
    kernel = plain.regressor.get_layer("backbone").get_layer("conv").kernel.numpy()
    losses = [
        model.evaluate(batches(), return_dict=True, verbose=0)["loss"]
        for model in (plain, regularised)
    ]
    assert losses[1] - losses[0] == pytest.approx(10 * np.square(kernel).sum(), rel=1e-5)


def test_l1_loss_trains_without_flow():
    estimator = tiny_estimator(L1Loss())
    assert estimator.flow is None
    history = estimator.fit(batches(), shuffle=False, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_regressors_without_the_two_outputs_are_refused():
    image = keras.Input((8, 8, 3), name="image")
    dense = keras.layers.Dense(2)(image)

    class Subclassed(keras.Model):
        def call(self, image):
            return {"mu": image, "log_sigma": image}

    for model, found in [
        (keras.Model(image, dense, name="plain"), "regressor 'plain' has outputs without names"),
        (keras.Model(image, {"mu": dense}, name="half"), r"'half' has outputs \['mu'\]"),
        (Subclassed(name="loose"), "'loose' has outputs without names; expected a functional"),
    ]:
        with pytest.raises(ModelError, match=found):
            PoseEstimator(model, L1Loss())


SCRIPT = """
import keras, numpy as np, tensorflow as tf
from rle_tf import COCO17, PoseEstimator, RealNVP, RLELoss, build_regressor

images = np.random.uniform(size=(16, 64, 64, 3)).astype("float32")
keypoints = np.random.uniform(-0.5, 0.5, size=(16, 17, 2)).astype("float32")
target = {"keypoints": keypoints, "weight": np.ones_like(keypoints)}
data = tf.data.Dataset.from_tensor_slices((images, target)).batch(8)

regressor = build_regressor(
    "mobilenet", COCO17, dims=2, image_size=(64, 64), output_layer="conv_pw_2_relu"
)
estimator = PoseEstimator(regressor, RLELoss(RealNVP(2, layers=2)))
estimator.compile("adam")
history = estimator.fit(data, epochs=2, shuffle=False).history
pose = regressor.predict(images[:1], verbose=0)
estimator.save("estimator.keras")
"""


def test_a_script_of_a_user(tmp_path, monkeypatch):
    assert len(SCRIPT.strip().splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(textwrap.dedent(SCRIPT), "script.py", "exec"), names)
    assert np.isfinite([names["history"][key] for key in ("loss", "pck", "sigma")]).all()
    assert names["pose"]["mu"].shape == names["pose"]["log_sigma"].shape == (1, 17, 2)
    assert (tmp_path / "estimator.keras").is_file()


@pytest.fixture
def bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_loss_and_flow_stay_float32_under_mixed_precision(bfloat16):
    estimator = tiny_estimator()
    backbone = estimator.regressor.get_layer("backbone")
    assert backbone(np.zeros((1, 32, 32, 3))).dtype == tf.bfloat16
    image, target = samples(4)
    output = estimator(image)
    assert output["mu"].dtype == output["log_sigma"].dtype == tf.float32
    assert estimator.compute_loss(image, target, output).dtype == tf.float32
    assert {variable.dtype for variable in estimator.trainable_variables} == {"float32"}
    history = estimator.fit(batches(), shuffle=False, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


class StepLosses(keras.callbacks.Callback):
    """The running mean of the loss after each step."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def train_on(strategy, make, make_batches):
    """Five steps of 8 samples: losses of the steps, scores after them, weights."""
    with strategy.scope():
        keras.utils.set_random_seed(0)
        if make is mixed_estimator:
            flow, flow_2d = (RealNVP(dims, layers=1, hidden=8) for dims in (3, 2))
        else:
            flow, flow_2d = RealNVP(2, layers=1, hidden=8), None
        estimator = make(RLELoss(flow, flow_2d=flow_2d), keras.regularizers.L2(1e-3))
        # Without Adam's division the weights tell the size of the gradients too.
        estimator.compile(keras.optimizers.SGD(1e-2, momentum=0.9))
    steps = StepLosses()
    estimator.fit(make_batches(40, 8), shuffle=False, verbose=0, callbacks=[steps])
    scores = estimator.evaluate(make_batches(10, 4), return_dict=True, verbose=0)
    return estimator, steps.losses, scores


@MODELS
def test_two_replicas_do_what_one_device_does(make, make_batches):
    """In a mix, one replica has all the people with depths and the other those without."""
    single, losses, scores = train_on(make_strategy("none", 8), make, make_batches)
    strategy = make_strategy("mirrored", 8)
    assert strategy.num_replicas_in_sync == 2
    mirrored, mirrored_losses, mirrored_scores = train_on(strategy, make, make_batches)

    assert len(losses) == 5
    np.testing.assert_allclose(mirrored_losses, losses, rtol=1e-5)
    assert mirrored_scores == pytest.approx(scores, rel=1e-5)
    # Momentum is the sum of gradients, those of the flow among them, without the rounding of the
    # weights that they change.
    variables = [[*model.variables, *model.optimizer.variables] for model in (mirrored, single)]
    momenta = [v for v in variables[0] if "scale_0_dense_2_kernel_momentum" in v.path]
    assert len(momenta) == len(flows_of(single))
    for a, b in zip(*variables, strict=True):
        scale = np.abs(b.numpy()).max()
        assert scale > 0, b.path
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5 * scale, err_msg=b.path)


def test_one_strategy_serves_models_of_different_shapes():
    """Collective operations of two strategies of one process would be confused."""
    assert make_strategy("mirrored", 8) is make_strategy("mirrored", 4)


def test_a_batch_that_replicas_cannot_share():
    with pytest.raises(ConfigError, match=r"batch_size: found 9; expected a multiple of the 2"):
        make_strategy("mirrored", 9)
    with pytest.raises(
        ConfigError, match=r"found 8; .* the 2 replicas .* times train.accumulate, 8"
    ):
        make_strategy("mirrored", 8, 8)
    assert make_strategy("none", 9).num_replicas_in_sync == 1


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (None, "found 'multi_worker', but no cluster: neither TF_CONFIG nor SLURM's variables"),
        ("{", "and no cluster came of it: .*; TF_CONFIG is '{'"),
        (
            '{"task": {"type": "worker", "index": 0}}',
            "in a cluster of {}; expected a chief or work",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}',
            "a task of type 'evaluator' in a cluster of .*; expected a chief or worker",
        ),
    ],
)
def test_a_cluster_that_is_none(monkeypatch, cluster, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if cluster:
        monkeypatch.setenv("TF_CONFIG", cluster)
    with pytest.raises(ConfigError, match=message):
        make_strategy("multi_worker", 8)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (np.zeros((4, JOINTS, 2), "float32"), "found a "),
        ({"keypoints": np.zeros((4, JOINTS, 2), "float32")}, r"found \['keypoints'\]"),
    ],
)
def test_a_target_of_another_form_is_named(target, found):
    with pytest.raises(ModelError, match=found + ".*; expected a dict of 'keypoints' and 'weight'"):
        tiny_estimator().fit(samples(4)[0], target, verbose=0)


def test_a_weight_may_be_a_mask():
    image, target = samples(4)
    estimator = tiny_estimator()
    wanted = estimator.evaluate(image, target, return_dict=True, verbose=0)
    target["weight"] = target["weight"] > 0
    assert estimator.evaluate(image, target, return_dict=True, verbose=0) == wanted


@pytest.mark.parametrize("strategy", ["none", pytest.param("mirrored", marks=pytest.mark.slow)])
@MODELS
def test_micro_batches_do_what_their_batch_does(make, make_batches, strategy):
    trained = []
    for accumulate in (1, 4 if strategy == "none" else 2):
        with make_strategy(strategy, 8).scope():
            estimator = make(regularizer=keras.regularizers.L2(1e-3))
            estimator.compile(keras.optimizers.SGD(1e-2, momentum=0.9), accumulate=accumulate)
        history = estimator.fit(make_batches(16, 8), shuffle=False, verbose=0, epochs=2).history
        assert int(estimator.steps.numpy()) == 4
        assert int(estimator.optimizer.iterations.numpy()) == 4
        trained.append((history["loss"], history["pck"], estimator.get_weights()))
    for whole, parts in zip(trained[0][:2], trained[1][:2], strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4)
    for whole, parts in zip(trained[0][2], trained[1][2], strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_micro_batches_take_their_weights_along():
    weight = np.linspace(0, 1, 8, dtype="float32")
    weighted = tf.data.Dataset.from_tensor_slices((*samples(8), weight)).batch(8)
    losses = []
    for accumulate in (1, 2):
        estimator = tiny_estimator()
        estimator.compile(keras.optimizers.SGD(1e-2), accumulate=accumulate)
        losses += estimator.fit(weighted, shuffle=False, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_averages_of_weights(scaled):
    estimator = tiny_estimator()
    adam = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5)
    estimator.compile(keras.optimizers.LossScaleOptimizer(adam, 2.0) if scaled else adam)
    with estimator.averaged():  # nothing to average yet
        first = [variable.numpy() for variable in estimator.trainable_variables]
    seen, averages = [], []

    def look(batch, logs):
        seen.append([variable.numpy() for variable in estimator.trainable_variables])
        with pytest.raises(RuntimeError), estimator.averaged():
            averages.append([variable.numpy() for variable in estimator.trainable_variables])
            raise RuntimeError
        for variable, expected in zip(estimator.trainable_variables, seen[-1], strict=True):
            np.testing.assert_array_equal(variable.numpy(), expected)

    looks = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    estimator.fit(batches(), shuffle=False, verbose=0, callbacks=[looks])
    expected = seen[0]
    assert not np.array_equal(first[0], seen[0][0])
    for weights, found in zip(seen, averages, strict=True):
        expected = [(a + w) / 2 for a, w in zip(expected, weights, strict=True)]
        for average, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(average, value, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_gradient_of_the_whole_batch_is_clipped(precision):
    """Not that of each replica's part, whose norms are others."""
    trained = []
    for strategy in ("none", "mirrored"):
        with make_strategy(strategy, 8).scope():
            estimator = tiny_estimator(regularizer=keras.regularizers.L2(1e-3))
            config = TrainConfig(
                batch_size=8, epochs=1, learning_rate=1e-2, clip_norm=0.5, precision=precision
            )
            estimator.compile(build_optimizer(config, 5))
        estimator.fit(batches(40, 8), shuffle=False, verbose=0)
        trained.append([v.numpy() for v in estimator.optimizer.variables if "momentum" in v.path])
    assert trained[0]
    for single, mirrored in zip(*trained, strict=True):
        np.testing.assert_allclose(mirrored, single, atol=1e-5 * max(np.abs(single).max(), 1e-3))


@pytest.mark.parametrize("bad", [0, 7])
def test_a_replica_whose_gradients_are_no_numbers_stops_all(bad):
    """A loss scale may be too large for one replica's part of the batch alone."""
    with make_strategy("mirrored", 8).scope():
        estimator = tiny_estimator()
        config = TrainConfig(batch_size=8, epochs=1, precision="float16")
        estimator.compile(build_optimizer(config, 1))
    image, target = samples(8)
    image[bad] = np.inf
    before = [variable.numpy() for variable in estimator.trainable_variables]
    dataset = tf.data.Dataset.from_tensor_slices((image, target)).batch(8)
    estimator.fit(dataset, shuffle=False, verbose=0)
    for variable, value in zip(estimator.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert int(estimator.optimizer.iterations.numpy()) == 0
    assert int(estimator.steps.numpy()) == 1


def test_dropout_goes_on_where_it_was(tmp_path):
    """Random states are in the file of the weights."""

    def dropping() -> PoseEstimator:
        keras.utils.set_random_seed(1)
        image = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(8, 3, 4, "same", activation="relu")(image)
        backbone = keras.Model(image, keras.layers.Dropout(0.5)(x), name="backbone")
        regressor = build_regressor(backbone, LSP14, 2, (32, 32))
        estimator = PoseEstimator(regressor, RLELoss(RealNVP(2, layers=1, hidden=4)))
        estimator.compile(keras.optimizers.Adam(1e-2))
        estimator.optimizer.build(estimator.trainable_variables)
        return estimator

    whole, first, second = dropping(), dropping(), dropping()
    whole.fit(batches(32).take(8), shuffle=False, verbose=0)
    first.fit(batches(32).take(4), shuffle=False, verbose=0)
    first.save_weights(tmp_path / "half.weights.h5")
    second.load_weights(tmp_path / "half.weights.h5")
    second.fit(batches(32).skip(4), shuffle=False, verbose=0)
    for a, b in zip(second.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    first.save(tmp_path / "whole.keras")
    assert keras.saving.load_model(tmp_path / "whole.keras").steps.numpy() == 4


def test_executions_of_several_steps_do_what_steps_do():
    trained = []
    for steps in (1, 4):
        estimator = tiny_estimator()
        estimator.compile(keras.optimizers.Adam(1e-2), steps_per_execution=steps)
        looks = StepLosses()
        estimator.fit(batches(), shuffle=False, verbose=0, epochs=2, callbacks=[looks])
        assert len(looks.losses) == 8 / steps and int(estimator.steps.numpy()) == 8
        trained.append(estimator.get_weights())
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_xla_does_what_plain_steps_do():
    losses = []
    for jit_compile in (False, True):
        estimator = tiny_estimator()
        estimator.compile(keras.optimizers.Adam(1e-2), jit_compile=jit_compile)
        assert estimator.jit_compile is jit_compile
        losses.append(estimator.fit(batches(), shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_batch_statistics_of_two_replicas_are_synchronised():
    """20 steps with statistics of the whole batch are those of one device; without they are not."""
    losses = {}
    for strategy, synchronised in (("none", False), ("mirrored", True), ("mirrored", False)):
        with make_strategy(strategy, 8).scope():
            keras.utils.set_random_seed(1)
            image = keras.Input((32, 32, 3))
            x = keras.layers.Conv2D(8, 3, 4, "same", use_bias=False)(image)
            x = keras.layers.BatchNormalization(synchronized=synchronised)(x)
            backbone = keras.Model(image, keras.layers.ReLU()(x), name="backbone")
            estimator = PoseEstimator(
                build_regressor(backbone, LSP14, 2, (32, 32)),
                RLELoss(RealNVP(2, layers=2, hidden=8)),
            )
            estimator.compile(keras.optimizers.Adam(1e-3))
        steps = StepLosses()
        estimator.fit(batches(160, 8), shuffle=False, verbose=0, callbacks=[steps])
        losses[strategy, synchronised] = np.array(steps.losses)
    single = losses["none", False]
    assert len(single) == 20
    np.testing.assert_allclose(losses["mirrored", True], single, atol=1e-4)
    assert np.abs(losses["mirrored", False] - single).max() > 3e-4


def skewed(count: int, seed: int) -> np.ndarray:
    """(count, 2) annotation errors: x skewed with a long tail to the right, y with heavy tails on
    both sides and leaning along x; about 3 % of a crop."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2.0, 1.0, count) - 2.0
    y = 0.5 * rng.standard_t(3, count) + 0.3 * x
    return np.stack([x, y], axis=-1) * 0.03


def divergence(true: np.ndarray, other: np.ndarray) -> float:
    """Kullback-Leibler divergence of two sets of draws (n, 2), on cells that hold 99.8 % of the
    first one's along each coordinate."""
    edges = [np.linspace(*np.quantile(column, [0.001, 0.999]), 41) for column in true.T]
    p, q = (np.histogram2d(*draws.T, bins=edges)[0] + 0.5 for draws in (true, other))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.slow
def test_the_flow_learns_how_annotators_err(tmp_path):
    """Joints whose places tell nothing but their errors: what is learned is the errors' density."""
    keras.utils.set_random_seed(0)
    people, steps = 4096, 64 * 12
    errors = np.float32(skewed(people * JOINTS, 0).reshape(people, JOINTS, 2))
    target = {"keypoints": errors, "weight": np.ones_like(errors)}
    blank = np.zeros((1, 32, 32, 3), "float32")
    dataset = tf.data.Dataset.from_tensor_slices(target).shuffle(people, seed=0)
    dataset = dataset.map(lambda target: (blank[0], target)).batch(64)
    regressor = build_regressor(tiny_backbone(), LSP14, 2, (32, 32))
    estimator = PoseEstimator(regressor, RLELoss(RealNVP(2)))
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    estimator.compile(keras.optimizers.Adam(rate))
    estimator.fit(dataset, epochs=12, shuffle=False, verbose=0)

    output = estimator.predict(blank, verbose=0)
    residuals = estimator.loss.draws(2, 400_000)
    learned = output["mu"][0, 0] + np.exp(output["log_sigma"][0, 0]) * residuals
    true = skewed(400_000, 1)
    rng = np.random.default_rng(2)
    normal = rng.multivariate_normal(true.mean(axis=0), np.cov(true.T), 400_000)
    assert divergence(true, skewed(400_000, 3)) < 0.005
    assert divergence(true, learned) < 0.25 * divergence(true, normal)
    density_chart(residuals, "skewed errors", tmp_path / "flow.png")
    with Image.open(tmp_path / "flow.png") as picture:
        assert picture.width > 1000
    # The picture's marginals lean the way the errors do.
    learned_skew, true_skew = (
        float(np.mean(np.clip((d[:, 0] - d[:, 0].mean()) / d[:, 0].std(), -4, 4) ** 3))
        for d in (learned, true)
    )
    assert true_skew > 1 and learned_skew > 0.7 * true_skew
