"""Training runs on a COCO folder of a few small photographs: what is left behind, and resuming."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rle_tf.callbacks import History, Save, draw_people
from rle_tf.config import RunConfig, TrainConfig, load_config
from rle_tf.data.augment import Augmentation
from rle_tf.data.coco import CocoSource
from rle_tf.data.mpii import MpiiSource
from rle_tf.data.records import write_records
from rle_tf.errors import ConfigError, DataError, ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.losses import DensityLoss, L1Loss
from rle_tf.run_folder import Checkpoints, RunFolder, load_regressor
from rle_tf.skeletons import COCO17
from rle_tf.training import build_estimator, train

TRAIN_PEOPLE, VAL_PEOPLE = 13, 5
STEPS = 3  # an epoch: 13 people in batches of 4, the rest goes over to the next
EPOCHS = 3

RECIPE = """\
name: tiny
seed: 3
data:
  source:
    kind: coco
    root: {root}
    val: {{annotations: annotations/person_keypoints_val2017.json, images: val2017}}
  image_size: [64, 64]
model: {{backbone: mobilenet, output_layer: conv1_relu}}
loss: {{kind: rle, flow_layers: 1, flow_hidden: 4}}
train:
  batch_size: 4
  epochs: 3
  drop_epochs: [1, 2]
  evaluate_every: 2
  drawn_people: 2
