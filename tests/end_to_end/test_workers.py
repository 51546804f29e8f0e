"""Real processes on this machine train as a cluster: the same losses as one, and through kills."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rle_tf.data.synthetic import SyntheticSource
from rle_tf.run_folder import RunFolder

pytestmark = pytest.mark.slow

STEPS, EPOCHS, BATCH = 10, 2, 12
RECIPE = """\
name: workers
data:
  source:
    kind: synthetic
    root: {root}
    train_people: 120
    val_people: 30
    rendered_size: [80, 80]
  image_size: [64, 32]
model: {{backbone: resnet18, output_layer: layer1_0_out}}
loss: {{kind: rle, flow_layers: 2, flow_hidden: 8}}
# Small steps: Adam makes large ones of gradients that are nothing but rounding.
train:
  {{batch_size: 12, epochs: 2, learning_rate: 1e-4, drawn_people: 0, sync_batch_norm: true}}
"""
# Trains, and prints the loss of each step on a line of its own.
SCRIPT = """\
import sys, keras
from pathlib import Path
from rle_tf import load_config
from rle_tf.training import train

class Losses(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("LOSS", int(self.model.steps.numpy()), float(logs["loss"]), flush=True)

train(load_config(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]), callbacks=[Losses()])
"""
# One step of gradient descent at a rate of 1: the weights move by the gradients.
GRADIENTS = """\
import sys, keras, numpy as np
from rle_tf import load_config
from rle_tf.distribution import distribute, is_chief, make_strategy
from rle_tf.training import build_estimator

config = load_config(sys.argv[1], sys.argv[3:])
strategy = make_strategy(config.train.strategy, 12)
people = config.open_training()
keras.utils.set_random_seed(0)
with strategy.scope():
    estimator = build_estimator(config, people, 1)
    estimator.compile(keras.optimizers.SGD(1.0))
before = [v.numpy() for v in estimator.trainable_variables]
of_regressor = {id(v) for v in estimator.regressor.trainable_variables}
def batches(shard):
    view = config.data.augmentation
    return people.batches(config.input_format, view, batch_size=12, seed=0, shard=shard)
estimator.fit(distribute(strategy, batches), steps_per_epoch=1, shuffle=False, verbose=0)
if is_chief(strategy):
    moved = {}
    for number, (v, old) in enumerate(zip(estimator.trainable_variables, before, strict=True)):
        part = "regressor" if id(v) in of_regressor else "flow"
        moved[f"{part} {number} {v.path}".replace("/", "|")] = old - v.numpy()
    np.savez(sys.argv[2], **moved)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workers")
    for split in ("train", "val"):
        SyntheticSource(
            root / "people", split, train_people=120, val_people=30, rendered_size=(80, 80)
        )
    path = root / "recipe.yaml"
    path.write_text(RECIPE.format(root=root / "people"))
    return path


def ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return found


def environments(workers: int) -> list[dict]:
    """TF_CONFIG of each worker of a cluster on this machine."""
    base = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if workers == 1:
        return [base]
    hosts = [f"127.0.0.1:{port}" for port in ports(workers)]
    return [
        base
        | {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
            )
        }
        for index in range(workers)
    ]


def losses(recipe: Path, out: Path, workers: int, *overrides: str) -> list[np.ndarray]:
    """The running mean of the loss after each step, as each worker of a training saw it."""
    strategy = [] if workers == 1 else ["train.strategy=multi_worker"]
    command = [sys.executable, "-c", SCRIPT, str(recipe), str(out), *strategy, *overrides]
    processes = [
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for env in environments(workers)
    ]
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-3000:]
        lines = [line.split() for line in output.splitlines() if line.startswith("LOSS")]
        assert [int(step) for _, step, _ in lines] == list(range(1, STEPS * EPOCHS + 1))
        found.append(np.array([float(loss) for *_, loss in lines]))
    return found


