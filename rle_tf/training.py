"""From a config to a trained regressor: the run folder, checkpoints and resuming."""

import json
import logging
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from rle_tf.config import RunConfig, load_config
from rle_tf.data.pipeline import evaluation_batches, named_image_errors, training_batches
from rle_tf.data.source import Source
from rle_tf.distribution import make_strategy
from rle_tf.drawing import contact_sheet, draw_poses
from rle_tf.errors import ConfigError, ModelError
from rle_tf.estimator import PoseEstimator, check_outputs
from rle_tf.evaluation import evaluate, predict_poses

LOG = logging.getLogger(__name__)

# Of each person in a drawn sheet, in pixels.
DRAWN_HEIGHT = 384


@dataclass(frozen=True)
class RunFolder:
    """Files of a run.

    `config.yaml` (resolved), `checkpoints/`, `tensorboard/`, `history.jsonl` (a line an epoch),
    `regressor.keras`, `density.json` (what is left of the flow), `metrics.json` and `results.json`
    (the dataset's submission format).
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
        """(D,) of the flow, by which an expected error is more than sigma; NaN without a flow.

        Raises:
            ModelError: if it has not been written.
        """
        if not self.density.is_file():
            raise ModelError(f"{self.density}: no such file; expected the folder of a run")
        return np.array(json.loads(self.density.read_text())["spread"], float)

    def save_regressor(self, estimator: PoseEstimator) -> None:
        """Writes `regressor.keras` and `density.json`.

        An older regressor stays until the new one is whole.
        """
        unfinished = self.path / f"unfinished_{os.getpid()}.keras"
        estimator.regressor.save(unfinished)
        os.replace(unfinished, self.regressor)
        spread = [None if np.isnan(value) else float(value) for value in flow_spread(estimator)]
        self.density.write_text(json.dumps({"spread": spread}) + "\n")

    def write_scores(self, scores: dict[str, float], results: list[dict]) -> None:
        """Writes `metrics.json` and `results.json`."""
        self.metrics.write_text(json.dumps(_without_nan(scores), indent=2) + "\n")
        self.results.write_text(json.dumps(results))


def _without_nan(scores: dict[str, float]) -> dict[str, float | None]:
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


class Checkpoints:
    """Weights, optimizer and flow after some steps, one file each, the newest last.

    A file is written beside its final name and renamed, so what carries the name is whole.
    """

    PATTERN = re.compile(r"step_(\d+)\.weights\.h5")

    def __init__(self, folder: Path):
        self.folder = folder

    def steps(self) -> list[int]:
        """The steps that there are files of, in order."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := self.PATTERN.fullmatch(name)))

    def save(self, estimator: PoseEstimator, keep: int) -> None:
        """Writes a checkpoint of the optimizer's step and removes all but the `keep` newest."""
        step = int(estimator.optimizer.iterations.numpy())
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"unfinished_{os.getpid()}.weights.h5"
        estimator.save_weights(unfinished)
        os.replace(unfinished, self._file(step))
        for old in self.steps()[:-keep]:
            self._file(old).unlink()

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
                return step
        if problems:
            raise ModelError("; ".join(problems) + "; expected a checkpoint of this config's model")
        return 0

    def _file(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.weights.h5"


def build_estimator(config: RunConfig, source: Source, steps_per_epoch: int) -> PoseEstimator:
    """The compiled estimator of a config, with Adam and its stepwise learning rate."""
    dims = source.records.keypoints.shape[-1]
    regressor = config.model.build(source.skeleton, dims, config.data.image_size)
    estimator = PoseEstimator(regressor, config.loss.build(dims))
    train = config.train
    learning_rate = train.learning_rate
    if train.drop_epochs:
        learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            # Keras drops after the step that a boundary names, counted from 0.
            [epoch * steps_per_epoch - 1 for epoch in train.drop_epochs],
            [learning_rate * train.drop_factor**n for n in range(len(train.drop_epochs) + 1)],
        )
    estimator.compile(keras.optimizers.Adam(learning_rate, global_clipnorm=train.clip_norm))
    # Before a checkpoint is read: what is not built yet is not restored.
    estimator.optimizer.build(estimator.trainable_variables)
    return estimator


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    callbacks: list[keras.callbacks.Callback] | None = None,
) -> dict[str, float]:
    """Trains what a config says into a run folder and scores it on the validation people.

    A `KeyboardInterrupt` leaves a checkpoint of the last step and the regressor as it is then,
    and is raised again.

    Args:
        config: The run.
        out: The run folder.
        resume: Go on from the folder's newest checkpoint, at the very sample where it stopped.
        callbacks: More Keras callbacks, a progress display for one.

    Returns:
        The source's metrics, as in `metrics.json`.

    Raises:
        ConfigError: if `out` holds a run already and `resume` is not set, or a run of another
            config, or a batch size that the replicas cannot share.
        DataError: for data that cannot be used.
        ModelError: if the loss or a weight is no longer a number, or no checkpoint can be read.
    """
    folder = RunFolder(Path(out))
    _claim(folder, config, resume)
    batch_size = config.train.batch_size
    strategy = make_strategy(config.train.strategy, batch_size)
    source = config.open_source("train")
    validation = config.open_source("val", boxes="ground_truth")
    steps_per_epoch = max(1, len(source.records) // batch_size)

    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        estimator = build_estimator(config, source, steps_per_epoch)
    start = folder.checkpoints.restore(estimator) if resume else 0
    if start:
        LOG.info("going on after step %d of %d", start, steps_per_epoch * config.train.epochs)
    folder.path.mkdir(parents=True, exist_ok=True)
    config.save(folder.config)

    # Replicas share every batch evenly; the scores at the end are of everybody.
    replicas = strategy.num_replicas_in_sync
    held_out = validation.records.take(slice(len(validation.records) // replicas * replicas))
    callbacks = [
        _StopAtNaN(folder.checkpoints),
        _SaveCheckpoints(folder.checkpoints, config.train.keep_checkpoints),
        _Evaluate(config, validation),
        _History(folder.history),
        keras.callbacks.TensorBoard(folder.path / "tensorboard", write_graph=False),
        _Drawings(folder.path / "tensorboard", config, validation),
        *(callbacks or []),
    ]

    def fit(start: int, epochs: int, steps: int) -> None:
        estimator.fit(
            training_batches(
                source.records,
                source.skeleton,
                config.data.input_format,
                config.data.augmentation,
                batch_size=batch_size,
                seed=config.seed,
                start=start * batch_size,
            ),
            validation_data=evaluation_batches(
                held_out, source.skeleton, config.data.input_format, batch_size=batch_size
            )
            if len(held_out)
            else None,
            initial_epoch=start // steps_per_epoch,
            epochs=epochs,
            steps_per_epoch=steps,
            callbacks=callbacks,
            shuffle=False,  # the batches come in the order of their sample numbers
            verbose=0,
        )

    try:
        with named_image_errors(source.records), named_image_errors(held_out):
            epoch, done = divmod(start, steps_per_epoch)
            if done:  # the rest of the epoch that was interrupted
                fit(start, epoch + 1, steps_per_epoch - done)
                start = (epoch + 1) * steps_per_epoch
            if start < config.train.epochs * steps_per_epoch:
                fit(start, config.train.epochs, steps_per_epoch)
    except KeyboardInterrupt:
        folder.checkpoints.save(estimator, config.train.keep_checkpoints)
        folder.save_regressor(estimator)
        raise
    folder.save_regressor(estimator)
    return evaluate_run(folder, config, estimator.regressor)


def evaluate_run(
    folder: RunFolder,
    config: RunConfig,
    regressor: keras.Model,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Scores a regressor as `config.evaluate` says and writes the scores into the run folder."""
    scores, results = evaluate(
        regressor,
        config.open_source("val"),
        config.data.input_format,
        batch_size=config.evaluate.batch_size,
        flip_test=config.evaluate.flip_test,
        on_batch=on_batch,
    )
    folder.write_scores(scores, results)
    return scores


# What may change between the parts of a run that is resumed, and all of `evaluate`.
_RESUMABLE = {"train.epochs", "train.evaluate_every", "train.drawn_people",
              "train.keep_checkpoints", "data.source.root"}  # fmt: skip


def _claim(folder: RunFolder, config: RunConfig, resume: bool) -> None:
    if not resume:
        if folder.config.exists():
            raise ConfigError(
                f"{folder.path}: holds a run already; expected a new folder (--out) or --resume"
            )
        return
    if not folder.config.exists():
        raise ConfigError(f"{folder.path}: holds no run to resume; expected its config.yaml")
    before, now = (_flat(c.model_dump(mode="json")) for c in (load_config(folder.config), config))
    changed = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and key not in _RESUMABLE
        and not key.startswith("evaluate.")
    ]
    if changed:
        raise ConfigError(
            f"{folder.config}: the run was started with another config: {'; '.join(changed)}; "
            "expected the same to resume it"
        )


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


class _StopAtNaN(keras.callbacks.Callback):
    """Stops before weights that are no numbers reach a checkpoint."""

    def __init__(self, checkpoints: Checkpoints):
        super().__init__()
        self.checkpoints = checkpoints

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            self._stop(f"the loss is {float(logs['loss'])}")

    def on_epoch_end(self, epoch, logs=None):
        # The loss of an epoch's last step says nothing of what that step made of the weights.
        for variable in self.model.trainable_variables:
            if not np.isfinite(variable.numpy()).all():
                self._stop(f"a value of {variable.path} is no finite number")

    def _stop(self, found: str) -> NoReturn:
        steps = self.checkpoints.steps()
        saved = f"the checkpoint of step {steps[-1]} is good" if steps else "nothing was saved"
        raise ModelError(
            f"{found} at step {int(self.model.optimizer.iterations.numpy())}; expected a number; "
            f"{saved}; try a lower train.learning_rate or a train.clip_norm"
        )


class _SaveCheckpoints(keras.callbacks.Callback):
    """A checkpoint after each epoch."""

    def __init__(self, checkpoints: Checkpoints, keep: int):
        super().__init__()
        self.checkpoints = checkpoints
        self.keep = keep

    def on_epoch_end(self, epoch, logs=None):
        self.checkpoints.save(self.model, self.keep)


class _Evaluate(keras.callbacks.Callback):
    """Adds the dataset's scores to the logs of every `evaluate_every`-th epoch."""

    def __init__(self, config: RunConfig, source: Source):
        super().__init__()
        self.config = config
        self.source = source

    def on_epoch_end(self, epoch, logs=None):
        every = self.config.train.evaluate_every
        if every and (epoch + 1) % every == 0:
            scores, _ = evaluate(
                self.model.regressor,
                self.source,
                self.config.data.input_format,
                batch_size=self.config.evaluate.batch_size,
                flip_test=self.config.evaluate.flip_test,
            )
            logs.update({f"val_{name}": value for name, value in scores.items()})


class _History(keras.callbacks.Callback):
    """A line of JSON an epoch; a resumed run goes on in the same file."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        line = {"epoch": epoch + 1} | _without_nan(logs)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class _Drawings(keras.callbacks.Callback):
    """A few validation people with the poses predicted for them, for TensorBoard."""

    def __init__(self, log_dir: Path, config: RunConfig, source: Source):
        super().__init__()
        self.log_dir = log_dir
        self.config = config
        count = min(config.train.drawn_people, len(source.records))
        # Spread over the dataset: neighbours are often of one photograph.
        rows = np.linspace(0, len(source.records) - 1, count).astype(int)
        self.source = source.take(rows)

    def on_epoch_end(self, epoch, logs=None):
        if not len(self.source.records):
            return
        spread = flow_spread(self.model)
        sheet = draw_people(self.model.regressor, self.source, self.config, spread)
        writer = tf.summary.create_file_writer(str(self.log_dir / "drawings"))
        with writer.as_default(step=epoch):
            tf.summary.image("validation people", np.asarray(sheet)[None])
        writer.close()


def flow_spread(estimator: PoseEstimator) -> np.ndarray:
    """(D,) `RealNVP.spread` of an estimator; NaN without a flow, where sigma is not trained."""
    if estimator.flow is None:
        return np.full(estimator.regressor.output["mu"].shape[-1], np.nan)
    return estimator.flow.spread()


def draw_people(
    regressor: keras.Model, source: Source, config: RunConfig, spread: np.ndarray
) -> Image.Image:
    """A sheet of the crops of all people of a source with their predicted poses."""
    poses = predict_poses(
        regressor,
        source.records,
        source.skeleton,
        config.data.input_format,
        flip_test=False,
        spread=spread,
    )
    cells = []
    for row, path in enumerate(source.records.image_paths):
        # Outwards, so that the smallest box still has a pixel.
        left, top = np.floor(poses.crop_boxes_xyxy[row, :2]).astype(int).tolist()
        right, bottom = np.ceil(poses.crop_boxes_xyxy[row, 2:]).astype(int).tolist()
        with Image.open(path) as image:
            crop = image.convert("RGB").crop((left, top, right, bottom))
        scale = DRAWN_HEIGHT / crop.height
        crop = crop.resize((round(crop.width * scale), DRAWN_HEIGHT))
        cells.append(
            draw_poses(
                crop,
                (poses.keypoints_px[[row]] - (left, top)) * scale,
                poses.sigma_px[[row]] * scale,
                source.skeleton,
            )
        )
    return contact_sheet(cells, columns=4)
