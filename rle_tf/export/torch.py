"""A regressor and its flow as a PyTorch state dict in the RLE authors' layout."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from rle_tf.checkpoints import crops_of, state_dict
from rle_tf.config import RunConfig
from rle_tf.errors import ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.files import write_whole, written


def export_torch(estimator: PoseEstimator, config: RunConfig, path: str | Path) -> Path:
    """Writes `rle_tf.checkpoints.state_dict` with `torch.save`, and a JSON beside it that says what
    crops are like.

    `rle-tf import` reads it to the bit; their code, whose flow has 6 couplings of width 64, loads
    it where this one has, too.

    Args:
        estimator: The regressor with the loss that holds its flow.
        config: Of its run.
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
    write_whole(path.with_suffix(".json"), json.dumps(crops_of(config), indent=1) + "\n")
    return path


def check_torch_installed() -> None:
    """ModelError unless the package of the extra is there."""
    if importlib.util.find_spec("torch") is None:
        raise ModelError("--format torch: PyTorch is not installed; pip install 'rle-tf[torch]'")
