"""`rle-tf benchmark`: that it times what it says, not how fast that is."""

import os
from pathlib import Path

import pytest

from rle_tf.benchmark import benchmark_model, benchmark_recipe
from rle_tf.config import load_config
from rle_tf.errors import ModelError


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="found neither config.yaml nor saved_model.pb; expected"):
        benchmark_model(tmp_path)


@pytest.mark.slow
def test_a_recipe(tmp_path):
    overrides = [f"data.source.root={tmp_path / 'people'}", "data.source.train_people=32"]
    overrides += ["data.source.val_people=8", "train.batch_size=4"]
    speed = benchmark_recipe(
        load_config(Path(__file__).parents[1] / "configs/demo.yaml", overrides)
    )
    middle, least, most = speed.input_ms
    assert 0 < least <= middle <= most
    # No more work than all cores do in that time.
    assert speed.images_per_core_second * os.cpu_count() > 0.9 * 4000 / most
    assert speed.images_per_second == pytest.approx(4000 / middle)
    assert speed.step_ms > 0 and speed.parameters > 0 and speed.multiply_adds > 0


@pytest.mark.slow
def test_the_model_that_is_shipped():
    from rle_tf.prediction import SHIPPED

    speeds = benchmark_model(SHIPPED / "pose_small", threads=(1,), batches=(2,))
    assert [speed.runtime for speed in speeds] == ["SavedModel", "LiteRT", "LiteRT"]
    for speed in speeds:
        assert speed.latency_ms[1] > 0 and speed.crops_per_second[2] > 0 and speed.bytes > 1e6
