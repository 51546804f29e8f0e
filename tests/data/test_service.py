"""One dispatcher and two workers on this machine make the batches of a training."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from rle_tf.config import load_config
from rle_tf.data.service import (
    check_service,
    served,
    start_dispatcher,
    start_worker,
    watched_service,
)
from rle_tf.errors import ConfigError, DataError, WorkerLost

RECIPE = """\
name: served
data:
  source:
    {{kind: synthetic, root: {root}, train_people: 40, val_people: 4, rendered_size: [64, 64]}}
  image_size: [32, 32]
model: {{backbone: mobilenet, output_layer: conv1_relu}}
loss: {{kind: l1}}
train: {{batch_size: 4, epochs: {epochs}, drawn_people: 0}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def service():
    dispatcher = start_dispatcher(0)
    place = dispatcher.target.partition("://")[2]
    workers = [start_worker(place, "localhost", 0) for _ in range(2)]
    yield dispatcher.target
    del workers, dispatcher


def recipe(tmp_path: Path, epochs: int = 1) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(root=tmp_path / "people", epochs=epochs))
    return path


def test_everybody_is_made_once(service):
    """By whichever of the workers."""
    numbers = tf.data.Dataset.range(100).map(lambda number: number * 2).batch(4)
    found = np.concatenate(list(served(numbers, service, "once").as_numpy_iterator()))
    assert sorted(found) == list(range(0, 200, 2))


def test_two_trainers_share_a_job(service):
    numbers = tf.data.Dataset.range(100).batch(4)
    first, second = (iter(served(numbers, service, "shared")) for _ in range(2))
    found = [next(first).numpy(), next(second).numpy()]
    found += [batch.numpy() for each in (first, second) for batch in each]
    assert sorted(np.concatenate(found)) == list(range(100))


def test_samples_are_those_of_the_training_itself(service, tmp_path):
    """The same images as without a service, in whatever order."""
    config = load_config(recipe(tmp_path))
    people = config.open_training()
    batches = people.batches(config.input_format, config.data.augmentation, batch_size=4, seed=0)
    wanted = {image.tobytes() for image, _ in batches.unbatch().take(40).as_numpy_iterator()}
    made = served(batches, service, "samples").unbatch().take(24).as_numpy_iterator()
    found = [image.tobytes() for image, _ in made]
    assert len(set(found)) == 24
    assert len(wanted & set(found)) >= 16  # a worker may be some batches ahead of the other


@pytest.mark.parametrize(
    ("service", "error", "message"),
    [
        ("10.0.0.7:5050", ConfigError, "found '10.0.0.7:5050'; expected grpc://HOST:PORT"),
        ("grpc://nowhere", ConfigError, "found 'nowhere'; expected HOST:PORT"),
        ("grpc://127.0.0.1:{}", DataError, "refused; expected a running dispatcher"),
    ],
)
def test_no_dispatcher(service, error, message):
    with pytest.raises(error, match=f"data.service: .*{message}"):
        check_service(service.format(free_port()))


def test_a_worker_without_a_dispatcher():
    with pytest.raises(DataError, match="--dispatcher: 127.0.0.1:.*refused; expected a running"):
        start_worker(f"127.0.0.1:{free_port()}", "localhost", 0)


def test_a_port_that_is_taken(service):
    port = int(service.rpartition(":")[2])
    with pytest.raises(
        DataError, match=f"--port {port}: somebody listens there; expected one that is free"
    ):
        start_dispatcher(port)


def test_what_a_service_cannot_do(tmp_path):
    path = recipe(tmp_path)
    for override in ("data.records=/records", "train.deterministic=true"):
        with pytest.raises(ConfigError, match="data.service: .*; expected one of"):
            load_config(path, ["data.service=grpc://a:1", override])


