"""`rle-tf benchmark` of a run and of a recipe."""

import pytest


@pytest.mark.slow
def test_a_model_in_each_runtime(rle_tf, tmp_path):
    pytest.importorskip("onnxruntime")
    overrides = [f"data.source.root={tmp_path / 'people'}", "data.source.train_people=32"]
    overrides += ["data.source.val_people=8", "train.epochs=1", "train.drop_epochs=[]"]
    sets = [part for override in overrides for part in ("--set", override)]
    rle_tf(tmp_path, "train", "demo", "--out", "run", *sets)
    said = rle_tf(tmp_path, "benchmark", "run", "--threads", "1", "--batch", "1", "--batch", "3")
    for name in (
        "SavedModel",
        "1-float32.tflite",
        "1-dynamic_int8.tflite",
        "ONNX Runtime",
        "1.xml",
    ):
        assert name in said
    assert "/s, 3" in said and "ms, 1" in said and "nan" not in said
    said = rle_tf(tmp_path, "benchmark", "demo", *sets)
    assert "training step" in said and "times l1's" in said
    assert "a batch of input" in said and "images/s" in said
