"""`rle-tf benchmark`: that it times what it says, not how fast that is."""

from pathlib import Path

import pytest

from rle_tf.benchmark import benchmark_model, benchmark_recipe
from rle_tf.config import load_config
from rle_tf.errors import ModelError


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="found neither config.yaml nor saved_model.pb; expected"):
        benchmark_model(tmp_path)


def test_a_recipe():
    config = load_config(Path(__file__).parents[1] / "configs/demo.yaml", ["train.batch_size=4"])
    speed = benchmark_recipe(config)
    middle, least, most = speed.input_ms
    assert 0 < least <= middle <= most
    assert speed.images_per_second == pytest.approx(4000 / middle)
    assert speed.images_per_core_second > 0
    assert speed.step_ms > 0 and speed.parameters > 0 and speed.multiply_adds > 0


@pytest.mark.slow
def test_the_model_that_is_shipped():
    from rle_tf.prediction import SHIPPED

    speeds = benchmark_model(SHIPPED / "pose_small", threads=(1,), batches=(2,))
    assert [speed.runtime for speed in speeds] == ["SavedModel", "LiteRT", "LiteRT"]
    for speed in speeds:
        assert speed.latency_ms[1] > 0 and speed.crops_per_second[2] > 0 and speed.bytes > 1e6
