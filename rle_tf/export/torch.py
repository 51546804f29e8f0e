"""A regressor and its flow as a PyTorch state dict in the RLE authors' layout."""

import importlib.util
from pathlib import Path

import numpy as np

from rle_tf.checkpoints import state_dict
from rle_tf.errors import ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.files import written


def export_torch(estimator: PoseEstimator, path: str | Path) -> Path:
    """Writes `rle_tf.checkpoints.state_dict` with `torch.save`.

    Their code loads it (`load_state_dict`, strict), and so does `rle-tf import`, to the bit.

    Args:
        estimator: The regressor with the loss that holds its flow.
        path: The file to write, replaced when it is complete; its folder is made if absent.

    Returns:
        `path`.

    Raises:
        ModelError: The extra `torch` is not installed, or it is a model that their code does not
            have: another head or loss, or a backbone that is no whole ResNet.
    """
    check_torch_installed()
    import torch  # of the extra

    path = Path(path)
    state = {key: torch.from_numpy(np.array(v)) for key, v in state_dict(estimator).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as unfinished:
        torch.save(state, unfinished)
    return path


def check_torch_installed() -> None:
    """ModelError unless the package of the extra is there."""
    if importlib.util.find_spec("torch") is None:
        raise ModelError("--format torch: PyTorch is not installed; pip install 'rle-tf[torch]'")
