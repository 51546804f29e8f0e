"""What a training run leaves on disk: config, checkpoints, regressor and scores."""

import json
import logging
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import NoReturn
from zipfile import BadZipFile

import keras
import numpy as np

from rle_tf.config import RunConfig, load_config
from rle_tf.errors import ModelError
from rle_tf.estimator import PoseEstimator, check_outputs
from rle_tf.files import write_whole, written
from rle_tf.losses import PoseLoss

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Files of a run.

    `config.yaml` (resolved), `checkpoints/`, `tensorboard/`, `history.jsonl` (a line an epoch),
    `regressor.keras`, `flow.npz` (what it was trained with), `density.json` (what one sigma is
    worth), `metrics.json` and `results.json` (the dataset's submission format), and where it was
    calibrated `calibration.json`, and `calibration_report.json` and `.png`.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def regressor(self) -> Path:
        return self.path / "regressor.keras"

    @property
    def density(self) -> Path:
        return self.path / "density.json"

    @property
    def flow(self) -> Path:
        return self.path / "flow.npz"

    @property
    def calibration(self) -> Path:
        return self.path / "calibration.json"

    @property
    def calibration_report(self) -> Path:
        return self.path / "calibration_report.json"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @cached_property
    def checkpoints(self) -> "Checkpoints":
        return Checkpoints(self.path / "checkpoints")

    def load(self) -> tuple[RunConfig, keras.Model]:
        """The resolved config and the regressor.

        Raises:
            ModelError: if there is no finished or interrupted run.
        """
        for file in (self.config, self.regressor):
            if not file.is_file():
                raise ModelError(f"{file}: no such file; expected the folder of a training run")
        return load_config(self.config), load_regressor(self.regressor)

    @property
    def spread(self) -> np.ndarray:
        """(D,) or (K, D) `PoseLoss.spread`, by which an expected error is more than sigma; NaN
        where no sigma is trained.

        Raises:
            ModelError: if it has not been written.
        """
        if not self.density.is_file():
            raise ModelError(f"{self.density}: no such file; expected the folder of a run")
        return np.array(json.loads(self.density.read_text())["spread"], float)

    def load_loss(self, config: RunConfig, joints: int, dims: int) -> PoseLoss:
        """The loss of the run with its trained flow.

        Args:
            config: The run's.
            joints, dims: Of the regressor's poses.

        Raises:
            ModelError: if the flow was not written, or is of another loss.
        """
        loss = config.loss.build(dims, joints)
        self._read_flows(loss)
        return loss

    def copy_weights(self, estimator: PoseEstimator) -> None:
        """Fills an estimator with the run's regressor, whose images may have had another size, and
        its flow; where the losses have other flows the estimator's stays as it is.

        Raises:
            ModelError: if there is no run, or its regressor has other weights.
        """
        _, regressor = self.load()
        pairs = list(zip_longest(estimator.regressor.weights, regressor.weights))
        for ours, theirs in pairs:
            shapes = [None if v is None else tuple(v.shape) for v in (theirs, ours)]
            if shapes[0] != shapes[1]:
                name = (ours if theirs is None else theirs).path
                raise ModelError(
                    f"{self.regressor}: {name}: found {shapes[0]}; expected {shapes[1]}, as the "
                    "config's model has it"
                )
        for ours, theirs in pairs:
            ours.assign(theirs)
        try:
            self._read_flows(estimator.loss)
        except ModelError as error:
            LOG.info("the flow starts anew: %s", error)

    def _read_flows(self, loss: PoseLoss) -> None:
        variables = [variable for flow in loss.flows for variable in flow.weights]
        if not variables:
            return
        if not self.flow.is_file():
            raise ModelError(
                f"{self.flow}: no such file; expected the flow of a run (one of an older version "
                "is written again by rle-tf train ... --resume)"
            )
        try:
            with np.load(self.flow) as content:
                values = list(content.values())
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise ModelError(f"{self.flow}: cannot be read as a flow: {error}") from None
        found, wanted = [v.shape for v in values], [tuple(v.shape) for v in variables]
        if found != wanted:
            differ = (
                f", the first that differs of {one} and not {other}"
                for one, other in zip(found, wanted, strict=False)
                if one != other
            )
            raise ModelError(
                f"{self.flow}: holds {len(values)} arrays{next(differ, '')}; expected the "
                f"{len(variables)} of loss '{loss.name}' as the config describes it"
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def save_regressor(self, estimator: PoseEstimator) -> None:
        """Writes `regressor.keras`, `flow.npz` and `density.json`.

        Weights are their moving averages where the optimizer keeps some, and the regressor computes
        in float32 whatever it was trained in. An older regressor stays until the new one is whole.
        """
        with estimator.averaged():
            with written(self.regressor) as unfinished:
                in_float32(estimator.regressor).save(unfinished)
            with written(self.flow) as unfinished:
                flows = (value for flow in estimator.flows for value in flow.get_weights())
                np.savez(unfinished, *flows)
            spread = estimator.spread()
            spread = np.where(np.isnan(spread), None, spread).tolist()
            write_whole(self.density, json.dumps({"spread": spread}) + "\n")

    def write_scores(self, scores: dict[str, float], results: list[dict]) -> None:
        """Writes `metrics.json` and `results.json`."""
        write_whole(self.metrics, json.dumps(without_nan(scores), indent=2) + "\n")
        write_whole(self.results, json.dumps(results))


def without_nan(scores: dict[str, float]) -> dict[str, float | None]:
    """A metric without ground truth is NaN, which JSON does not know."""
    return {key: None if np.isnan(value) else float(value) for key, value in scores.items()}


def load_regressor(path: Path) -> keras.Model:
    """A saved regressor.

    Raises:
        ModelError: if the file is no Keras model with the regressor's outputs.
    """
    try:
        regressor = keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read as a Keras model: {error}") from None
    check_outputs(regressor, f"{path}:")
    return regressor


def in_float32(regressor: keras.Model) -> keras.Model:
    """The regressor itself, or where layers of it compute in 16 bits a copy that does not."""
    config = json.dumps(regressor.get_config())
    single = re.sub(r'"mixed_b?float16"', '"float32"', config)
    if single == config:
        return regressor
    copy = type(regressor).from_config(json.loads(single))
    copy.set_weights(regressor.get_weights())
    return copy


class Checkpoints:
    """Weights, optimizer and flow after some steps, one file each, the newest last.

    A file is written beside its final name and renamed, so what carries the name is whole.
    """

    PATTERN = re.compile(r"step_(\d+)\.weights\.h5")

    def __init__(self, folder: Path):
        self.folder = folder
        # The newest that was written or read, and so is known to be whole.
        self.good: int | None = None

    def steps(self) -> list[int]:
        """The steps that there are files of, in order."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := self.PATTERN.fullmatch(name)))

    def save(self, estimator: PoseEstimator, keep: int) -> None:
        """Writes a checkpoint of the estimator's step and removes all but the `keep` newest.

        Raises:
            ModelError: if a weight is no finite number, or the disk is full; the older checkpoints
                stay.
        """
        step = int(estimator.steps.numpy())
        values = (*estimator.weights, *estimator.optimizer.variables)
        for variable in values:
            if not np.isfinite(variable.numpy()).all():
                self.refuse(f"a value of {variable.path} is no finite number", step)
        self.folder.mkdir(parents=True, exist_ok=True)
        for killed in self.folder.glob("unfinished_*"):
            killed.unlink()
        # HDF5 crashes the whole process where the disk fills up while it writes.
        size = 2**20 + int(1.1 * sum(value.numpy().nbytes for value in values))
        try:
            with written(self._file(step), size) as unfinished:
                estimator.save_weights(unfinished)
        except OSError as error:
            raise ModelError(
                f"{error.filename}: cannot be written: {error.strerror}; {self._left()}"
            ) from None
        self.good = step
        # Later ones could not be read, or the run would not be here.
        steps = self.steps()
        kept = [each for each in steps if each <= step][-keep:]
        for old in set(steps) - set(kept):
            self._file(old).unlink()

    def refuse(self, found: str, step: int, where: str = "") -> NoReturn:
        """Stops a run that has come to no numbers, and says what is left of it."""
        raise ModelError(
            f"{found} at step {step}{where}; expected a number; {self._left()}; try a lower "
            "train.learning_rate or a train.clip_norm"
        )

    def restore(self, estimator: PoseEstimator) -> int:
        """Loads the newest readable checkpoint and returns its step; 0 where there is none.

        Raises:
            ModelError: if there are checkpoints and none can be read.
        """
        problems = []
        for step in reversed(self.steps()):
            file = self._file(step)
            try:
                with warnings.catch_warnings():
                    # Where the file lacks a layer, Keras warns and leaves what is there.
                    warnings.simplefilter("error", UserWarning)
                    estimator.load_weights(file)
            except (OSError, ValueError, KeyError, UserWarning) as error:
                reason = str(error).partition("\n")[0]
                problems.append(f"{file}: {reason}")
                LOG.warning("%s cannot be read, trying the one before: %s", file, reason)
            else:
                self.good = step
                return step
        if problems:
            raise ModelError("; ".join(problems) + "; expected a checkpoint of this config's model")
        return 0

    def _left(self) -> str:
        good = self.good
        return "nothing was saved" if good is None else f"the checkpoint of step {good} is good"

    def _file(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.weights.h5"
