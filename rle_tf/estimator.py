"""The Keras model that is trained: a regressor and the loss with its flow."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import keras
import numpy as np
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.flow import RealNVP
from rle_tf.losses import MapLoss, PoseLoss
from rle_tf.models.batch_norm import fuse

# In unit coordinates, as is usual for regression heads: 5 % of the crop's sides, 100 mm.
PCK_THRESHOLD = 0.05


@keras.saving.register_keras_serializable("rle_tf")
class PoseEstimator(keras.Model):
    """Trains a regressor under a pose loss, whose flow is trained along.

    A plain `keras.Model`: `compile(optimizer)`, then `fit`, `evaluate` and `save`. (Import this
    class before `keras.saving.load_model` is to find it in a file.) It trains on batches of
    (input, {"keypoints": (B, K, D), "weight": (B, K, D)}). Metrics: `loss`; `pck`, the share of
    supervised joints closer than 5 % of the crop (of depth: 100 mm) to the target; `sigma`, their
    mean sigma.

    With a `map_weight` the maps of a regressor with head "soft_argmax" learn from the annotated
    places directly, too, for which `MapLoss` times the weight is added to the loss. Nothing of it
    is left in the regressor.

    Args:
        regressor: input -> {"mu": (B, K, D), "log_sigma": (B, K, D)}, an image regressor of
            (B, H, W, 3) or a lifter of keypoints (B, K, 2); all that is needed at test time.
        loss: `RLELoss`, or another `PoseLoss`.
        map_weight: Of the maps' own loss; 0 for none.
        joint_weights: (K,) what the weights of the joints' targets are multiplied by in the loss,
            in `fit` and in `evaluate`; `None` for 1.

    Attributes:
        steps: () int64 variable, the batches that it was trained on. (The optimizer counts others:
            under a loss scale it leaves out those whose gradients were too large.)
        regressor: As given.
        loss: As given.
        flow: The loss's flow, `None` where it has none.
        flow_2d: Its flow for people without depths, `None` where it has none.

    Raises:
        ModelError: if the regressor's outputs are others, or it has no maps that a `map_weight`
            could be of; in `fit`, if the target is another.
    """

    def __init__(
        self,
        regressor: keras.Model,
        loss: PoseLoss,
        name: str = "pose_estimator",
        *,
        map_weight: float = 0.0,
        joint_weights: Sequence[float] | None = None,
    ):
        super().__init__(name=name)
        check_outputs(regressor, f"regressor '{regressor.name}'")
        joints = regressor.output["mu"].shape[1]
        if joint_weights is not None and len(joint_weights) != joints:
            raise ModelError(
                f"joint_weights: found {len(joint_weights)}; expected one for each of the {joints} "
                f"joints of regressor '{regressor.name}'"
            )
        self.joint_weights = None if joint_weights is None else tuple(map(float, joint_weights))
        self.map_weight = map_weight
        self._map_loss = MapLoss()
        fuse(regressor)
        # In a closure, which Keras does not look into: the layers are the regressor's own.
        maps_taught = map_weight or loss.of_maps
        self._forward = _with_scores(regressor) if maps_taught else regressor.__call__
        self.regressor = regressor
        # Keras tracks layers, not losses: held here, the flows are trained and saved.
        self.flow: RealNVP | None = loss.flow
        self.flow_2d: RealNVP | None = loss.flow_2d
        self.loss = loss
        self.accumulate = 1
        self.steps = self.add_weight(
            (), "zeros", "int64", trainable=False, aggregation="only_first_replica", name="steps"
        )
        self._pck = keras.metrics.Mean("pck")
        self._sigma = keras.metrics.Mean("sigma")
        self.build(regressor.input_shape)

    @property
    def flows(self) -> list[RealNVP]:
        """Those of `flow` and `flow_2d` that there are."""
        return self.loss.flows

    # No property: Keras looks at every attribute when it saves, and this takes a second.
    def spread(self) -> np.ndarray:
        """(D,) or (K, D) what one sigma is worth, `PoseLoss.spread`; NaN where none is trained."""
        return self.loss.spread(self.regressor.output["mu"].shape[-1])

    def build(self, input_shape) -> None:
        self.built = True

    def call(self, image, training=None):
        return self._forward(image, training=training)

    def predict_step(self, data):
        image, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self.regressor(image, training=False)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        *,
        accumulate: int = 1,
        jit_compile: bool = False,
        steps_per_execution: int = 1,
        run_eagerly: bool = False,
    ) -> None:
        """As `keras.Model.compile`, without loss and metrics: the estimator has its own.

        XLA is off unless asked for: on CPUs it made the training step slower.

        Args:
            accumulate: Micro-batches that each replica splits its batches into, to save memory.
                They come one after the other, and the optimizer gets the mean of their gradients.
                Batch statistics are of each.
        """
        self.accumulate = accumulate
        loss = self.loss  # which Keras replaces by what it is given
        super().compile(
            optimizer=optimizer,
            jit_compile=jit_compile,
            steps_per_execution=steps_per_execution,
            run_eagerly=run_eagerly,
        )
        self.loss = loss

    def evaluate(self, *args, **keys):
        """As `keras.Model.evaluate`, which `fit` calls, too; of `averaged` weights."""
        with self.averaged():
            return super().evaluate(*args, **keys)

    # Dropout's random numbers go on where they were. Keras does not save their state.
    def save_own_variables(self, store) -> None:
        super().save_own_variables(store)
        for index, state in enumerate(self._random_states()):
            store[f"random_{index}"] = state.numpy()

    def load_own_variables(self, store) -> None:
        states = self._random_states()
        for index, state in enumerate(states):
            state.assign(store[f"random_{index}"])
        super().load_own_variables(
            {key: store[key] for key in store.keys() if not key.startswith("random_")}
        )

    def _random_states(self) -> list[keras.Variable]:
        layers = self._flatten_layers(include_self=False)
        generators = [getattr(layer, "seed_generator", None) for layer in layers]
        return [generator.state for generator in generators if generator is not None]

    # Keras would learn shapes from a batch that it reduces over the replicas, which fails with
    # several workers. The estimator knows its shapes.
    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    # Keras asks before each step of an execution but the first whether there is a batch, and
    # TensorFlow cannot reduce over workers under such a condition.
    def make_train_function(self, force: bool = False) -> None:
        if not self._several_workers or self.steps_per_execution == 1:
            super().make_train_function(force)
        elif force or self.train_function is None:
            # An epoch is whole executions, see `fit`'s steps_per_epoch.
            self.train_function = self._execution(self.train_step, self.steps_per_execution)

    def make_test_function(self, force: bool = False) -> None:
        if not self._several_workers or self.steps_per_execution == 1:
            super().make_test_function(force)
        elif force or self.test_function is None:
            once = self._execution(self.test_step, 1)

            def test_function(iterator):
                logs = once(iterator)
                # The last execution is as long as there are batches.
                with suppress(tf.errors.OutOfRangeError):
                    for _ in range(self.steps_per_execution - 1):
                        logs = once(iterator)
                return logs

            self.test_function = test_function

    def _execution(self, step, count: int):
        strategy = self.distribute_strategy

        @tf.function(reduce_retracing=True, jit_compile=self.jit_compile)
        def one(data):
            logs = strategy.run(step, args=(data,))
            return {key: strategy.reduce("MEAN", value, axis=0) for key, value in logs.items()}

        @tf.function(reduce_retracing=True)
        def execution(iterator):
            for _ in range(count):
                logs = one(iterator.get_next())
            return logs

        return execution

    @property
    def _several_workers(self) -> bool:
        return isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def train_step(self, data):
        return self._of_replica(self._train_step(data))

    def test_step(self, data):
        return self._of_replica(super().test_step(data))

    def _of_replica(self, logs: dict) -> dict:
        # Between several workers Keras averages along the first axis, which scalars do not have.
        if not self._several_workers:
            return logs
        return {key: tf.reshape(value, (1,)) for key, value in logs.items()}

    def _train_step(self, data) -> dict:
        self.steps.assign_add(1)
        if self.accumulate == 1:
            return super().train_step(data)
        count = self.accumulate
        # Their order in the batch stays: the first micro-batch is the batch's first part.
        parts = keras.tree.map_structure(
            lambda tensor: tf.reshape(tensor, (count, -1, *tensor.shape[1:])),
            keras.utils.unpack_x_y_sample_weight(data),
            none_is_leaf=False,
        )

        def add(index, totals):
            part = keras.tree.map_structure(lambda t: t[index], parts, none_is_leaf=False)
            return index + 1, [t + g for t, g in zip(totals, self._gradients(*part), strict=True)]

        zeros = [tf.zeros(v.shape) for v in self.trainable_variables]
        _, totals = tf.while_loop(
            lambda index, _: index < count, add, (0, zeros), parallel_iterations=1
        )
        gradients = [total / count for total in totals]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self.get_metrics_result()

    def _gradients(self, x, y, sample_weight) -> list[tf.Tensor]:
        """Of the loss of a micro-batch, which is added to the metrics, too."""
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._compute_loss(x, y, y_pred, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(loss * replicas)
        self.compute_metrics(x, y, y_pred, sample_weight)
        gradients = tape.gradient(scaled, self.trainable_variables)
        return [
            tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, self.trainable_variables, strict=True)
        ]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, weights are their moving averages where the optimizer keeps some (`use_ema`)."""
        optimizer = getattr(self, "optimizer", None)  # none before it is compiled
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not (optimizer and optimizer.use_ema and optimizer.iterations.numpy()):
            yield
            return
        kept = [variable.numpy() for variable in self.trainable_variables]
        try:
            optimizer.finalize_variable_values(self.trainable_variables)
            yield
        finally:
            for variable, value in zip(self.trainable_variables, kept, strict=True):
                variable.assign(value)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ) -> tf.Tensor:
        if not isinstance(y, dict) or not {"keypoints", "weight"} <= set(y):
            found = sorted(y) if isinstance(y, dict) else f"a {type(y).__name__}"
            raise ModelError(
                f"the target of fit and evaluate: found {found}; expected a dict of 'keypoints' "
                "and 'weight', each (B, K, D)"
            )
        # A mask of booleans is a natural weight, which Keras does not convert.
        target = {key: tf.cast(y[key], tf.float32) for key in ("keypoints", "weight")}
        if self.joint_weights is not None:
            target["weight"] *= np.float32(self.joint_weights)[:, None]
        # The Loss object, not its values: it scales for the number of replicas.
        loss = self.loss(target, y_pred, sample_weight)
        if self.map_weight:
            loss += self.map_weight * self._map_loss(target, y_pred["scores"], sample_weight)
        if self.losses:  # regularisers of the regressor's layers
            loss += super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None) -> dict[str, float]:
        supervised = tf.cast(y["weight"], tf.float32) > 0
        labelled = tf.cast(tf.reduce_any(supervised, axis=-1), tf.float32)
        keypoints = tf.cast(y["keypoints"], tf.float32)
        offset = tf.where(supervised, keypoints - y_pred["mu"], 0.0)
        hit = tf.norm(offset, axis=-1) < PCK_THRESHOLD
        self._pck.update_state(tf.cast(hit, tf.float32), sample_weight=labelled)
        self._sigma.update_state(
            tf.exp(y_pred["log_sigma"]), sample_weight=tf.cast(supervised, tf.float32)
        )
        return self.get_metrics_result()

    def get_config(self) -> dict:
        return {
            "regressor": keras.saving.serialize_keras_object(self.regressor),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "map_weight": self.map_weight,
            "joint_weights": self.joint_weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict) -> "PoseEstimator":
        return cls(
            regressor=keras.saving.deserialize_keras_object(config["regressor"]),
            loss=keras.saving.deserialize_keras_object(config["loss"]),
            # Older files have neither.
            map_weight=config.get("map_weight", 0.0),
            joint_weights=config.get("joint_weights"),
            name=config["name"],
        )

    def get_compile_config(self) -> dict:
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "accumulate": self.accumulate,
            "jit_compile": self.jit_compile,
            "steps_per_execution": self.steps_per_execution,
            "run_eagerly": self.run_eagerly,
        }

    def compile_from_config(self, config: dict) -> None:
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"])
        self.compile(
            optimizer,
            accumulate=config.get("accumulate", 1),
            jit_compile=config["jit_compile"],
            steps_per_execution=config["steps_per_execution"],
            run_eagerly=config["run_eagerly"],
        )
        # Its slots exist before the file's values are assigned to them.
        self.optimizer.build(self.trainable_variables)


def _with_scores(regressor: keras.Model) -> Callable:
    """The regressor's call, which also gives the "scores" (B, K, h, w) of a head with maps."""
    try:
        scores = regressor.get_layer("score_maps").output
    except ValueError:
        raise ModelError(
            f"regressor '{regressor.name}' has no maps, which HeatmapLoss and a map_weight teach; "
            "expected head heatmap for the one, soft_argmax for the other"
        ) from None
    outputs = {**regressor.output, "scores": keras.ops.transpose(scores, (0, 3, 1, 2))}
    model = keras.Model(regressor.input, outputs)
    return lambda image, training=None: model(image, training=training)


def check_outputs(regressor: keras.Model, name: str) -> None:
    """Raises `ModelError` if a model's outputs are not a regressor's; `name` is how to call it."""
    try:
        output = regressor.output
    except AttributeError:  # a model that is no graph of layers
        output = None
    found = sorted(output) if isinstance(output, dict) else "without names"
    if found != ["log_sigma", "mu"]:
        raise ModelError(
            f"{name} has outputs {found}; expected a functional model with 'mu' and 'log_sigma'"
        )
