"""What happens between the epochs of a training run."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from rle_tf import geometry
from rle_tf.config import RunConfig
from rle_tf.data.crops import read_crop
from rle_tf.data.source import Poses, Records, Source
from rle_tf.drawing import contact_sheet, draw_poses, draw_views
from rle_tf.errors import ModelError
from rle_tf.evaluation import evaluate, predict_poses
from rle_tf.run_folder import Checkpoints, RunFolder, without_nan
from rle_tf.skeletons import Skeleton

# Of each person in a drawn sheet, in pixels.
DRAWN_HEIGHT = 384


class StopAtNaN(keras.callbacks.Callback):
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


class Save(keras.callbacks.Callback):
    """A checkpoint and the regressor after each epoch: a killed run can be used, too."""

    def __init__(self, folder: RunFolder, keep: int):
        super().__init__()
        self.folder = folder
        self.keep = keep

    def on_epoch_end(self, epoch, logs=None):
        with _interrupted_after():
            self.folder.checkpoints.save(self.model, self.keep)
            self.folder.save_regressor(self.model)


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """Ctrl-C takes effect when the block is done, so that what it writes belongs together.

    TFP, which works out the density's spread meanwhile, also prints a traceback where it is
    interrupted. Python handles signals in its main thread alone; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []
    handler = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        signal.raise_signal(signal.SIGINT)


class Evaluate(keras.callbacks.Callback):
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
                self.config.input_format,
                batch_size=self.config.evaluate.batch_size,
                flip_test=self.config.evaluate.flip_test,
                spread=self.model.spread(),
            )
            logs.update({f"val_{name}": value for name, value in scores.items()})


class History(keras.callbacks.Callback):
    """A line of JSON an epoch; a resumed run goes on in the same file."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        line = {"epoch": epoch + 1} | without_nan(logs)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Drawings(keras.callbacks.Callback):
    """A few validation people with the poses predicted for them, for TensorBoard."""

    def __init__(self, log_dir: Path, config: RunConfig, source: Source):
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(log_dir / "drawings"))
        self.config = config
        count = min(config.train.drawn_people, len(source.records))
        # Spread over the dataset: neighbours are often of one photograph.
        rows = np.linspace(0, len(source.records) - 1, count).astype(int)
        self.source = source.take(rows)

    def on_epoch_end(self, epoch, logs=None):
        if not len(self.source.records):
            return
        sheet = draw_people(self.model.regressor, self.source, self.config, self.model.spread())
        with self.writer.as_default(step=epoch):
            tf.summary.image("validation people", np.asarray(sheet)[None])
        self.writer.flush()


def draw_people(
    regressor: keras.Model, source: Source, config: RunConfig, spread: np.ndarray
) -> Image.Image:
    """A sheet of all people of a source with their predicted poses: in their crops, where the
    model sees images, and in 3D from two viewpoints over the true pose in grey."""
    input_format, records = config.input_format, source.records
    poses = predict_poses(
        regressor, records, source.skeleton, input_format, flip_test=False, spread=spread
    )
    in_3d = poses.keypoints.shape[-1] == 3
    sheet = []
    for row in range(len(records)):
        if input_format.reads_images:
            sheet.append(_drawn_crop(poses, records, row, source.skeleton))
        if in_3d:
            sheet += _drawn_views(poses.take([row]), records.take([row]), source.skeleton)
    return contact_sheet(sheet, columns=6 if in_3d else 4)


def _drawn_crop(poses: Poses, records: Records, row: int, skeleton: Skeleton) -> Image.Image:
    box = poses.crop_boxes_xyxy[row].astype(np.float32)
    scale = DRAWN_HEIGHT / (box[3] - box[1])
    size = (DRAWN_HEIGHT, round(float((box[2] - box[0]) * scale)))
    matrix = geometry.crop_affine(
        tf.constant((box[:2] + box[2:]) / 2), tf.constant(box[2:] - box[:2]), 0.0, size
    )
    # As the regressor saw it, a region alone: the rest of the file may be damaged.
    crop = read_crop(records.image_paths[row], records.image_wh[row], matrix, size)
    return draw_poses(
        tf.cast(tf.round(crop), tf.uint8).numpy(),
        (poses.keypoints[[row], :, :2] - box[:2]) * scale,
        poses.sigmas[[row], :, :2] * scale,
        skeleton,
    )


def _drawn_views(pose: Poses, record: Records, skeleton: Skeleton) -> list[Image.Image]:
    # Without ellipses: in a small picture they hide by how much the pose misses the true one.
    joints_mm, reference_mm = (
        geometry.image_to_camera(keypoints, record.cameras)[0]
        for keypoints in (pose.keypoints, record.keypoints)
    )
    return draw_views(joints_mm, skeleton, DRAWN_HEIGHT, reference_mm=reference_mm)
