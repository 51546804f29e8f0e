"""Fixtures shared by the tests, and the two CPU devices that replica code is tested on."""

import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402

from rle_tf.skeletons import COCO17  # noqa: E402

# Before anything touches the runtime: two logical devices on any machine.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def golden():
    """`golden(name)`: the arrays of `tests/golden/<name>.npz`."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


def _sample(folder: str) -> Path:
    root = SAMPLES / folder
    if not root.is_dir():
        pytest.skip(f"needs the sample photographs in {root}, which are not distributed")
    return root


@pytest.fixture(scope="session")
def coco_sample() -> Path:
    """The folder of real COCO photographs, or a skip where it is absent."""
    return _sample("coco")


@pytest.fixture
def write_coco(tmp_path):
    """`write_coco(change=None, people=3)`: a COCO dataset, (annotation file, image folder).

    Photograph i has id 101 + i, 96x80 pixels and one person, annotation 501 + i, whose joints are
    labelled but for the ears. `change(dataset)` edits the annotations before they are written.
    """

    def write(change: Callable[[dict], object] | None = None, people: int = 3):
        rng = np.random.default_rng(0)
        annotations, images = tmp_path / "people.json", tmp_path / "photographs"
        images.mkdir()
        dataset = {"images": [], "annotations": [], "categories": []}
        for index in range(people):
            coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
            name = f"photo_{index}.jpg"
            coarse.resize((96, 80), Image.Resampling.BICUBIC).save(images / name, quality=95)
            dataset["images"].append(
                {"id": 101 + index, "file_name": name, "width": 96, "height": 80}
            )
            joints = np.concatenate(
                [rng.uniform((30, 10), (70, 70), (17, 2)).round(1), np.full((17, 1), 2)], axis=1
            )
            joints[3:5] = 0
            dataset["annotations"].append(
                {
                    "id": 501 + index,
                    "image_id": 101 + index,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [28, 8, 45, 65],
                    "area": 1500.0,
                    "num_keypoints": 15,
                    "keypoints": joints.ravel().tolist(),
                }
            )
        dataset["categories"].append(
            {"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}
        )
        if change:
            change(dataset)
        annotations.write_text(json.dumps(dataset))
        return annotations, images

    return write
