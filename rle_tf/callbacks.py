"""What happens between the epochs of a training run."""

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from rle_tf import geometry
from rle_tf.config import RunConfig, TrainConfig
from rle_tf.data.crops import read_crop
from rle_tf.data.source import Poses, Records, Source
from rle_tf.drawing import contact_sheet, draw_poses, draw_views
from rle_tf.evaluation import evaluate, predict_poses
from rle_tf.files import write_whole
from rle_tf.run_folder import Checkpoints, RunFolder, without_nan
from rle_tf.skeletons import Skeleton

# Of a batch, in a message.
NAMED_IMAGES = 8
# Of each person in a drawn sheet, in pixels.
DRAWN_HEIGHT = 384


class StopAtNaN(keras.callbacks.Callback):
    """Stops at a loss that is no number, and names the images that it may come of.

    Args:
        checkpoints: Of the run, for the message.
        images: step, from 0 -> names of the images of its batch.
    """

    def __init__(self, checkpoints: Checkpoints, images: Callable[[int], list[str]]):
        super().__init__()
        self.checkpoints = checkpoints
        self.images = images

    def on_train_batch_end(self, batch, logs=None):
        if np.isfinite(logs["loss"]):
            return
        step = int(self.model.steps.numpy())
        # Of an execution of several steps it may be any.
        first = step - self.model.steps_per_execution
        where = ""
        if images := self._named(range(first, step)):
            where = f", whose batch is of {images}"
            # A loss can be a number where its gradient is none.
            if first:
                before = self._named(range(first - 1, first))
                where += f"; or its weights were spoilt by the batch before, of {before}"
        self.checkpoints.refuse(f"the loss is {float(logs['loss'])}", step, where)

    def _named(self, steps: range) -> str:
        images = list(dict.fromkeys(image for each in steps for image in self.images(each)))
        more = f" and {len(images) - NAMED_IMAGES} more" if len(images) > NAMED_IMAGES else ""
        return ", ".join(images[:NAMED_IMAGES]) + more


class Save(keras.callbacks.Callback):
    """Checkpoints, and the regressor after each epoch: a killed run can be used, too."""

    def __init__(self, folder: RunFolder, train: TrainConfig, steps_per_epoch: int):
        super().__init__()
        self.folder = folder
        self.train = train
        self.steps_per_epoch = steps_per_epoch

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.steps.numpy())
        every = self.train.checkpoint_steps
        if every and step % every == 0 and step % self.steps_per_epoch:
            with _interrupted_after():
                self.folder.checkpoints.save(self.model, self.train.keep_checkpoints)

    def on_epoch_end(self, epoch, logs=None):
        with _interrupted_after():
            self.folder.checkpoints.save(self.model, self.train.keep_checkpoints)
            self.folder.save_regressor(self.model)


class KeepWeights(keras.callbacks.Callback):
    """Where the optimizer keeps moving averages, Keras's `fit` puts them in the place of the
    weights at its end; training goes on from the weights themselves."""

    def on_train_begin(self, logs=None):
        self._keep()

    def on_epoch_end(self, epoch, logs=None):
        self._keep()

    def on_train_end(self, logs=None):
        for variable, value in zip(self.model.trainable_variables, self.weights, strict=True):
            variable.assign(value)

    def _keep(self) -> None:
        self.weights = [variable.numpy() for variable in self.model.trainable_variables]


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
            with self.model.averaged():
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
    """A line of JSON an epoch; a resumed run goes on in the same file.

    Args:
        path: The file.
        epochs: How many epochs are done. Lines of later ones are of a run that was killed before
            it could save what they tell of, and are taken out.
    """

    def __init__(self, path: Path, epochs: int = 0):
        super().__init__()
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _epoch(line) <= epochs]
        if kept != lines:
            write_whole(path, "".join(f"{line}\n" for line in kept))

    def on_epoch_end(self, epoch, logs=None):
        line = {"epoch": epoch + 1} | without_nan(logs)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _epoch(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except ValueError:  # a line that was cut off
        return math.inf


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
        with self.model.averaged():
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
