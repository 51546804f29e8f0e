"""Fixtures shared by the tests, and the two CPU devices that replica code is tested on."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

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