@pytest.fixture(scope="module")
def single(recipe, tmp_path_factory) -> tuple[RunFolder, np.ndarray]:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "single")
    (found,) = losses(recipe, folder.path, 1)
    return folder, found


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_do_what_one_process_does(recipe, single, tmp_path, workers):
    folder = RunFolder(tmp_path / "run")
    for found in losses(recipe, folder.path, workers):
        np.testing.assert_allclose(found, single[1], atol=1e-4)
    assert_same_model(folder, single[0])
    assert folder.checkpoints.steps() == [STEPS, 2 * STEPS]
    history = [json.loads(line) for line in folder.history.read_text().splitlines()]
    wanted = [json.loads(line) for line in single[0].history.read_text().splitlines()]
    for line, other in zip(history, wanted, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert line["val_loss"] == pytest.approx(other["val_loss"], abs=1e-4)
    assert_same_scores(folder, single[0])


def test_averages_and_executions_of_several_steps(recipe, tmp_path):
    """The same model of two workers as of one process."""
    folders = {1: RunFolder(tmp_path / "single"), 2: RunFolder(tmp_path / "cluster")}
    for workers, folder in folders.items():
        train(recipe, folder.path, workers, "train.ema=0.8", "train.steps_per_execution=2")
        assert folder.checkpoints.steps() == [STEPS, 2 * STEPS]
    assert_same_model(folders[2], folders[1])


def test_workers_train_on_records(recipe, tmp_path, rle_tf):
    packed = tmp_path / "packed"
    for _ in range(2):  # packs, and compares checksums
        said = rle_tf(tmp_path, "records", recipe, "--out", packed, "--shards", 4)
        assert "120 people" in said
    folder = RunFolder(tmp_path / "run")
    # Batch statistics of each replica, and micro-batches of three.
    settings = ("train.sync_batch_norm=false", "train.accumulate=2", "train.clip_norm=1.0")
    train(recipe, folder.path, 2, f"data.records={packed}", *settings)
    assert folder.checkpoints.steps() == [STEPS, 2 * STEPS]
    assert json.loads(folder.metrics.read_text())["PCK@0.1"] >= 0

    shard = sorted(packed.glob("*.tfrecord"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    said = rle_tf(tmp_path, "records", recipe, "--out", packed, "--shards", 4, status=1)
    assert f"{shard.name}: has another checksum than index.json says" in " ".join(said.split())


def test_workers_of_two_recipes_are_refused(recipe, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--out", str(out)]
    command += ["--set", "train.strategy=multi_worker", "--set"]
    processes = [
        subprocess.Popen([*command, f"train.learning_rate={rate}"], env=env, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for env, rate in zip(environments(2), (1e-4, 2e-4), strict=True)
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 1
        assert "recipe's checksum: this worker has" in " ".join(said.split()), said[-3000:]
    assert RunFolder(out).checkpoints.steps() == []


def train(recipe: Path, out: Path, workers: int, *overrides: str) -> None:
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--out", str(out)]
    command += [part for override in overrides for part in ("--set", override)]
    if workers > 1:
        command += ["--set", "train.strategy=multi_worker"]
    run_all(command, environments(workers))


def run_all(command: list[str], variables: list[dict]) -> None:
    processes = [
        subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for env in variables
    ]
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-3000:]


def test_slurm_s_variables_make_a_cluster(recipe, single, tmp_path):
    """Two tasks of a step on one node, as srun would start them."""
    (base,) = environments(1)
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": "2"}  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--out", str(folder.path)]
    command += ["--set", "train.strategy=multi_worker"]
    run_all(command, [base | step | {"SLURM_PROCID": str(index)} for index in range(2)])
    assert folder.checkpoints.steps() == [STEPS, 2 * STEPS]
    assert_same_model(folder, single[0])


@pytest.mark.parametrize("workers", [2, 3])
def test_gradients_of_workers_are_those_of_one_process(recipe, tmp_path, workers):
    found = []
    for number in (1, workers):
        file = tmp_path / f"{number}.npz"
        strategy = [] if number == 1 else ["train.strategy=multi_worker"]
        command = [sys.executable, "-c", GRADIENTS, str(recipe), str(file), *strategy]
        run_all(command, environments(number))
        with np.load(file) as gradients:
            found.append(dict(gradients))
    single, cluster = found
    assert {name.split()[0] for name in single} == {"regressor", "flow"}
    for name, gradient in single.items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        np.testing.assert_allclose(cluster[name], gradient, atol=1e-4 * max(largest, 1))


def test_a_cluster_survives_kills(recipe, single, tmp_path):
    """Five kills at random moments: nothing is trained twice, and the end is the same."""
    folder = RunFolder(tmp_path / "run")
    rng = random.Random(0)
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--out", str(folder.path)]
    command += ["--restarts", "50", "--set", "train.strategy=multi_worker"]
    command += ["--set", "train.checkpoint_steps=1"]
    logs = [tmp_path / f"worker_{index}.log" for index in range(2)]
    supervisors = []
    for env, log in zip(environments(2), logs, strict=True):
        with log.open("w") as file:
            supervisors.append(
                subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
            )
    for moment in sorted(rng.sample(range(1, STEPS * EPOCHS - 2), 5)):
        deadline = time.monotonic() + 200
        while (folder.checkpoints.steps() or [0])[-1] < moment:
            assert time.monotonic() < deadline, logs[0].read_text()[-3000:]
            assert [process.poll() for process in supervisors] == [None, None]
            time.sleep(0.01)
        (child,) = _children(rng.choice(supervisors).pid)
        os.kill(child, signal.SIGKILL)
    assert [process.wait(timeout=300) for process in supervisors] == [0, 0]
    log = "".join(path.read_text() for path in logs)
    assert log.count("ended with status -9") == 5 and "ended with status 75" in log
    assert folder.checkpoints.steps()[-1] == STEPS * EPOCHS
    lines = [json.loads(line) for line in folder.history.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert_same_model(folder, single[0])
    assert_same_scores(folder, single[0])


def assert_same_scores(folder: RunFolder, wanted: RunFolder) -> None:
    ours, theirs = (json.loads(f.metrics.read_text()) for f in (folder, wanted))
    assert ours.keys() == theirs.keys()
    for name in ("PCK@0.1", "AP"):
        assert ours[name] == pytest.approx(theirs[name], abs=0.01), name


def assert_same_model(folder: RunFolder, wanted: RunFolder) -> None:
    crops = np.random.default_rng(0).normal(size=(8, 64, 32, 3)).astype("float32")
    ours, theirs = (f.load()[1].predict(crops, verbose=0) for f in (folder, wanted))
    for key in theirs:
        np.testing.assert_allclose(ours[key], theirs[key], atol=2e-3)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def test_a_killed_run_ends_with_the_same_bits(recipe, tmp_path):
    """kill -9 in the middle of an epoch, with operations that give the same bits."""
    env = environments(1)[0]
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--set",
               "train.deterministic=true", "--set", "train.checkpoint_steps=3", "--set",
               "train.ema=0.9"]  # fmt: skip
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    subprocess.run([*command, "--out", str(whole.path)], env=env, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "--out", str(broken.path)], env=env, stdout=subprocess.DEVNULL
    )
    while not (broken.checkpoints.steps() and broken.checkpoints.steps()[-1] % STEPS):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert broken.checkpoints.steps()[-1] < STEPS * EPOCHS
    subprocess.run(
        [*command, "--out", str(broken.path), "--resume"], env=env, check=True, capture_output=True
    )
    ours, theirs = (folder.load()[1].get_weights() for folder in (broken, whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    with np.load(broken.flow) as ours, np.load(whole.flow) as theirs:
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert broken.metrics.read_text() == whole.metrics.read_text()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("multi_worker", "no cluster: neither TF_CONFIG nor SLURM's variables are set"),
        ("tpu", "train.strategy: found 'tpu', and no TPU was found: TPUs not found in the cluster"),
    ],
)
def test_what_is_not_there_is_said(recipe, tmp_path, strategy, message):
    env = environments(1)[0]
    for name in ("TF_CONFIG", "TPU_NAME"):
        env.pop(name, None)
    command = [sys.executable, "-m", "rle_tf", "train", str(recipe), "--out", str(tmp_path / "run")]
    result = subprocess.run(
        [*command, "--set", f"train.strategy={strategy}"], env=env, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert message in " ".join(result.stderr.split()), result.stderr[-2000:]
    assert not (tmp_path / "run").exists()
