"""`rle-tf benchmark`: that it times what it says, not how fast that is."""

import pytest

from rle_tf.benchmark import benchmark_model
from rle_tf.errors import ModelError


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelError, match="found neither config.yaml nor saved_model.pb; expected"):
        benchmark_model(tmp_path)


@pytest.mark.slow
def test_a_model_in_each_runtime(rle_tf, tmp_path):
    pytest.importorskip("onnxruntime")
    overrides = [f"data.source.root={tmp_path / 'people'}", "data.source.train_people=32"]
    overrides += ["data.source.val_people=8", "train.epochs=1", "train.drop_epochs=[]"]
    sets = [part for override in overrides for part in ("--set", override)]
    rle_tf(tmp_path, "train", "demo", "--out", "run", *sets)
    said = rle_tf(tmp_path, "benchmark", "run", "--threads", "1", "--batch", "1", "--batch", "3")
    for name in ("SavedModel", "1-float32.tflite", "1-dynamic_int8.tflite", "ONNX Runtime"):
        assert name in said
    assert "/s, 3" in said and "ms, 1" in said and "nan" not in said
    said = rle_tf(tmp_path, "benchmark", "demo", *sets)
    assert "training step" in said and "times l1's" in said and "a batch of input" in said


@pytest.mark.slow
def test_the_model_that_is_shipped():
    from rle_tf.prediction import SHIPPED

    speeds = benchmark_model(SHIPPED / "pose_small", threads=(1,), batches=(2,))
    assert [speed.runtime for speed in speeds] == ["SavedModel", "LiteRT", "LiteRT"]
    for speed in speeds:
        assert speed.latency_ms[1] > 0 and speed.crops_per_second[2] > 0 and speed.bytes > 1e6
