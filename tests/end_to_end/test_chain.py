"""The commands of the README, from an empty folder to an exported model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rle_tf.export.savedmodel import read_metadata

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_trains_scores_draws_and_exports(demo):
    folder, printed = demo
    run = folder / "runs" / "demo"
    assert "AP50" in printed and "predictions.png" in printed
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["AP"] <= 1 and metrics["error_px"] > 0
    assert len(json.loads((run / "results.json").read_text())) == 24
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    with Image.open(run / "predictions.png") as picture:
        assert min(picture.size) > 300
    assert (folder / "saved_models/demo/1/saved_model.pb").is_file()
    assert (folder / "saved_models/demo/1-float32.tflite").is_file()


@pytest.mark.slow
def test_the_demo_can_be_run_again(demo, small_demo, rle_tf):
    folder, _ = demo
    before = json.loads((folder / "runs/demo/metrics.json").read_text())
    rle_tf(folder, "demo", *small_demo)
    assert json.loads((folder / "runs/demo/metrics.json").read_text()) == before
    assert (folder / "saved_models/demo/2").is_dir()


@pytest.mark.slow
def test_evaluation_with_detections(demo, rle_tf):
    folder, _ = demo
    printed = rle_tf(
        folder, "evaluate", "runs/demo", "--set", "evaluate.boxes=detections", "--out", "detected"
    )
    assert "detections boxes" in printed
    assert "AP" in json.loads((folder / "detected/metrics.json").read_text())


@pytest.mark.slow
def test_run_folder_and_exported_model_predict_the_same(demo, rle_tf):
    folder, _ = demo
    image = next((folder / "runs/demo-data/val2017").glob("*.jpg"))
    (folder / "boxes.json").write_text(json.dumps({image.name: [[20, 10, 90, 120]]}))
    joints = []
    for model, out in (("runs/demo", "poses_run"), ("saved_models/demo", "poses_exported")):
        rle_tf(folder, "predict", "--model", model, image, "--boxes", "boxes.json", "--out", out)
        with Image.open(folder / out / f"{image.stem}.png") as drawn, Image.open(image) as plain:
            assert drawn.size == plain.size
        (entry,) = json.loads((folder / out / "predictions.json").read_text())
        joints.append([[j["x"], j["y"], j["sigma_x"]] for j in entry["people"][0]["joints"]])
    np.testing.assert_allclose(joints[0], joints[1], atol=0.02)


@pytest.mark.slow
def test_the_density_of_its_errors_is_drawn(demo, rle_tf, small_demo):
    """Of one flow, and of a flow for each joint."""
    folder, _ = demo
    printed = rle_tf(folder, "flow", "runs/demo", "--out", "pictures/density.png")
    assert "x: median" in printed and "pictures/density.png" in printed
    with Image.open(folder / "pictures/density.png") as picture:
        assert picture.width > 1000
    recipe = ["train", "demo", "--out", "runs/each", *small_demo, "--set", "train.epochs=1"]
    rle_tf(folder, *recipe, "--set", "loss.flow_per_joint=true", "--set", "train.drawn_people=0")
    rle_tf(folder, "flow", "runs/each")
    for name in ("flow.png", "flow_joints.png"):
        with Image.open(folder / "runs/each" / name) as picture:
            assert picture.width > 1000
    # Each joint has a spread of its own, which predictions and exports go by.
    spread = json.loads((folder / "runs/each/density.json").read_text())["spread"]
    assert np.shape(spread) == (17, 2)
    rle_tf(folder, "export", "runs/each", "--format", "savedmodel", "--name", "each")
    metadata = read_metadata(folder / "saved_models/each/1")
    np.testing.assert_allclose(metadata["spread"], spread)


@pytest.mark.slow
def test_calibrated_on_others_it_says_how_sure_it_is(demo, rle_tf):
    folder, _ = demo
    run = folder / "calibrated"
    shutil.copytree(folder / "runs/demo", run)
    recipe = (run / "config.yaml").read_text()
    recipe = recipe.replace("runs/demo-data", "more-data").replace(
        "val_people: 24", "val_people: 80"
    )
    (folder / "more.yaml").write_text(recipe)
    printed = rle_tf(folder, "calibrate", "calibrated", "--config", "more.yaml")
    assert "density as trained" in printed and "left_wrist" in printed and "OKS" in printed
    report = json.loads((run / "calibration_report.json").read_text())
    assert 0.75 < report["coverage"]["0.9"] < 1  # of forty people
    with Image.open(run / "calibration_report.png") as picture:
        assert picture.width > 800

    exported = rle_tf(folder, "export", "calibrated", "--format", "savedmodel", "--name", "sure")
    assert "saved_models/sure/1" in exported
    image = next((folder / "runs/demo-data/val2017").glob("*.jpg"))
    confidences = []
    for model in ("calibrated", "saved_models/sure"):
        rle_tf(folder, "predict", image, "--model", model)
        (entry,) = json.loads((folder / "poses/predictions.json").read_text())
        confidences.append([joint["confidence"] for joint in entry["people"][0]["joints"]])
    np.testing.assert_allclose(confidences[0], confidences[1], atol=2e-3)
    assert 0 < min(confidences[0]) and max(confidences[0]) < 1

    # Trained on, the regressor is another one.
    other = "import keras, sys; model = keras.saving.load_model(sys.argv[1]); "
    other += "model.set_weights([w + 0.01 for w in model.get_weights()]); model.save(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", other, run / "regressor.keras"], check=True, capture_output=True
    )
    message = rle_tf(folder, "export", "calibrated", "--name", "x", status=1)
    assert "calibration.json: is of another model than" in message
    assert not (folder / "saved_models/x").exists()


@pytest.mark.slow
def test_evaluating_with_another_skeleton_is_refused(demo, rle_tf):
    """A regressor of 14 joints in the folder of a run of 17."""
    folder, _ = demo
    other = folder / "other"
    other.mkdir()
    for name in ("config.yaml", "density.json"):
        shutil.copy(folder / "runs/demo" / name, other / name)
    subprocess.run(
        [
            sys.executable, "-c",
            "from rle_tf import LSP14, build_regressor;"
            "model = build_regressor('mobilenet_v3_small', LSP14, 2, (64, 32));"
            "model.save('other/regressor.keras')",
        ],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    message = rle_tf(folder, "evaluate", "other", status=1)
    assert "gives 14 joints; expected the 17 of skeleton 'coco17'" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_is_usable_and_goes_on(demo, small_demo, rle_tf):
    folder, _ = demo
    recipe = REPOSITORY / "configs" / "demo.yaml"
    small = [*small_demo[:-1], "train.epochs=400", "--set", "data.source.root=runs/demo-data"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rle_tf", "train", recipe, "--out", "cut", *small],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so do the tests' children there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list((folder / "cut").glob("checkpoints/step_*")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "--resume" in printed and "Traceback" not in printed

    image = next((folder / "runs/demo-data/val2017").glob("*.jpg"))
    rle_tf(folder, "predict", "--model", "cut", image, "--out", "poses_cut")
    done = len((folder / "cut/history.jsonl").read_text().splitlines())
    small[small.index("train.epochs=400")] = f"train.epochs={done + 2}"
    rle_tf(folder, "train", recipe, "--out", "cut", "--resume", *small)
    history = (folder / "cut/history.jsonl").read_text()
    epochs = [json.loads(line)["epoch"] for line in history.splitlines()]
    assert epochs == list(range(1, done + 3))
    assert (folder / "cut/metrics.json").is_file()


@pytest.mark.slow
def test_32_real_people_are_learned_by_heart(coco_sample, tmp_path, rle_tf):
    """Training AP, without augmentation, with RLE: the chain can fit what it is shown."""
    file = coco_sample / "annotations/person_keypoints_train2017.json"
    dataset = json.loads(file.read_text())
    people = [
        entry for entry in dataset["annotations"]
        if not entry["iscrowd"] and entry["num_keypoints"] >= 12 and entry["area"] > 96**2
    ]  # fmt: skip
    alone = {}
    for entry in people:  # one an image: COCO counts the others of an image as missed
        alone.setdefault(entry["image_id"], entry)
    chosen = list(alone.values())[:32]
    assert len(chosen) == 32
    dataset["annotations"] = chosen
    dataset["images"] = [i for i in dataset["images"] if i["id"] in {c["image_id"] for c in chosen}]
    (tmp_path / "val.json").write_text(json.dumps(dataset))
    # An epoch of one batch would be over before it has begun: everybody eight times.
    dataset["annotations"] = [{**c, "id": 1 + n} for n, c in enumerate(chosen * 8)]
    (tmp_path / "train.json").write_text(json.dumps(dataset))
    train, val = (
        f"{{annotations: {tmp_path}/{split}.json, images: {coco_sample}/train2017}}"
        for split in ("train", "val")
    )
    (tmp_path / "overfit.yaml").write_text(
        f"""
name: overfit
data:
  source: {{kind: coco, root: "/", train: {train}, val: {val}}}
  image_size: [96, 96]
  augmentation: {{flip_probability: 0.0, scale_range: [1.0, 1.0], rotation_deg: 0.0,
                  half_body_probability: 0.0}}
model: {{backbone: resnet18, output_layer: layer3_1_out, head: soft_argmax}}
loss: {{kind: rle, convention: official}}
train: {{batch_size: 16, epochs: 30, learning_rate: 1e-3, drop_epochs: [22, 28], drawn_people: 0}}
evaluate: {{flip_test: false}}
"""
    )
    rle_tf(tmp_path, "train", "overfit.yaml", "--out", "run")
    assert json.loads((tmp_path / "run/metrics.json").read_text())["AP"] > 0.90
