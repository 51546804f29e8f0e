"""Which devices train, and what each of them gets of a batch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

import tensorflow as tf

from rle_tf.data.pipeline import ONE_REPLICA, Shard
from rle_tf.errors import ConfigError, WorkerLost

Strategy = Literal["none", "mirrored", "multi_worker", "tpu"]


def make_strategy(name: Strategy, batch_size: int, accumulate: int = 1) -> tf.distribute.Strategy:
    """The strategy that a config names.

    Args:
        name: `none`: TensorFlow's default, one device. `mirrored`: every GPU of this machine, or
            every logical CPU device where there is no GPU. `multi_worker`: the same on several
            machines, which TF_CONFIG or SLURM's variables name; before anything else that
            TensorFlow computes. `tpu`: the TPU that TPU_NAME names, or that of this machine.
        batch_size: The global batch size, which the replicas share evenly.
        accumulate: Micro-batches of a replica's share.

    Raises:
        ConfigError: if the batch does not split evenly (a first batch of uneven shares crashes
            Keras's `fit`), or no cluster or no TPU is there.
        WorkerLost: if another worker went while the cluster met.
    """
    match name:
        case "none":
            strategy = tf.distribute.get_strategy()
        case "mirrored":
            devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
            strategy = _mirrored(tuple(device.name for device in devices))
        case "multi_worker":
            strategy = _multi_worker()
        case "tpu":
            strategy = _tpu()
        case _:
            raise ConfigError(
                f"train.strategy: found {name!r}; expected one of {', '.join(get_args(Strategy))}"
            )
    replicas = strategy.num_replicas_in_sync
    if batch_size % (replicas * accumulate):
        micro = f" times train.accumulate, {accumulate}" if accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size: found {batch_size}; expected a multiple of the {replicas} "
            f"replicas of train.strategy {name!r}{micro}"
        )
    return strategy


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its cluster that writes the run folder."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type in (None, ""):
        return True
    first = resolver.task_type == "worker" and resolver.task_id == 0
    return resolver.task_type == "chief" or (
        first and "chief" not in resolver.cluster_spec().as_dict()
    )


def distribute(
    strategy: tf.distribute.Strategy, make: Callable[[Shard], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """A dataset of whole batches whose parts every process makes for its own replicas.

    Args:
        strategy: Whose replicas.
        make: The dataset of a part, such as `training_batches` with a `shard`.
    """
    if not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy():
        return make(ONE_REPLICA)

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        workers = context.num_input_pipelines
        replicas = context.num_replicas_in_sync // workers
        return make(Shard(context.input_pipeline_id, workers, replicas))

    batches = strategy.distribute_datasets_from_function(of_worker)
    # TensorFlow counts what each replica of a worker gets, Keras takes the count for steps.
    if batches._cardinality > 0:
        batches._cardinality //= len(strategy.extended.worker_devices)
    return batches


def agree(strategy: tf.distribute.Strategy, values: dict[str, int]) -> None:
    """Makes sure that all workers of a cluster hold the same.

    Args:
        strategy: Of this process.
        values: Numbers by what they are, for the message.

    Raises:
        ConfigError: if another worker holds another one.
    """
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        for name, value in values.items():
            total = _total(strategy, value)
            if total != value * strategy.num_replicas_in_sync:
                raise ConfigError(
                    f"{name}: this worker has {value}, and not all workers have; expected one "
                    "recipe, and a run folder that all of them see"
                )


def from_chief(strategy: tf.distribute.Strategy, value: int) -> int:
    """The chief's value, below 2**31, on all workers."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value
    replicas = strategy.num_replicas_in_sync // strategy.extended._num_workers
    return _total(strategy, value if is_chief(strategy) else 0) // replicas


def _total(strategy: tf.distribute.Strategy, value: int) -> int:
    each = strategy.run(lambda: tf.constant(value, tf.int64))
    return int(strategy.reduce("SUM", each, axis=None))


# What collective operations raise when another process is gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


@contextmanager
def named_lost_workers(strategy: tf.distribute.Strategy, checkpoints: str) -> Iterator[None]:
    """Turns the failure of a cluster whose worker is gone into `WorkerLost`.

    Args:
        strategy: Of this process.
        checkpoints: What the message says that there is to go on from.
    """
    try:
        yield
    except _LOST as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        if isinstance(error, tf.errors.InternalError) and "ollective" not in str(error):
            raise  # of this worker's own device
        reason = str(error).strip().partition("\n")[0]
        raise WorkerLost(
            f"another worker of the cluster is gone ({reason:.200}); {checkpoints}; start all "
            "workers again with --resume, which --restarts does by itself"
        ) from error


# One of each for the process: every strategy numbers its collective operations from the same start,
# and those of a second one would meet the first one's.
@cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    return tf.distribute.MirroredStrategy(devices)


@cache
def _multi_worker() -> tf.distribute.MultiWorkerMirroredStrategy:
    resolvers = tf.distribute.cluster_resolver
    try:
        if "TF_CONFIG" in os.environ:
            resolver = resolvers.TFConfigClusterResolver()
        elif "SLURM_STEP_ID" in os.environ:
            gpus = len(tf.config.list_physical_devices("GPU"))
            # Without any, as many places for processes as a node could have.
            resolver = resolvers.SlurmClusterResolver(
                gpus_per_node=gpus or 1024,
                gpus_per_task=None if gpus else 1,
                auto_set_gpu=bool(gpus),
            )
        else:
            raise ConfigError(
                "train.strategy: found 'multi_worker', but no cluster: neither TF_CONFIG nor "
                "SLURM's variables are set; see docs/scaling.md"
            )
        # SLURM's resolver knows its task only once it was asked for the cluster.
        cluster = resolver.cluster_spec().as_dict()
        if resolver.task_type not in ("chief", "worker") or not cluster:
            raise ConfigError(
                f"TF_CONFIG: found a task of type {resolver.task_type!r} in a cluster of "
                f"{cluster}; expected a chief or worker of some"
            )
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except _LOST as error:
        reason = str(error).strip().partition("\n")[0]
        raise WorkerLost(f"the cluster did not meet: {reason:.200}") from error
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"train.strategy: found 'multi_worker', and no cluster came of it: {error}; TF_CONFIG "
            f"is {os.environ.get('TF_CONFIG')!r:.200}"
        ) from None


@cache
def _tpu() -> tf.distribute.TPUStrategy:
    try:
        # Without a name TensorFlow looks for one of Kubernetes', and not for that of this machine.
        name = os.environ.get("TPU_NAME", "local")
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"train.strategy: found 'tpu', and no TPU was found: {reason}") from None
    return tf.distribute.TPUStrategy(resolver)
