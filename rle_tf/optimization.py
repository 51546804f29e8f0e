"""How weights move: Adam, its learning rate over time, and what stands between the two."""

import keras
import tensorflow as tf

from rle_tf.config import TrainConfig

Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("rle_tf")
class WarmUp(Schedule):
    """A learning rate that first grows from nearly 0, linearly.

    Args:
        learning_rate: What it grows to: a number, or a schedule, which runs from the first step on.
        steps: How many steps it takes.
    """

    def __init__(self, learning_rate: float | Schedule, steps: int):
        super().__init__()
        self.learning_rate = learning_rate
        self.steps = steps

    def __call__(self, step) -> tf.Tensor:
        rate = self.learning_rate(step) if callable(self.learning_rate) else self.learning_rate
        return rate * tf.minimum(1.0, (tf.cast(step, tf.float32) + 1) / self.steps)

    def get_config(self) -> dict:
        return {
            "learning_rate": keras.saving.serialize_keras_object(self.learning_rate),
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config: dict) -> "WarmUp":
        rate = keras.saving.deserialize_keras_object(config["learning_rate"])
        return cls(rate, config["steps"])


@keras.saving.register_keras_serializable("rle_tf")
class Adam(keras.optimizers.Adam):
    """Keras's, which with several replicas clips the gradient of the whole batch, not of each
    replica's part."""

    def _clip_gradients(self, grads):
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        reduced = super()._all_reduce_sum_gradients(grads_and_vars)
        gradients, variables = zip(*reduced, strict=True)
        return list(zip(super()._clip_gradients(list(gradients)), variables, strict=True))


@keras.saving.register_keras_serializable("rle_tf")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras's, which with several replicas asks all of them, not one, whether gradients are
    finite."""

    def check_finite(self, grads):
        finite = tf.cast(super().check_finite(grads), tf.float32)
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", finite) >= context.num_replicas_in_sync


def build_optimizer(train: TrainConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Adam as a config describes it; for float16 inside a `LossScaleOptimizer`."""
    adam = Adam(
        _learning_rate(train, steps_per_epoch),
        global_clipnorm=train.clip_norm,
        use_ema=train.ema is not None,
        ema_momentum=train.ema or 0.0,
    )
    # Gradients below float16's smallest number would be 0.
    return LossScaleOptimizer(adam) if train.precision == "float16" else adam


def _learning_rate(train: TrainConfig, steps_per_epoch: int) -> float | Schedule:
    rate = train.learning_rate
    if train.learning_rate_batch:
        rate *= train.batch_size / train.learning_rate_batch
    if train.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps_per_epoch * train.epochs)
    elif train.drop_epochs:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras drops after the step that a boundary names, counted from 0.
            [epoch * steps_per_epoch - 1 for epoch in train.drop_epochs],
            [rate * train.drop_factor**n for n in range(len(train.drop_epochs) + 1)],
        )
    return WarmUp(rate, train.warmup_steps) if train.warmup_steps else rate
