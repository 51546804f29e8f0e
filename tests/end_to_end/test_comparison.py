"""`rle-tf compare`, from a recipe to a table."""

import json

import pytest


@pytest.mark.slow
def test_a_comparison_from_the_command_line(rle_tf, tmp_path):
    arguments = [
        "compare", "demo", "--methods", "rle,heatmap", "--seeds", "1", "--out", "compared",
        "--set", f"data.source.root={tmp_path / 'people'}", "--set", "data.source.train_people=128",
        "--set", "data.source.val_people=20", "--set", "train.epochs=2",
        "--set", "train.drop_epochs=[]", "--set", "train.drawn_people=0",
    ]  # fmt: skip
    said = rle_tf(tmp_path, *arguments)
    assert all(f"demo-{method}-0" in said for method in ("rle", "heatmap"))
    out = tmp_path / "compared"
    table = (out / "comparison.md").read_text()
    assert table in said
    rows = {row["method"]: row for row in json.loads((out / "comparison.json").read_text())}
    assert list(rows) == ["rle", "heatmap"]
    for method, row in rows.items():
        scores = json.loads((out / f"{method}-0/metrics.json").read_text())
        assert row["scores"]["PCK@0.1"] == [pytest.approx(scores["PCK@0.1"])]
        assert len(row["curves"][0]) == 2
    assert rows["rle"]["step"] == rows["rle"]["latency"] == 1
    assert rows["heatmap"]["step"] > 1 and rows["heatmap"]["latency"] > 0
    assert rows["heatmap"]["multiply_adds"] > 1.5 * rows["rle"]["multiply_adds"]
    assert -1 <= rows["rle"]["correlation"][0] <= 1
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    # What is done is not done again, and another recipe is refused.
    checkpoints = sorted(out.glob("*/checkpoints/*"))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    rle_tf(tmp_path, *arguments)
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    said = rle_tf(tmp_path, *arguments, "--set", "train.learning_rate=1.0", status=1)
    assert "the run was started with another config: train.learning_rate was" in said
