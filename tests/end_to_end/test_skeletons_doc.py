"""docs/skeletons.md, typed as it stands: hands of 21 joints, from annotations to a prediction."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rle_tf.skeleton_file import read_skeleton

TEXT = (Path(__file__).parents[2] / "docs/skeletons.md").read_text()
SKELETON, RECIPE = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", TEXT, re.S)


@pytest.fixture
def hand(tmp_path):
    (tmp_path / "hand21.yaml").write_text(SKELETON)
    return read_skeleton(tmp_path / "hand21.yaml")


def test_the_skeleton_is_one(hand):
    assert len(hand.joints) == len(hand.oks_sigmas) == 21
    assert hand.flip_permutation == tuple(range(21))
    # Every joint hangs from the wrist, by one bone.
    assert sorted(end for _, end in hand.bones) == list(range(1, 21))


def draw_hands(folder: Path, joints: list[str], split: str, first: int, count: int) -> None:
    """Photographs of a kind: fingers as lines, at an angle of each hand's own."""
    rng = np.random.default_rng(first)
    images, annotations = [], []
    for number in range(first, first + count):
        angles = rng.uniform(-0.4, 0.4) + np.linspace(-0.8, 0.8, 5)[:, None]
        reach = np.array([14, 22, 29, 35]) * rng.uniform(0.8, 1.2)
        tips = np.stack([np.sin(angles) * reach, -np.cos(angles) * reach], axis=-1)
        points = np.concatenate([[[0, 0]], tips.reshape(-1, 2)]) + (48, 60)
        image = Image.new("RGB", (96, 96), tuple(rng.integers(100, 255, 3).tolist()))
        pen = ImageDraw.Draw(image)
        for finger in range(5):
            places = [points[0], *points[1 + 4 * finger : 5 + 4 * finger]]
            pen.line([tuple(p) for p in places], fill=(40 * finger, 20, 30), width=4)
        image.save(folder / "images" / f"{number:03}.png")
        images.append({"id": number, "file_name": f"{number:03}.png", "width": 96, "height": 96})
        low, extent = points.min(axis=0) - 3, np.ptp(points, axis=0) + 6
        keypoints = np.concatenate([points, np.full((21, 1), 2)], axis=1)
        annotations.append(
            {"id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
             "bbox": [*low, *extent], "area": float(extent.prod()),
             "keypoints": keypoints.ravel().tolist(), "num_keypoints": 21}
        )  # fmt: skip
    category = {"id": 1, "name": "hand", "keypoints": list(joints), "skeleton": []}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_what_it_says_can_be_typed(hand, tmp_path, rle_tf):
    (tmp_path / "hands.yaml").write_text(RECIPE)
    (tmp_path / "hands/images").mkdir(parents=True)
    draw_hands(tmp_path / "hands", hand.joints, "train", 0, 160)
    draw_hands(tmp_path / "hands", hand.joints, "val", 160, 24)
    for command in COMMANDS.splitlines():
        program, *arguments = command.split()
        assert program == "rle-tf"
        rle_tf(tmp_path, *arguments)
    scores = json.loads((tmp_path / "runs/hands/metrics.json").read_text())
    assert 0 <= scores["AP"] <= 1 and scores["PCK@0.1"] > 0.15
    assert "error_px/little4" in scores
    assert (tmp_path / "saved_models/hands/1/saved_model.pb").is_file()
    (entry,) = json.loads((tmp_path / "poses/predictions.json").read_text())
    assert [joint["name"] for joint in entry["people"][0]["joints"]] == list(hand.joints)
