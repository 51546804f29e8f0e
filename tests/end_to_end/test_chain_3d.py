"""The 3D chain through the command line: rendered people, real frames, a mix, a lifter."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf.config import load_config

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "--set", "data.source.train_people=64", "--set", "data.source.val_people=24",
    "--set", "train.batch_size=16", "--set", "train.drop_epochs=[]", "--set", "train.epochs=2",
]  # fmt: skip
LIFTED = [
    "--set", "data.source={kind: synthetic, layout: h36m, images: false, root: people, "
    "train_people: 400, val_people: 40}",
    "--set", "train.epochs=2", "--set", "train.drop_epochs=[]", "--set", "train.batch_size=64",
    "--set", "model.width=64",
]  # fmt: skip


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory, rle_tf) -> tuple[Path, str]:
    """A folder in which a small 3D demo has run, and what it printed."""
    folder = tmp_path_factory.mktemp("demo3d")
    return folder, rle_tf(folder, "demo", "--task", "3d", *SMALL)


@pytest.mark.slow
def test_the_demo_trains_scores_draws_and_exports(demo):
    folder, printed = demo
    run = folder / "runs/demo3d"
    assert "PA-MPJPE" in printed and "arms_up" in printed and "predictions.png" in printed
    scores = metrics(run)
    assert 0 < scores["PA-MPJPE"] < scores["MPJPE"]
    assert len(json.loads((run / "results.json").read_text())) == 24
    with Image.open(run / "predictions.png") as picture:
        assert picture.width > 3 * 300  # a photograph and two views at least
    assert (folder / "saved_models/demo3d/1-float32.tflite").is_file()


@pytest.mark.slow
def test_run_folder_and_exported_model_predict_the_same_depths(demo, rle_tf):
    folder, _ = demo
    image = next((folder / "runs/demo3d-data/images").rglob("*.jpg"))
    joints = []
    for model in ("runs/demo3d", "saved_models/demo3d"):
        out = f"poses_{model.partition('/')[0]}"
        rle_tf(folder, "predict", "--model", model, image, "--out", out, "--flip-test")
        (entry,) = json.loads((folder / out / "predictions.json").read_text())
        keys = ("x", "y", "depth_mm", "depth_sigma_mm")
        joints.append([[joint[key] for key in keys] for joint in entry["people"][0]["joints"]])
    np.testing.assert_allclose(joints[0], joints[1], atol=0.2)
    assert np.ptp(joints[0], axis=0)[2] > 1 and joints[0][0][2] == 0  # from the pelvis


@pytest.mark.slow
def test_a_lifter_trains_evaluates_and_exports(tmp_path, rle_tf):
    recipe = REPOSITORY / "configs/h36m_lifting_rle.yaml"
    printed = rle_tf(tmp_path, "train", recipe, "--out", "run", *LIFTED)
    assert "PA-MPJPE" in printed and not (tmp_path / "people/images").exists()
    trained = metrics(tmp_path / "run")
    rle_tf(tmp_path, "evaluate", "run")
    assert metrics(tmp_path / "run") == pytest.approx(trained)
    rle_tf(tmp_path, "export", "run", "--name", "lifter")

    source = load_config(tmp_path / "run/config.yaml", [f"data.source.root={tmp_path}/people"])
    source = source.open_source("val")
    served = tf.saved_model.load(str(tmp_path / "saved_models/lifter/1"))
    output = served.signatures["serving_default"](
        keypoints_px=tf.constant(source.records.keypoints[..., :2]),
        image_wh=tf.constant(source.records.image_wh, tf.float32),
    )
    from_root = source.joints_mm - source.joints_mm[:, :1]
    error_mm = np.linalg.norm(output["keypoints_mm"] - from_root, axis=-1)[:, :17].mean()
    # The score is with the flip test, the exported model without.
    assert error_mm == pytest.approx(trained["MPJPE"], rel=0.2)
    message = rle_tf(tmp_path, "predict", "--model", "run", "x.jpg", "--out", "poses", status=1)
    assert "a lifter, which takes keypoints" in message and "Traceback" not in message


@pytest.mark.slow
def test_a_mix_of_real_photographs_trains_with_the_recipe(
    h36m_sample, mpii_sample, tmp_path, rle_tf
):
    """The paper's recipe but for its size: both flows, every augmentation, real files."""
    rle_tf(
        tmp_path, "train", REPOSITORY / "configs/h36m_mpii_resnet50_rle.yaml", "--out", "run",
        "--data-root", h36m_sample.parent,
        *("--set", "model.backbone=mobilenet_v3_small", "--set", "model.weights=null"),
        *("--set", "data.image_size=[64, 64]", "--set", "train.batch_size=4"),
        *("--set", "train.epochs=2", "--set", "train.drop_epochs=[]"),
        *("--set", "train.steps_per_epoch=4", "--set", "train.strategy=none"),
    )  # fmt: skip
    assert np.isfinite(metrics(tmp_path / "run")["MPJPE"])
    lines = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert len(lines) == 2 and all(np.isfinite(json.loads(line)["loss"]) for line in lines)


@pytest.mark.slow
def test_4_real_frames_are_learned_by_heart(h36m_sample, tmp_path, rle_tf):
    weights = h36m_sample.parent / "weights/mobilenet_v1_1.0_224_imagenet_partial.npz"
    rle_tf(
        tmp_path, "train", REPOSITORY / "configs/h36m_sample.yaml", "--out", "run",
        "--data-root", h36m_sample, "--set", f"model.weights={weights}",
        "--set", "train.drawn_people=0",
    )  # fmt: skip
    assert metrics(tmp_path / "run")["MPJPE"] < 30
