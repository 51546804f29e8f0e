"""`rle-tf import` and `rle-tf export --format torch`, from a file to a file."""

import numpy as np
import pytest

from rle_tf.checkpoints import state_dict
from rle_tf.estimator import PoseEstimator
from rle_tf.flow import RealNVP
from rle_tf.losses import RLELoss
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17


@pytest.mark.slow
def test_from_the_command_line_and_back(rle_tf, tmp_path):
    torch = pytest.importorskip("torch")
    regressor = build_regressor("resnet18", COCO17, 2, (64, 64))
    authors = state_dict(PoseEstimator(regressor, RLELoss(RealNVP(2))))
    tensors = {f"module.{key}": torch.from_numpy(value) for key, value in authors.items()}
    torch.save({"state_dict": tensors, "epoch": 270}, tmp_path / "pose.pth")
    said = rle_tf(
        tmp_path, "import", "pose.pth", "--set", "data.image_size=[64, 64]", "--data-root", "coco"
    )
    assert "resnet18, 17 joints in 2D" in said and "written: saved_models/pose" in said
    rle_tf(tmp_path, "export", "saved_models/pose", "--format", "torch", "--format", "savedmodel")
    state = torch.load(tmp_path / "saved_models/pose/1.pth", weights_only=True)
    for key, value in authors.items():
        np.testing.assert_array_equal(state[key].numpy(), value)
    assert (tmp_path / "saved_models/pose/1/saved_model.pb").is_file()
    said = rle_tf(tmp_path, "import", "pose.pth", status=1)
    assert "saved_models/pose: has a model already" in said
