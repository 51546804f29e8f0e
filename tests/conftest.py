"""Fixtures shared by the tests, and the two CPU devices that replica code is tested on."""

import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `import rle_tf` would, if it came first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402
from PIL import Image  # noqa: E402

from rle_tf import build_regressor, export_savedmodel  # noqa: E402
from rle_tf.skeletons import COCO17, MPII16  # noqa: E402

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


@pytest.fixture(scope="session")
def h36m_sample() -> Path:
    """The folder of four real frames of Human3.6M, or a skip where it is absent."""
    return _sample("h36m")


@pytest.fixture(scope="session")
def mpii_sample() -> Path:
    """The folder of five real photographs of MPII, or a skip where it is absent."""
    return _sample("mpii")


@pytest.fixture(scope="session")
def lsp_sample() -> Path:
    """The folder of real photographs of LSP extended, or a skip where it is absent."""
    return _sample("lspet")


@pytest.fixture(scope="session")
def exported_resnet(tmp_path_factory) -> Path:
    """An image regressor with random weights, 17 joints, 64x32, as `rle-tf export` writes it."""
    keras.utils.set_random_seed(0)
    regressor = build_regressor("resnet18", COCO17, 2, (64, 32), output_layer="layer2_1_out")
    rng = np.random.default_rng(1)
    for weight in regressor.weights:  # heads start near 0: every joint would be in one place
        if "mu" in weight.path or "sigma" in weight.path:
            bias = -2.5 if "sigma" in weight.path and weight.ndim == 1 else 0
            weight.assign(rng.normal(bias, 0.2, weight.shape))
    return export_savedmodel(
        regressor,
        tmp_path_factory.mktemp("models") / "resnet",
        skeleton=COCO17,
        mean=(0.4, 0.45, 0.5),
        std=(0.2, 0.25, 0.3),
        box_margin=1.25,
        spread=[0.8, 0.5],
    )


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


@pytest.fixture
def write_mpii(write_coco):
    """`write_mpii(change=None, people=3)`: `write_coco`'s dataset with MPII's joints, all labelled
    but for the hips."""

    def write(change: Callable[[dict], object] | None = None, people: int = 3):
        def mpii(dataset):
            dataset["categories"][0]["keypoints"] = list(MPII16.joints)
            for entry in dataset["annotations"]:
                joints = np.reshape(entry["keypoints"], (17, 3))[:16]
                joints[:, 2] = 2
                joints[2:4] = 0
                entry.update(keypoints=joints.ravel().tolist(), num_keypoints=14)
            if change:
                change(dataset)

        return write_coco(mpii, people)

    return write


# Somebody who stands at the world's origin and looks along -y, z up, millimetres: H36M18's joints
# but the thorax.
STANDING_MM = [
    (0, 0, 900), (-130, 0, 890), (-140, -20, 470), (-150, 20, 60), (130, 0, 890), (140, -20, 470),
    (150, 20, 60), (0, 10, 1130), (0, 0, 1380), (0, -90, 1450), (0, 0, 1560), (160, 0, 1340),
    (210, 10, 1060), (230, -60, 810), (-160, 0, 1340), (-210, 10, 1060), (-230, -60, 810),
]  # fmt: skip


@pytest.fixture
def write_h36m(tmp_path):
    """`write_h36m(change=None, people=3)`: a Human3.6M dataset, (annotation file, image folder).

    Frame i has id 101 + i, 96x80 pixels and one person, annotation 501 + i, of subject 11 and
    action 2 + i, in a folder of its own. `change(dataset)` edits the annotations before they are
    written.
    """

    def write(change: Callable[[dict], object] | None = None, people: int = 3):
        rng = np.random.default_rng(0)
        annotations, images = tmp_path / "h36m.json", tmp_path / "frames"
        dataset = {"images": [], "annotations": []}
        for index in range(people):
            sequence = f"s_11_act_{2 + index:02}_subact_01_ca_01"
            name = f"{sequence}/{sequence}_000001.jpg"
            (images / sequence).mkdir(parents=True)
            coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
            coarse.resize((96, 80), Image.Resampling.BICUBIC).save(images / name, quality=95)
            dataset["images"].append(
                {
                    "id": 101 + index,
                    "file_name": name,
                    "width": 96,
                    "height": 80,
                    "subject": 11,
                    "action_name": ("Directions", "Discussion", "Eating")[index % 3],
                    "action_idx": 2 + index,
                    "subaction_idx": 1,
                    "cam_idx": 1,
                    "frame_idx": 1,
                }
            )
            world_mm = rng.normal(STANDING_MM, 15) + (20 * (index % 4), 0, 0)
            # Level, at the height of the waist, 4 m before the person.
            camera = {"R": [[1, 0, 0], [0, 0, -1], [0, 1, 0]], "t": [0, -4000, 850.0]}
            camera |= {"f": [180.0, 181.0], "c": [47.5, 40]}
            seen_mm = (world_mm - camera["t"]) @ np.transpose(camera["R"])
            pixels = seen_mm[:, :2] / seen_mm[:, 2:] * camera["f"] + camera["c"]
            low, high = pixels.min(axis=0) - 3, pixels.max(axis=0) + 3
            dataset["annotations"].append(
                {
                    "id": 501 + index,
                    "image_id": 101 + index,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "keypoints_world": world_mm.tolist(),
                    "cam_param": camera,
                }
            )
        if change:
            change(dataset)
        annotations.write_text(json.dumps(dataset))
        return annotations, images

    return write
