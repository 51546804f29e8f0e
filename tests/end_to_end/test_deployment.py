"""From a run to what deployments load: the export in every format, and docs/serving.md."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "serving.md").read_text()


def five_minutes() -> list[str]:
    """The lines that docs/serving.md tells a new user to type."""
    section = re.search(r"## Five minutes\n(.*?)\n## ", PAGE, re.S)[1]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
def test_the_page_on_serving_followed_word_for_word(demo, tmp_path):
    folder, _ = demo
    (tmp_path / "runs").symlink_to(folder / "runs")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    image = next((folder / "runs/demo-data/val2017").glob("*.jpg"))
    (tmp_path / "photo.jpg").symlink_to(image)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8501)) == 0:
            pytest.skip("port 8501, which the page names, is in use")

    # Trained and installed already.
    lines = five_minutes()
    assert [lines.pop(0), lines.pop(0)] == [
        "make demo", '.venv/bin/pip install -e ".[serve,serving]"'
    ]  # fmt: skip
    bin = Path(sys.executable).parent
    lines = [line.replace(".venv/bin", str(bin)) for line in lines]
    outputs, server = [], None
    try:
        for line in lines:
            if " serve " in line:
                server = subprocess.Popen(line.split(), cwd=tmp_path)
                wait_for(server)
                continue
            result = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            outputs.append(result.stdout)
    finally:
        if server:
            server.terminate()
            server.wait(60)
    assert server.returncode == 0

    exported, listed, _, answer, status, metadata = outputs
    assert "saved_models/demo/1\n" in exported and "serving/compose.yaml" in exported
    assert (tmp_path / "saved_models/demo/1/assets.extra/tf_serving_warmup_requests").is_file()
    (person,) = json.loads(answer)["predictions"]
    assert listed.startswith(f"person 0: score {person['person_score'][0]:.3f}\n")
    assert len(listed.splitlines()) == 18
    assert json.loads(status)["model_version_status"][0]["state"] == "AVAILABLE"
    signatures = json.loads(metadata)["metadata"]["signature_def"]["signature_def"]
    # The page lists every signature, and every input and output of these.
    for name, signature in signatures.items():
        if not name.startswith("__"):
            for word in (name, *signature["inputs"], *signature["outputs"]):
                assert f"`{word}`" in PAGE, word


def wait_for(server: subprocess.Popen) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen("http://127.0.0.1:8501/v1/models/demo", timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server ended with status {server.returncode}")


@pytest.mark.slow
def test_every_format_says_the_same_and_the_report_measures_it(demo, rle_tf, tmp_path):
    folder, _ = demo
    precisions = ["float32", "float16", "dynamic_int8", "int8"]
    printed = rle_tf(
        folder, "export", "runs/demo", "--out", tmp_path, "--report",
        *(f"--format={name}" for name in ("savedmodel", "litert", "onnx", "openvino")),
        *(option for precision in precisions for option in ("--precision", precision)),
    )  # fmt: skip
    report = json.loads((tmp_path / "demo" / "1-report.json").read_text())
    rows = {}
    for row in report["formats"]:
        named = row["format"] == "LiteRT"
        rows[f"LiteRT {row['precision']}" if named else row["format"]] = row
    assert set(rows) == {
        "Keras",
        "SavedModel",
        "ONNX",
        "OpenVINO",
        *(f"LiteRT {p}" for p in precisions),
    }
    assert all(name in printed for name in rows)
    bounds = {"LiteRT int8": 2.0, "LiteRT dynamic_int8": 2.0, "LiteRT float16": 0.1}
    for name, row in rows.items():
        assert row["deviation_px"]["p95"] < bounds.get(name, 0.02), (name, row)
        assert row["bytes"] > 0 and 0 <= row["scores"]["PCK@0.1"] <= 1
        assert name == "Keras" or min(row["latency_ms"].values()) > 0
    assert rows["LiteRT int8"]["bytes"] < 0.5 * rows["LiteRT float32"]["bytes"]


@pytest.mark.slow
def test_a_format_alone_and_versions_of_all_formats(demo, rle_tf, tmp_path):
    folder, _ = demo
    command = ["export", "runs/demo", "--out", tmp_path, "--name", "small"]
    rle_tf(folder, *command, "--format", "litert", "--precision", "float16")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "1-float16.tflite", "1-float16.json"
    }  # fmt: skip
    rle_tf(folder, *command, "--format", "savedmodel")
    assert (tmp_path / "small" / "2" / "saved_model.pb").is_file()
    message = rle_tf(folder, *command, "--format", "litert", "--serving", status=1)
    assert "serving: found no SavedModel among the formats" in message


@pytest.mark.slow
def test_int8_without_the_training_images_writes_nothing(demo, rle_tf, tmp_path):
    folder, _ = demo
    message = rle_tf(
        folder, "export", "runs/demo", "--precision", "int8", "--out", tmp_path / "models",
        "--set", "data.source={kind: coco, root: absent}", status=1,
    )  # fmt: skip
    assert "absent/annotations" in message and "Traceback" not in message
    assert not (tmp_path / "models").exists()
