"""`rle-tf benchmark`: that it times what it says, not how fast that is."""

import pytest

from rle_tf.benchmark import benchmark_model
from rle_tf.errors import ModelError


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="found neither config.yaml nor saved_model.pb; expected"):
        benchmark_model(tmp_path)


@pytest.mark.slow
def test_the_model_that_is_shipped():
    from rle_tf.prediction import SHIPPED

    speeds = benchmark_model(SHIPPED / "pose_small", threads=(1,), batches=(2,))
    assert [speed.runtime for speed in speeds] == ["SavedModel", "LiteRT", "LiteRT"]
    for speed in speeds:
        assert speed.latency_ms[1] > 0 and speed.crops_per_second[2] > 0 and speed.bytes > 1e6
