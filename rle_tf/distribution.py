"""Which devices train."""

from functools import cache
from typing import Literal

import tensorflow as tf

from rle_tf.errors import ConfigError


def make_strategy(name: Literal["none", "mirrored"], batch_size: int) -> tf.distribute.Strategy:
    """The strategy that a config names.

    Args:
        name: `none`: TensorFlow's default, one device. `mirrored`: every GPU of this machine, or
            every logical CPU device where there is no GPU.
        batch_size: The global batch size, which the replicas share evenly.

    Raises:
        ConfigError: if the batch does not split evenly. (A first batch of uneven shares crashes
            Keras's `fit`.)
    """
    if name == "none":
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if batch_size % len(devices):
        raise ConfigError(
            f"train.batch_size: found {batch_size}; expected a multiple of the {len(devices)} "
            "replicas of train.strategy 'mirrored'"
        )
    return _mirrored(tuple(device.name for device in devices))


@cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    # One for the process: every strategy numbers its collective operations from the same start,
    # and those of a second one would meet the first one's.
    return tf.distribute.MirroredStrategy(devices)
