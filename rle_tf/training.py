"""From a config to a trained and scored regressor; resuming a run that was interrupted."""

import atexit
import logging
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir

import keras
import numpy as np
import tensorflow as tf

from rle_tf.callbacks import Drawings, Evaluate, History, KeepWeights, Save, StopAtNaN
from rle_tf.config import RunConfig, load_config
from rle_tf.data.pipeline import (
    PhotographedPeople,
    Shard,
    epoch_size,
    evaluation_batches,
    named_image_errors,
)
from rle_tf.data.records import PackedPeople
from rle_tf.data.service import check_service, served, watched_service
from rle_tf.data.source import Source
from rle_tf.distribution import (
    agree,
    distribute,
    from_chief,
    is_chief,
    make_strategy,
    named_lost_workers,
)
from rle_tf.errors import ConfigError, DataError, ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.evaluation import evaluate
from rle_tf.optimization import build_optimizer
from rle_tf.run_folder import RunFolder
from rle_tf.skeletons import Skeleton

LOG = logging.getLogger(__name__)

_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def build_estimator(
    config: RunConfig, people: PhotographedPeople | PackedPeople, steps_per_epoch: int
) -> PoseEstimator:
    """The compiled estimator of a config, for the joints of the people of `open_training`."""
    train = config.train
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_POLICIES[train.precision])
    try:
        regressor = config.model.build(people.skeleton, people.dims, config.data.image_size)
    finally:
        keras.config.set_dtype_policy(policy)
    for layer in regressor._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = train.sync_batch_norm
    estimator = PoseEstimator(
        regressor,
        config.loss.build(people.dims, len(people.skeleton.joints)),
        map_weight=train.map_weight,
        joint_weights=_joint_weights(train.joint_weights, people.skeleton),
    )
    estimator.compile(
        build_optimizer(train, steps_per_epoch),
        accumulate=train.accumulate,
        jit_compile=train.jit_compile,
        steps_per_execution=train.steps_per_execution,
    )
    # Before a checkpoint is read: what is not built yet is not restored.
    estimator.optimizer.build(estimator.trainable_variables)
    return estimator


def _joint_weights(weights: dict[str, float], skeleton: Skeleton) -> list[float] | None:
    if unknown := sorted(weights.keys() - set(skeleton.joints)):
        raise ConfigError(
            f"train.joint_weights: found {', '.join(unknown)}; expected joints of "
            f"'{skeleton.name}': {', '.join(skeleton.joints)}"
        )
    return [weights.get(joint, 1.0) for joint in skeleton.joints] if weights else None


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    callbacks: list[keras.callbacks.Callback] | None = None,
) -> dict[str, float]:
    """Trains what a config says into a run folder and scores it on the validation people.

    A `KeyboardInterrupt`, or an image that turns out to be damaged, leaves a checkpoint of the
    last step and the regressor as it is then.

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
        WorkerLost: if another worker of the cluster is gone.
    """
    # First: workers of a cluster meet before TensorFlow computes anything.
    strategy = make_strategy(
        config.train.strategy, config.train.batch_size, config.train.accumulate
    )
    with named_lost_workers(strategy, f"checkpoints are in {out}"):
        return _train(config, RunFolder(Path(out)), strategy, resume, callbacks or [])