evaluate: {{batch_size: 4}}
"""


def write_split(root: Path, split: str, people: int) -> None:
    """A person in each image, whose joints are where the image is brightest, more or less."""
    rng = np.random.default_rng(people)
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(people):
        pixels = rng.integers(0, 100, (60, 80, 3), dtype=np.uint8)
        x, y = rng.uniform(25, 55), rng.uniform(20, 40)
        pixels[int(y) - 5 : int(y) + 5, int(x) - 5 : int(x) + 5] = 255
        Image.fromarray(pixels).save(root / split / f"{i:03}.jpg")
        joints = np.stack([rng.normal(x, 4, 17), rng.normal(y, 4, 17)], axis=1).clip(0, 59)
        visibility = rng.choice([0, 2], 17, p=[0.2, 0.8])
        images.append({"id": i, "file_name": f"{i:03}.jpg", "width": 80, "height": 60})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x - 20, y - 15, 40, 30],
                "area": 600,
                "keypoints": np.column_stack([joints, visibility]).ravel().tolist(),
                "num_keypoints": int((visibility > 0).sum()),
            }
        )
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.joints)}
    dataset = {"images": images, "annotations": annotations, "categories": [category]}
    path = root / "annotations" / f"person_keypoints_{split}.json"
    path.write_text(json.dumps(dataset))


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_split(root, "train2017", TRAIN_PEOPLE)
    write_split(root, "val2017", VAL_PEOPLE)
    return root


def config_for(root: Path, *overrides: str) -> RunConfig:
    path = root / "recipe.yaml"
    path.write_text(RECIPE.format(root=root))
    return load_config(path, overrides)


class Recorder(keras.callbacks.Callback):
    """Learning rate of each step, and logs of each epoch."""

    def __init__(self):
        super().__init__()
        self.learning_rates, self.epochs = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.learning_rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({"epoch": epoch, **logs})


class AtStep(keras.callbacks.Callback):
    """Does something with the model once a number of steps are done."""

    def __init__(self, step: int, action):
        super().__init__()
        self.step = step
        self.action = action

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.steps.numpy()) == self.step:
            self.action(self.model)


def interrupt(model):
    raise KeyboardInterrupt


def spoil(model):
    bias = model.regressor.get_layer("mu_dense").bias
    bias.assign(np.full(bias.shape, np.nan))


class Run:
    """A run that was trained to its end, not to be written to."""

    def __init__(self, root: Path, out: Path):
        self.config = config_for(root)
        self.folder = RunFolder(out)
        self.recorder = Recorder()
        self.scores = train(self.config, out, callbacks=[self.recorder])

    def copy(self, to: Path) -> RunFolder:
        return RunFolder(shutil.copytree(self.folder.path, to / "copy"))


@pytest.fixture(scope="module")
def run(coco, tmp_path_factory) -> Run:
    return Run(coco, tmp_path_factory.mktemp("runs") / "whole")


def contents(checkpoint: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(checkpoint) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def assert_same_state(found: RunFolder, expected: RunFolder) -> None:
    """The newest checkpoints hold the same: weights, optimizer, flow, running statistics."""
    step = expected.checkpoints.steps()[-1]
    assert found.checkpoints.steps()[-1] == step
    file = f"step_{step:08d}.weights.h5"
    a, b = (contents(folder.path / "checkpoints" / file) for folder in (found, expected))
    assert a.keys() == b.keys()
    # What the metrics have counted so far starts anew with each part of an epoch.
    state = [name for name in a if not name.startswith(("_metrics", "_pck", "_sigma", "metrics"))]
    assert any("optimizer" in name for name in state) and any("flow" in name for name in state)
    different = [name for name in state if not np.array_equal(a[name], b[name])]
    assert not different


def test_what_a_run_leaves_behind(run):
    names = {path.name for path in run.folder.path.iterdir()}
    assert names == {
        "config.yaml", "checkpoints", "tensorboard", "history.jsonl", "regressor.keras",
        "flow.npz", "density.json", "metrics.json", "results.json",
    }  # fmt: skip
    config, regressor = run.folder.load()
    assert config == run.config
    assert regressor.output["mu"].shape == (None, 17, 2)
    assert "flow" not in " ".join(variable.path for variable in regressor.variables)


def test_checkpoints_of_the_newest_epochs_are_kept(run):
    assert run.folder.checkpoints.steps() == [2 * STEPS, 3 * STEPS]
    assert len(list(run.folder.checkpoints.folder.iterdir())) == 2


def test_history_is_a_line_an_epoch(run):
    lines = [json.loads(line) for line in run.folder.history.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for line, logs in zip(lines, run.recorder.epochs, strict=True):
        assert line["loss"] == pytest.approx(float(logs["loss"]))
        assert {"pck", "sigma", "val_loss", "val_pck", "val_sigma"} <= line.keys()
    assert ["val_AP" in line for line in lines] == [False, True, False]
    # Nobody in the validation set is of medium size: no number, and no invalid JSON either.
    assert "NaN" not in run.folder.history.read_text()


def test_metrics_and_results(run, coco, capsys):
    metrics = json.loads(run.folder.metrics.read_text())
    assert metrics.keys() == run.scores.keys() >= {"AP", "AP50", "AR", "error_px", "PCK@0.1"}
    for name, value in run.scores.items():
        assert metrics[name] is None if np.isnan(value) else metrics[name] == value
    results = json.loads(run.folder.results.read_text())
    assert sorted(entry["image_id"] for entry in results) == list(range(VAL_PEOPLE))
    truth = COCO(coco / "annotations/person_keypoints_val2017.json")
    assert len(truth.loadRes(str(run.folder.results)).anns) == VAL_PEOPLE


def test_tensorboard_gets_scalars_and_pictures(run):
    tags = {}
    for folder in {path.parent for path in run.folder.path.rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(folder))
        events.Reload()
        tags |= {f"{folder.name}/{tag}": events.Tensors(tag) for tag in events.Tags()["tensors"]}
    assert {"train/epoch_loss", "train/epoch_pck", "validation/epoch_loss"} <= tags.keys()
    assert len(tags["train/epoch_loss"]) == EPOCHS
    drawn = tags["drawings/validation people"]
    assert [event.step for event in drawn] == list(range(EPOCHS))
    width, height, picture = drawn[-1].tensor_proto.string_val
    assert picture.startswith(b"\x89PNG") and int(width) > int(height) > 384


def test_the_learning_rate_drops_after_the_named_epochs(run):
    expected = np.repeat([1e-3, 1e-4, 1e-5], STEPS)
    np.testing.assert_allclose(run.recorder.learning_rates, expected, rtol=1e-5)


def test_the_learning_rate_falls_along_a_cosine(run):
    config = run.config
    cosine = config.model_copy(
        update={"train": config.train.model_copy(update={"schedule": "cosine", "drop_epochs": ()})}
    )
    estimator = build_estimator(cosine, config.open_training(), STEPS)
    total = STEPS * EPOCHS
    for step, share in ((0, 1.0), (total // 2, 0.5), (total, 0.0)):
        estimator.optimizer.iterations.assign(step)
        expected = 1e-3 * (1 + np.cos(np.pi * step / total)) / 2
        rate = float(estimator.optimizer.learning_rate)
        assert rate == pytest.approx(expected, abs=1e-9)
        assert abs(rate / 1e-3 - share) < 0.1


def test_a_run_starts_where_another_one_ended(run, tmp_path):
    start = {"start": str(run.folder.path), "epochs": 1, "drop_epochs": ()}
    config = run.config.model_copy(
        update={"train": run.config.train.model_copy(update={**start, "learning_rate": 1e-30})}
    )
    folder = RunFolder(tmp_path / "next")
    train(config, folder.path)
    for ours, theirs in zip(
        folder.load()[1].trainable_variables, run.folder.load()[1].trainable_variables, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    with np.load(folder.flow) as ours, np.load(run.folder.flow) as theirs:
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-7)


def test_a_start_without_dropout(run, tmp_path):
    """The states of random numbers are no weights."""
    folder = RunFolder(tmp_path)
    run.config.save(folder.config)
    section = run.config.model.model_copy(update={"head": "soft_argmax", "map_sigma": True})
    dropping = section.model_copy(update={"sigma_dropout": 0.5})
    before, regressor = (s.build(COCO17, 2, (64, 32)) for s in (section, dropping))
    before.save(folder.regressor)
    folder.copy_weights(PoseEstimator(regressor, L1Loss()))
    for ours, theirs in zip(regressor.weights, before.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_flow_starts_anew_after_a_loss_without_one(run, tmp_path, caplog):
    before = RunFolder(tmp_path)
    run.config.save(before.config)
    _, regressor = run.folder.load()
    before.save_regressor(PoseEstimator(regressor, DensityLoss()))
    people = run.config.open_training()
    estimator = build_estimator(run.config, people, 1)
    new = estimator.loss.flow.get_weights()
    with caplog.at_level(logging.INFO):
        before.copy_weights(estimator)
    assert "the flow starts anew: " in caplog.text and "holds 0 arrays; expected the" in caplog.text
    for ours, initial in zip(estimator.loss.flow.get_weights(), new, strict=True):
        np.testing.assert_array_equal(ours, initial)
    for ours, theirs in zip(estimator.regressor.weights, regressor.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_random_weights_are_not_frozen(run, tmp_path):
    config = run.config.model_copy(
        update={"model": run.config.model.model_copy(update={"freeze": "layer1_0_out"})}
    )
    with pytest.raises(ConfigError, match="'layer1_0_out' with random weights, which would never"):
        train(config, tmp_path / "frozen")
    # Weights of a backbone are not those of a mean.
    model = config.model.model_copy(
        update={"freeze": None, "trained": "sigma", "weights": str(run.folder.path)}
    )
    with pytest.raises(ConfigError, match="model.trained: found sigma without train.start, so tha"):
        train(config.model_copy(update={"model": model}), tmp_path / "frozen")
    assert not (tmp_path / "frozen").exists()


@pytest.mark.parametrize("trained", ["sigma", "none"])
def test_a_mean_stays_that_of_another_run(run, tmp_path, trained):
    config = run.config.model_copy(
        update={
            "model": run.config.model.model_copy(update={"trained": trained}),
            "train": run.config.train.model_copy(update={"start": str(run.folder.path)}),
        }
    )
    train(config, tmp_path / "on")
    folders = run.folder, RunFolder(tmp_path / "on")
    before, after = (load_regressor(folder.regressor) for folder in folders)
    for old, new in zip(before.weights, after.weights, strict=True):
        stays = trained == "none" or not new.path.startswith("sigma")
        assert np.array_equal(old.numpy(), new.numpy()) == stays, new.path
    with np.load(folders[0].flow) as old, np.load(folders[1].flow) as new:
        assert any((old[name] != new[name]).any() for name in old)


def test_a_run_of_another_model_is_no_start(run, tmp_path):
    other = run.config.model.model_copy(update={"head": "soft_argmax"})
    config = run.config.model_copy(
        update={
            "model": other,
            "train": run.config.train.model_copy(update={"start": str(run.folder.path)}),
        }
    )
    with pytest.raises(ModelError, match=r"regressor.keras: .*: found \(.*\); expected \(.*\), as"):
        train(config, tmp_path / "other")
    nowhere = config.model_copy(
        update={"train": config.train.model_copy(update={"start": str(tmp_path / "none")})}
    )
    with pytest.raises(
        ModelError, match="none/config.yaml: no such file; expected the folder of a"
    ):
        train(nowhere, tmp_path / "again")


def test_an_interrupted_run_ends_as_if_it_had_not_been(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(run.config, folder.path, callbacks=[AtStep(STEPS + 2, interrupt)])
    assert folder.checkpoints.steps() == [STEPS, STEPS + 2]
    assert not folder.metrics.exists()
    _, regressor = folder.load()  # a usable run
    assert np.isfinite(regressor(np.zeros((1, 64, 64, 3)))["mu"]).all()

    recorder = Recorder()
    scores = train(run.config, folder.path, resume=True, callbacks=[recorder])
    assert len(recorder.learning_rates) == 3 * STEPS - (STEPS + 2)
    assert [logs["epoch"] for logs in recorder.epochs] == [1, 2]
    assert_same_state(folder, run.folder)
    assert scores == pytest.approx(run.scores, nan_ok=True)
    lines = folder.history.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


@pytest.mark.slow
def test_checkpoints_between_the_ends_of_epochs(coco, tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = config_for(coco, "train.checkpoint_steps=2", "train.keep_checkpoints=9")
    train(config, folder.path)
    assert folder.checkpoints.steps() == [2, 3, 4, 6, 8, 9]


@pytest.mark.slow
def test_averages_are_kept_over_an_interruption_and_are_what_is_saved(coco, tmp_path):
    """With the averages in the file of the regressor, and the weights in the checkpoints."""
    config = config_for(coco, "train.ema=0.5", "train.drawn_people=0")
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    scores = train(config, whole.path)
    with pytest.raises(KeyboardInterrupt):
        train(config, broken.path, callbacks=[AtStep(STEPS + 2, interrupt)])
    assert train(config, broken.path, resume=True) == pytest.approx(scores, nan_ok=True)
    assert_same_state(broken, whole)

    estimator = build_estimator(config, config.open_training(), STEPS)
    whole.checkpoints.restore(estimator)
    saved = whole.load()[1].trainable_variables
    ours = estimator.regressor.trainable_variables
    assert any(not np.array_equal(a, b) for a, b in zip(saved, ours, strict=True))
    with estimator.averaged():
        for a, b in zip(saved, ours, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_was_trained_in_16_bits_is_saved_in_32(run, coco, tmp_path, precision):
    folder = RunFolder(tmp_path / "run")
    config = config_for(coco, f"train.precision={precision}", "train.epochs=1",
                        "train.drop_epochs=[]", "train.drawn_people=0")  # fmt: skip
    train(config, folder.path)
    _, regressor = folder.load()
    layers = regressor._flatten_layers()
    assert {layer.compute_dtype for layer in layers} == {"float32"}
    estimator = build_estimator(config, config.open_training(), STEPS)
    backbone = estimator.regressor.get_layer("backbone")
    assert backbone.get_layer("conv1").compute_dtype == precision
    assert {variable.dtype for variable in estimator.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    first = [json.loads(f.history.read_text().splitlines()[0]) for f in (folder, run.folder)]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=0.02)


@pytest.mark.slow
def test_an_epoch_has_whole_executions(coco, tmp_path):
    folder = RunFolder(tmp_path / "run")
    recorder = Recorder()
    overrides = ("train.steps_per_execution=2", "train.epochs=2", "train.drop_epochs=[1]")
    train(config_for(coco, *overrides), folder.path, callbacks=[recorder])
    assert folder.checkpoints.steps() == [2, 4] and len(recorder.learning_rates) == 2
    with pytest.raises(ConfigError, match="steps_per_execution: found 4; an epoch has 3 steps"):
        train(config_for(coco, "train.steps_per_execution=4"), tmp_path / "other")


def test_history_of_what_was_not_saved_is_taken_out(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 1, "loss": 3.0}\n{"epoch": 2, "loss": 2.0}\n{"epo')
    History(path, epochs=1)
    assert path.read_text() == '{"epoch": 1, "loss": 3.0}\n'


@pytest.mark.slow
def test_a_run_can_be_interrupted_more_than_once(run, tmp_path):
    folder = RunFolder(tmp_path / "run")
    for step in (1, STEPS, 2 * STEPS + 1):
        with pytest.raises(KeyboardInterrupt):
            train(run.config, folder.path, resume=step > 1, callbacks=[AtStep(step, interrupt)])
        assert folder.checkpoints.steps()[-1] == step
    train(run.config, folder.path, resume=True)
    assert_same_state(folder, run.folder)


@pytest.mark.slow
def test_a_lost_checkpoint_costs_an_epoch(run, tmp_path, caplog):
    folder = run.copy(tmp_path)
    newest = folder.path / "checkpoints" / f"step_{3 * STEPS:08d}.weights.h5"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    train(run.config, folder.path, resume=True)
    assert f"{newest} cannot be read" in caplog.text
    assert_same_state(folder, run.folder)


@pytest.mark.slow
def test_a_finished_run_can_go_on(run, coco, tmp_path):
    folder = run.copy(tmp_path)
    recorder = Recorder()
    longer = config_for(coco, "train.epochs=4", "evaluate.flip_test=false")
    train(longer, folder.path, resume=True, callbacks=[recorder])
    assert len(recorder.learning_rates) == STEPS
    assert folder.checkpoints.steps() == [3 * STEPS, 4 * STEPS]
    assert load_config(folder.config) == longer


def test_a_finished_run_that_is_resumed_is_scored_again(run, tmp_path):
    folder = run.copy(tmp_path)
    folder.metrics.unlink()
    recorder = Recorder()
    scores = train(run.config, folder.path, resume=True, callbacks=[recorder])
    assert not recorder.learning_rates
    assert scores == pytest.approx(run.scores, nan_ok=True)
    assert folder.metrics.read_text() == run.folder.metrics.read_text()


def test_a_folder_that_holds_a_run_is_not_overwritten(run):
    before = run.folder.config.stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"whole: holds a run already; expected a new folder"):
        train(run.config, run.folder.path)
    assert run.folder.config.stat().st_mtime_ns == before


def test_a_run_of_another_config_is_not_resumed(run, coco):
    other = config_for(coco, "train.batch_size=2", "loss.base=gaussian", "train.epochs=9")
    with pytest.raises(ConfigError) as error:
        train(other, run.folder.path, resume=True)
    message = str(error.value)
    assert message.startswith(f"{run.folder.config}: the run was started with another config: ")
    assert "loss.base was 'laplace' and is 'gaussian'" in message
    assert "train.batch_size was 4 and is 2" in message
    assert "epochs" not in message  # a run may be made longer


def test_resuming_needs_a_run(coco, tmp_path):
    with pytest.raises(ConfigError, match="holds no run to resume; expected its config.yaml"):
        train(config_for(coco), tmp_path, resume=True)


@pytest.fixture
def estimator(run):
    return build_estimator(run.config, run.config.open_training(), STEPS)


def damage(file: Path, how: str) -> None:
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"no HDF5"}[how])


@pytest.mark.parametrize("how", ["empty", "half", "text"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, estimator, tmp_path, caplog, how):
    checkpoints = run.copy(tmp_path).checkpoints
    older, newest = sorted(checkpoints.folder.iterdir())
    damage(newest, how)
    with caplog.at_level(logging.WARNING):
        assert checkpoints.restore(estimator) == 2 * STEPS
    assert f"{newest} cannot be read, trying the one before" in caplog.text
    assert int(estimator.optimizer.iterations.numpy()) == 2 * STEPS
    kernel = estimator.regressor.get_layer("backbone").get_layer("conv1").kernel.numpy()
    assert any(np.array_equal(kernel, value) for value in contents(older).values())

    damage(older, how)
    with pytest.raises(ModelError) as error:
        checkpoints.restore(estimator)
    assert str(newest) in str(error.value) and str(older) in str(error.value)
    assert "expected a checkpoint of this config's model" in str(error.value)


def test_what_is_kept_after_a_fall_back_is_good(run, estimator, tmp_path):
    """A newer file that could not be read is no checkpoint to keep."""
    checkpoints = run.copy(tmp_path).checkpoints
    _, newest = sorted(checkpoints.folder.iterdir())
    damage(newest, "half")
    assert checkpoints.restore(estimator) == checkpoints.good == 2 * STEPS
    with pytest.raises(ModelError, match=f"the checkpoint of step {2 * STEPS} is good"):
        checkpoints.refuse("the loss is nan", 2 * STEPS + 1)
    estimator.steps.assign_add(1)
    checkpoints.save(estimator, keep=1)
    assert checkpoints.steps() == [2 * STEPS + 1] and not newest.exists()


def test_a_full_disk_leaves_the_checkpoints(run, estimator, tmp_path, monkeypatch):
    checkpoints = run.copy(tmp_path).checkpoints
    checkpoints.restore(estimator)
    before = checkpoints.steps()

    def full(path):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(estimator, "save_weights", full)
    with pytest.raises(
        ModelError, match="weights.h5: cannot be written: .*No space left.* is good"
    ):
        checkpoints.save(estimator, keep=1)
    assert checkpoints.steps() == before and len(list(checkpoints.folder.iterdir())) == 2


@pytest.mark.slow
def test_a_run_reads_records_and_is_resumed(coco, tmp_path):
    config = config_for(coco, "train.drawn_people=0", "seed=0")
    records = str(tmp_path / "records")
    write_records(config.open_source("train"), config.input_format, config.data.augmentation,
                  records, shards=2)  # fmt: skip
    config = config_for(coco, "train.drawn_people=0", "seed=0", f"data.records={records}")
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    scores = train(config, whole.path)
    with pytest.raises(KeyboardInterrupt):
        train(config, broken.path, callbacks=[AtStep(STEPS + 2, interrupt)])
    assert train(config, broken.path, resume=True) == pytest.approx(scores, nan_ok=True)
    assert_same_state(broken, whole)


def test_keys_reach_the_estimator(coco):
    settings = ("train.accumulate=2", "train.jit_compile=true", "train.steps_per_execution=3")
    for sync in (False, True):
        config = config_for(coco, *settings, f"train.sync_batch_norm={sync}".lower())
        estimator = build_estimator(config, config.open_training(), STEPS)
        assert (estimator.accumulate, estimator.jit_compile) == (2, True)
        assert estimator.steps_per_execution == 3
        layers = estimator.regressor._flatten_layers()
        norms = [each for each in layers if isinstance(each, keras.layers.BatchNormalization)]
        assert norms and all(layer.synchronized == sync for layer in norms)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_loss_and_flow_of_a_config_in_16_bits_compute_in_32(coco, precision):
    config = config_for(coco, f"train.precision={precision}")
    people = config.open_training()
    estimator = build_estimator(config, people, STEPS)
    kinds = {layer.compute_dtype for layer in estimator.regressor._flatten_layers()}
    assert precision in kinds
    view = config.data.augmentation
    batches = people.batches(config.input_format, view, batch_size=2, seed=0)
    image, target = next(iter(batches))
    output = estimator(image, training=True)
    assert {value.dtype for value in output.values()} == {tf.float32}
    assert estimator.compute_loss(image, target, output).dtype == tf.float32
    (flow,) = estimator.flows
    assert flow.log_prob(tf.zeros((3, 2))).dtype == tf.float32
    assert {v.dtype for v in estimator.trainable_variables} == {"float32"}


def test_records_of_another_skeleton(coco, tmp_path, write_mpii):
    records = str(tmp_path / "records")
    crops = config_for(coco).input_format
    write_records(MpiiSource(*write_mpii()), crops, Augmentation(), records, shards=1)
    with pytest.raises(
        ConfigError, match="holds people with the joints of 'mpii16'; expected 'coco"
    ):
        config_for(coco, f"data.records={records}").open_training()


def test_a_checkpoint_of_another_model(run, coco):
    config = config_for(coco, "model.output_layer=conv_pw_2_relu")
    estimator = build_estimator(config, config.open_training(), STEPS)
    with pytest.raises(ModelError, match="expected a checkpoint of this config's model"):
        run.folder.checkpoints.restore(estimator)


def test_no_checkpoint_is_step_zero(estimator, tmp_path):
    before = [variable.numpy() for variable in estimator.trainable_variables]
    assert Checkpoints(tmp_path / "absent").restore(estimator) == 0
    for variable, value in zip(estimator.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_an_unfinished_file_is_no_checkpoint(tmp_path):
    for name in ("unfinished_12.weights.h5", "step_x.weights.h5", "step_00000007.weights.h5.tmp"):
        (tmp_path / name).touch()
    assert Checkpoints(tmp_path).steps() == []


def test_a_loss_that_is_no_number_stops_the_run(coco, tmp_path):
    folder = RunFolder(tmp_path / "run")
    batch = r"(\S+/train2017/\d{3}\.jpg, ){3}\S+/train2017/\d{3}\.jpg"
    message = (
        rf"the loss is nan at step {STEPS + 2}, whose batch is of "
        rf"{batch}; or its weights were spoilt by the batch before, of {batch}; expected a number; "
        rf"the checkpoint of step {STEPS} is good; try a lower train\.learning_rate or a "
        r"train\.clip_norm"
    )
    with pytest.raises(ModelError, match=message):
        train(
            config_for(coco, "train.drawn_people=0"),
            folder.path,
            callbacks=[AtStep(STEPS + 1, spoil)],
        )
    assert folder.checkpoints.steps() == [STEPS]
    [checkpoint] = folder.checkpoints.folder.iterdir()
    assert all(np.isfinite(value).all() for value in contents(checkpoint).values())


@pytest.mark.slow
def test_weights_that_an_epochs_last_step_spoils_are_not_saved(coco, tmp_path):
    folder = RunFolder(tmp_path / "run")
    message = rf"a value of mu_dense/bias is no finite number at step {STEPS}; .* nothing was saved"
    with pytest.raises(ModelError, match=message):
        train(config_for(coco), folder.path, callbacks=[AtStep(STEPS, spoil)])
    assert folder.checkpoints.steps() == []


@pytest.fixture
def spoilt_coco(coco, tmp_path) -> Path:
    """The people, one of them in a photograph that was cut off."""
    root = shutil.copytree(coco, tmp_path / "spoilt")
    bad = root / "train2017/004.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    return root


def test_a_bad_image_stops_a_run_by_its_name(spoilt_coco, tmp_path):
    with pytest.raises(DataError, match=r"train2017/004\.jpg: .*data\.on_bad_image: skip"):
        train(config_for(spoilt_coco), tmp_path / "run")


@pytest.mark.slow
def test_a_bad_image_is_skipped_where_the_config_says_so(spoilt_coco, tmp_path, caplog):
    config = config_for(spoilt_coco, "data.on_bad_image=skip", "train.epochs=1")
    recorder = Recorder()
    train(config, tmp_path / "run", callbacks=[recorder])
    assert len(recorder.learning_rates) == (TRAIN_PEOPLE - 1) // 4
    assert "train2017/004.jpg" in caplog.text
    assert "1 image" in caplog.text and f"{TRAIN_PEOPLE - 1} people are left" in caplog.text


def test_a_batch_that_the_replicas_cannot_share_leaves_no_folder(coco, tmp_path):
    config = config_for(coco, "train.strategy=mirrored", "train.batch_size=5")
    with pytest.raises(ConfigError, match=r"train\.batch_size: found 5; expected a multiple of"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_replicas_train_and_are_resumed(run, coco, tmp_path):
    config = config_for(coco, "train.strategy=mirrored")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, folder.path, callbacks=[AtStep(STEPS + 1, interrupt)])
    scores = train(config, folder.path, resume=True)
    assert folder.checkpoints.steps()[-1] == EPOCHS * STEPS
    assert scores.keys() == run.scores.keys()
    # Replicas have batch statistics of their own, so the losses are near but not the same.
    lines = [json.loads(line) for line in folder.history.read_text().splitlines()]
    first = json.loads(run.folder.history.read_text().splitlines()[0])
    assert lines[0]["loss"] == pytest.approx(first["loss"], rel=0.05)


def test_a_tiny_box_can_be_drawn(run, coco):
    source = CocoSource(coco / "annotations/person_keypoints_val2017.json", coco / "val2017")
    source.records.boxes_xyxy[0] = [10.6, 10.6, 10.8, 10.8]
    sheet = draw_people(
        load_regressor(run.folder.regressor), source.take(slice(2)), run.config, np.ones(2)
    )
    assert sheet.height > 384 and sheet.width > 2 * 384


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_file_that_is_no_regressor(tmp_path, content):
    path = tmp_path / "regressor.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"regressor\.keras: cannot be read as a Keras model: "):
        load_regressor(path)


def test_a_model_with_other_outputs_is_no_regressor(tmp_path):
    image = keras.Input((8, 8, 3))
    keras.Model(image, keras.layers.Dense(2)(image)).save(tmp_path / "other.keras")
    with pytest.raises(ModelError, match=r"other\.keras: has outputs without names; expected"):
        load_regressor(tmp_path / "other.keras")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ModelError, match=r"config\.yaml: no such file; expected the folder of a"):
        RunFolder(tmp_path).load()


def test_ctrl_c_while_an_epoch_is_saved_takes_effect_after_it():
    saved = []

    def interrupted_save(*_):
        os.kill(os.getpid(), signal.SIGINT)
        saved.append("checkpoint")

    folder = SimpleNamespace(
        checkpoints=SimpleNamespace(save=interrupted_save),
        save_regressor=lambda _: saved.append("regressor"),
    )
    # Python's own, which tests that were started in the background do not have.
    handler = signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    with pytest.raises(KeyboardInterrupt):
        Save(folder, TrainConfig(batch_size=1, epochs=1), 1).on_epoch_end(0)
    assert saved == ["checkpoint", "regressor"]
    assert signal.signal(signal.SIGINT, before) is handler
