"""The exceptions of rle_tf.

Each message names the file, the entry in it, what was found and what was expected. The command
line prints the message alone; a traceback is for mistakes of ours.
"""


class RLEError(Exception):
    """What every exception raised on purpose by rle_tf derives from."""


class ConfigError(RLEError):
    """A configuration has an unknown key, a value of the wrong kind or values that do not fit."""


class DataError(RLEError):
    """A dataset, annotation file, detections file or image cannot be used."""


class ModelError(RLEError):
    """A model, checkpoint or weights file does not fit what is asked of it."""


class WorkerLost(RLEError):
    """Another process that the training needs is gone; the same run can be resumed."""