def _train(
    config: RunConfig,
    folder: RunFolder,
    strategy: tf.distribute.Strategy,
    resume: bool,
    callbacks: list[keras.callbacks.Callback],
) -> dict[str, float]:
    chief = is_chief(strategy)
    if chief:
        _claim(folder, config, resume)
    batch_size = config.train.batch_size
    model, started = config.model, config.train.start or folder.checkpoints.steps()
    if model.kind == "image" and not started:
        if model.trained != "all":
            raise ConfigError(
                f"model.trained: found {model.trained} without train.start, so that the rest would "
                "stay random; expected train.start, or all"
            )
        if model.freeze and not model.weights:
            raise ConfigError(
                f"model.freeze: found {model.freeze!r} with random weights, which would never be "
                "trained; expected model.weights, train.start, or null"
            )
    # All that is read later is opened now: a missing file is found before days of training.
    people, scored = config.open_training(), config.open_source("val")
    annotated = config.evaluate.boxes == "ground_truth"
    validation = scored if annotated else config.open_source("val", boxes="ground_truth")
    service = config.data.service
    if service:
        check_service(service)
    steps_per_epoch = _steps_per_epoch(config, people.parts)

    keras.utils.set_random_seed(config.seed)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    built = config
    # A checkpoint holds the weights that the run started from.
    if resume and folder.checkpoints.steps() and config.model.kind == "image":
        built = config.model_copy(
            update={"model": config.model.model_copy(update={"weights": None})}
        )
    with strategy.scope():
        estimator = build_estimator(built, people, steps_per_epoch)
    start = folder.checkpoints.restore(estimator) if resume else 0
    digest = zlib.crc32(config.model_dump_json().encode())
    agree(
        strategy, {"the recipe's checksum": digest, f"{folder.path}: the step to go on at": start}
    )
    if config.train.start and not start:
        RunFolder(Path(config.train.start).expanduser()).copy_weights(estimator)
    if start:
        LOG.info("going on after step %d of %d", start, steps_per_epoch * config.train.epochs)
    if service:
        # Of this attempt: an older one of the same name would go on where that had come to.
        job = f"{config.name}-{from_chief(strategy, secrets.randbits(31))}"
    left = f"checkpoints are in {folder.path}"
    if not chief:
        folder = _unwanted(folder, strategy.cluster_resolver.task_id)
        folder.checkpoints.good = start or None
    folder.path.mkdir(parents=True, exist_ok=True)
    config.save(folder.config)

    def images(step: int) -> list[str]:
        if service:  # whose batches come in any order
            return []
        spec = strategy.cluster_resolver and strategy.cluster_resolver.cluster_spec().as_dict()
        workers = sum(map(len, (spec or {}).values())) or 1
        return people.images(step, config.input_format, batch_size, config.seed, workers)

    callbacks = [
        KeepWeights(),
        StopAtNaN(folder.checkpoints, images),
        Evaluate(config, validation),
        History(folder.history, start // steps_per_epoch),
        # After the history: an epoch that is saved has its line, also where Ctrl-C comes between.
        Save(folder, config.train, steps_per_epoch),
        keras.callbacks.TensorBoard(folder.path / "tensorboard", write_graph=False),
        Drawings(folder.path / "tensorboard", config, validation),
        *callbacks,
    ]

    def fit(start: int, epochs: int, steps: int) -> None:
        def training(shard: Shard) -> tf.data.Dataset:
            # Of a service all take whole batches of a replica, whichever comes.
            replicas = Shard(replicas=shard.workers * shard.replicas)
            batches = people.batches(
                config.input_format,
                config.data.augmentation,
                batch_size=batch_size,
                seed=config.seed,
                start=start * batch_size,
                shard=replicas if service else shard,
            )
            return served(batches, service, f"{job}-{start}") if service else batches

        def held_out(shard: Shard) -> tf.data.Dataset:
            return evaluation_batches(
                validation.records,
                people.skeleton,
                config.input_format,
                batch_size=batch_size,
                shard=shard,
            )

        enough = len(validation.records) >= strategy.num_replicas_in_sync
        estimator.fit(
            distribute(strategy, training),
            validation_data=distribute(strategy, held_out) if enough else None,
            initial_epoch=start // steps_per_epoch,
            epochs=epochs,
            steps_per_epoch=steps,
            callbacks=callbacks,
            shuffle=False,  # the batches come in the order of their sample numbers
            verbose=0,
        )

    try:
        with (
            people.named_errors(config.input_format),
            named_image_errors(validation.records, config.input_format),
            # Before images are suspected.
            named_lost_workers(strategy, left),
            watched_service(service, left) if service else nullcontext(),
        ):
            epoch, done = divmod(start, steps_per_epoch)
            if done:  # the rest of the epoch that was interrupted
                fit(start, epoch + 1, steps_per_epoch - done)
                start = (epoch + 1) * steps_per_epoch
            if start < config.train.epochs * steps_per_epoch:
                fit(start, config.train.epochs, steps_per_epoch)
    except tf.errors.ResourceExhaustedError as error:  # memory, or a disk that logs are written to
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{folder.path}: {reason:.300}; {left}") from error
    except (KeyboardInterrupt, DataError):
        # In a cluster the others do not know, and would not join in reading what is shared.
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            folder.checkpoints.save(estimator, config.train.keep_checkpoints)
            folder.save_regressor(estimator)
        raise
    folder.save_regressor(estimator)
    with estimator.averaged():
        return evaluate_run(folder, config, estimator.regressor, scored, estimator.spread())


def _unwanted(folder: RunFolder, task: int) -> RunFolder:
    """Where a worker writes that is not the chief: what replicas share is read by all workers at
    once or by none, so all do what the chief does. The same folder again after a kill."""
    digest = zlib.crc32(str(folder.path.absolute()).encode())
    path = Path(gettempdir()) / f"rle_tf_{getuser()}_{digest:08x}_{task}"
    shutil.rmtree(path, ignore_errors=True)
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return RunFolder(path)


def _steps_per_epoch(config: RunConfig, parts: Sequence[int]) -> int:
    """A multiple of the steps of an execution, since Keras runs executions to their end."""
    train = config.train
    if train.steps_per_epoch:
        return train.steps_per_epoch
    steps = max(1, epoch_size(parts) // train.batch_size)
    if steps < train.steps_per_execution:
        raise ConfigError(
            f"train.steps_per_execution: found {train.steps_per_execution}; an epoch has {steps} "
            "steps, expected no more"
        )
    return steps // train.steps_per_execution * train.steps_per_execution


def evaluate_run(
    folder: RunFolder,
    config: RunConfig,
    regressor: keras.Model,
    source: Source,
    spread: np.ndarray,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Scores a regressor as `config.evaluate` says and writes the scores into the run folder.

    Args:
        folder: Where `metrics.json` and `results.json` go.
        config: The run.
        regressor: What is scored.
        source: Whom it is scored on, `config.open_source("val")`.
        spread, on_batch: As in `evaluation.predict_poses`.
    """
    scores, results = evaluate(
        regressor,
        source,
        config.input_format,
        batch_size=config.evaluate.batch_size,
        flip_test=config.evaluate.flip_test,
        spread=spread,
        on_batch=on_batch,
    )
    folder.write_scores(scores, results)
    return scores


# What may change between the parts of a run that is resumed, and all of `evaluate`.
_RESUMABLE = {"train.epochs", "train.evaluate_every", "train.drawn_people", "train.strategy",
              "train.keep_checkpoints", "train.start", "data.service", "train.checkpoint_steps",
              "train.jit_compile", "train.deterministic",
              "model.weights", "data.source.root",
              "data.source.first.root", "data.source.second.root"}  # fmt: skip


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
