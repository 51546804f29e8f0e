"""Learning rates over time, and what the optimizer is made of."""

import keras
import numpy as np
import pytest

from rle_tf.config import TrainConfig
from rle_tf.optimization import WarmUp, build_optimizer

STEPS = 10


def rates(steps, **keys) -> list[float]:
    train = TrainConfig(batch_size=8, epochs=4, learning_rate=0.1, **keys)
    optimizer = build_optimizer(train, STEPS)
    optimizer.build([])
    found = []
    for step in steps:
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    return found


def test_a_constant_learning_rate():
    assert rates([0, 39]) == pytest.approx([0.1, 0.1])


def test_warm_up_grows_linearly():
    assert rates([0, 1, 3, 4, 30], warmup_steps=4) == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    "keys",
    [{"schedule": "cosine"}, {"drop_epochs": (1, 2)}],
    ids=["cosine", "steps"],
)
def test_warm_up_leaves_the_schedule_as_it_is(keys):
    steps = [5, 9, 10, 19, 20, 39]
    assert rates(steps, warmup_steps=5, **keys) == pytest.approx(rates(steps, **keys))
    assert rates([0], warmup_steps=5, **keys)[0] == pytest.approx(rates([0], **keys)[0] / 5)


def test_a_learning_rate_for_another_batch_is_scaled():
    assert rates([0], learning_rate_batch=32) == pytest.approx([0.1 * 8 / 32])
    falling = rates([0, 10], learning_rate_batch=4, drop_epochs=(1,))
    assert falling == pytest.approx([0.2, 0.02])


def test_warm_up_is_saved_with_its_schedule():
    schedule = WarmUp(keras.optimizers.schedules.CosineDecay(0.1, 40), 5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    for step in (0, 3, 20):
        np.testing.assert_allclose(again(step), schedule(step))


@pytest.mark.parametrize(
    ("keys", "scaled"),
    [({}, False), ({"precision": "bfloat16"}, False), ({"precision": "float16"}, True)],
)
def test_only_float16_scales_the_loss(keys, scaled):
    optimizer = build_optimizer(
        TrainConfig(batch_size=8, epochs=4, ema=0.9, clip_norm=2, **keys), STEPS
    )
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    adam = optimizer.inner_optimizer if scaled else optimizer
    assert adam.use_ema and adam.ema_momentum == 0.9 and adam.global_clipnorm == 2


def test_gradients_are_clipped_to_the_norm():
    def after(gradients, **keys) -> np.ndarray:
        optimizer = build_optimizer(TrainConfig(batch_size=8, epochs=4, **keys), STEPS)
        variable = keras.Variable([0.0, 0.0])
        for gradient in gradients:
            optimizer.apply_gradients([(keras.ops.array(gradient), variable)])
        return variable.numpy()

    # Adam takes gradients by their proportion: the second is a hundred times the first.
    steps = [[0.6, 0.8], [60.0, 80.0]]
    clipped = after(steps, clip_norm=1)
    np.testing.assert_allclose(clipped, after([[0.6, 0.8]] * 2), rtol=1e-5)
    assert np.abs(clipped - after(steps)).min() > 1e-4
    np.testing.assert_allclose(after(steps, clip_norm=1000), after(steps), rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"accumulate": 3}, "batch_size: 8 is no multiple of accumulate, 3"),
        ({"steps_per_execution": 4, "steps_per_epoch": 6}, "steps_per_epoch: 6 is no multiple of"),
        (
            {"steps_per_execution": 4, "checkpoint_steps": 6},
            "checkpoint_steps: 6 is no multiple of",
        ),
    ],
)
def test_what_does_not_split(keys, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(batch_size=8, epochs=4, **keys)
