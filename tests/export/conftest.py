"""What 3D models take, for the tests of both formats."""

import numpy as np
import pytest


def _views(batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + batch)
    low = rng.uniform(-50, 700, (batch, 2))
    view = {
        "crop_box_xyxy": np.concatenate([low, low + rng.uniform(100, 400, (batch, 2))], axis=1),
        "focal_px": rng.uniform(1000, 1200, (batch, 2)),
        "centre_px": rng.uniform(450, 550, (batch, 2)),
        "root_depth_mm": rng.uniform(3000, 6000, batch),
    }
    return {name: value.astype(np.float32) for name, value in view.items()}


def _detections(batch: int, joints: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(200 + batch)
    wh = rng.integers(500, 1200, (batch, 2))
    keypoints_px = rng.uniform(0, 1, (batch, joints, 2)) * wh[:, None]
    return {"keypoints_px": keypoints_px.astype(np.float32), "image_wh": wh.astype(np.float32)}


@pytest.fixture(scope="session")
def views():
    """`views(batch)`: what `to_camera` takes beside the image; every row another box and camera."""
    return _views


@pytest.fixture(scope="session")
def detections():
    """`detections(batch, joints)`: what a lifter takes, in photographs that differ in size."""
    return _detections