@pytest.mark.parametrize(
    "said",
    [
        "Failed to get tasks: Unknown iteration client id 3000. The dispatcher is not configured "
        "to be fault tolerant, so this could be caused by a dispatcher restart.",
        "Iteration client id not found: 3000",
        "Dataset 1000 not found",
    ],
)
def test_what_a_dispatcher_says_that_knows_nothing_of_the_training(service, said):
    with pytest.raises(WorkerLost, match="no longer knows of this training; checkpoints are there"):
        with watched_service(service, "checkpoints are there"):
            raise tf.errors.NotFoundError(None, None, said)


def test_what_else_is_not_found(service):
    with pytest.raises(tf.errors.NotFoundError, match="no such photograph"):
        with watched_service(service, "checkpoints are there"):
            raise tf.errors.NotFoundError(None, None, "no such photograph")


def rle_tf(*arguments: str, out: Path) -> subprocess.Popen:
    with out.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "rle_tf", *arguments],
            stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "COLUMNS": "200"},
        )  # fmt: skip


class Cluster:
    """A training, its dispatcher and two workers, each a process from the command line."""

    def __init__(self, folder: Path):
        self.folder, self.run, self.port = folder, folder / "run", free_port()
        self.processes = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        self.processes.append(rle_tf(*arguments, out=self.folder / f"{name}.log"))
        return self.processes[-1]

    def start_dispatcher(self, *options: str) -> subprocess.Popen:
        return self.start("d", "data-service", "dispatcher", "--port", str(self.port), *options)

    def start_training(self) -> subprocess.Popen:
        self.until(lambda: "dispatcher:" in (self.folder / "d.log").read_text())
        for index in range(2):
            place = f"localhost:{self.port}"
            self.start(f"w{index}", "data-service", "worker", "--dispatcher", place)
        training = self.start(
            "t", "train", str(recipe(self.folder, epochs=10_000)), "--out", str(self.run),
            "--set", f"data.service=grpc://localhost:{self.port}",
        )  # fmt: skip
        self.until(lambda: self.epochs() > 0)
        return training

    def until(self, done) -> None:
        deadline = time.monotonic() + 120
        while not done():
            assert [process.poll() for process in self.processes[1:]] == [None] * (
                len(self.processes) - 1
            ), (self.folder / "t.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def epochs(self) -> int:
        history = self.run / "history.jsonl"
        return len(history.read_text().splitlines()) if history.exists() else 0


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    for process in cluster.processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_training_from_the_command_line_and_a_dispatcher_that_is_lost(cluster):
    """It ends with status 75, and what it has saved is whole."""
    cluster.start_dispatcher()
    training = cluster.start_training()
    for process in cluster.processes[:-1]:
        process.send_signal(signal.SIGKILL)
    assert training.wait(timeout=150) == os.EX_TEMPFAIL
    log = (cluster.folder / "t.log").read_text()
    assert f"data.service: grpc://localhost:{cluster.port} no longer answers; checkpoints" in log
    history = (cluster.run / "history.jsonl").read_text()
    epochs = [json.loads(line)["epoch"] for line in history.splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    config = load_config(
        cluster.run / "config.yaml", ["data.service=null", f"train.epochs={len(epochs)}"]
    )
    from rle_tf.training import train

    assert train(config, cluster.run, resume=True)


@pytest.mark.slow
def test_a_dispatcher_that_is_started_again_where_it_was_goes_on(cluster):
    options = ("--work-dir", str(cluster.folder / "dispatcher"))
    dispatcher = cluster.start_dispatcher(*options)
    cluster.start_training()
    dispatcher.kill()
    dispatcher.wait()
    cluster.processes[0] = cluster.start_dispatcher(*options)
    done = cluster.epochs()
    # What was made before is used up meanwhile.
    cluster.until(lambda: cluster.epochs() > done + 20)


@pytest.mark.slow
def test_a_dispatcher_that_knows_nothing_of_the_training(cluster):
    dispatcher = cluster.start_dispatcher()
    training = cluster.start_training()
    dispatcher.kill()
    dispatcher.wait()
    cluster.start_dispatcher()
    assert training.wait(timeout=150) == os.EX_TEMPFAIL
    said = " ".join((cluster.folder / "t.log").read_text().split())
    assert "was started anew and no longer knows of this training; checkpoints are in" in said
