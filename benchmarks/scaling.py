"""What a training step of several workers on this machine is made of, and what GPUs would do.

    python benchmarks/scaling.py configs/lsp_mobilenet_rle.yaml --workers 1 2 3 \
        --set data.source.root=PATH/TO/lspet
    python benchmarks/scaling.py configs/coco_resnet50_rle.yaml --gpus 8 64 512 --compute-ms 150

The first trains with real processes on loopback in three ways, the whole batch being the same:

- whole: as `rle-tf train` does;
- no input: one batch again and again;
- alone: that too, and each process trains its part of the batch for itself at the same time.

So compute is "alone", all-reduce is "no input" less that, input is "whole" less "no input". The
second is arithmetic: the time of a ring all-reduce of the regressor's gradients (the flow's are a
thousandth) after a step's compute, without overlap, on a batch that grows with the GPUs.
docs/scaling.md has the figures of both.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from rle_tf.config import RunConfig, load_config
from rle_tf.data.pipeline import Shard
from rle_tf.distribution import distribute, make_strategy
from rle_tf.training import build_estimator

WARM_UP, STEPS = 5, 30
WAYS = ("whole", "no input", "alone")
# What connects the GPUs, from how many on, in bytes a second that each of them can send: NVLink
# within a machine of eight, beyond it one 100 Gbit/s port for each GPU.
LINKS = ((2, "NVLink, 300 GB/s", 300e9), (9, "100 Gbit/s a GPU", 12.5e9))


class StepTimes(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def worker(config: RunConfig, way: str, workers: int) -> None:
    """Prints the median time of a step in milliseconds."""
    batch_size = config.train.batch_size
    strategy = make_strategy(config.train.strategy, batch_size)
    people = config.open_training()
    with strategy.scope():
        estimator = build_estimator(config, people, STEPS)

    def batches(shard: Shard):
        parts = workers if way == "alone" else 1
        dataset = people.batches(
            config.input_format,
            config.data.augmentation,
            batch_size=batch_size // parts,
            seed=config.seed,
            shard=shard,
        )
        return dataset if way == "whole" else dataset.take(1).cache().repeat()

    times = StepTimes()
    estimator.fit(
        distribute(strategy, batches),
        steps_per_epoch=WARM_UP + STEPS,
        callbacks=[times],
        shuffle=False,
        verbose=0,
    )
    print(1000 * statistics.median(np.diff(times.ends)[WARM_UP - 1 :]))


def measure(way: str, workers: int, recipe: str, overrides: list[str]) -> float:
    """Milliseconds a step, of the slowest process."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    hosts = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    cluster = way != "alone" and workers > 1
    if cluster:
        overrides = [*overrides, "train.strategy=multi_worker"]
    command = [sys.executable, __file__, recipe, "--way", way, "--workers", str(workers)]
    processes = []
    for index in range(workers):
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if cluster:
            task = {"type": "worker", "index": index}
            env["TF_CONFIG"] = json.dumps({"cluster": {"worker": hosts}, "task": task})
        arguments = [*command, "--set", *overrides] if overrides else command
        processes.append(subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{workers} workers, {way}: a process failed")
    return max(float(output.splitlines()[-1]) for output in outputs)


def split(recipe: str, overrides: list[str], numbers: list[int]) -> Table:
    table = Table("workers", "step, ms", "compute", "all-reduce", "input", title=recipe)
    for workers in numbers:
        whole, no_input, alone = (measure(way, workers, recipe, overrides) for way in WAYS)
        parts = (whole, alone, no_input - alone, whole - no_input)
        table.add_row(str(workers), *(f"{part:.0f}" for part in parts))
    return table


def estimate(recipe: str, overrides: list[str], numbers: list[int], compute_ms: float) -> Table:
    """A ring sends 2 (n - 1) / n of the gradients' bytes through each GPU's link."""
    config = load_config(recipe, overrides)
    regressor = config.model.model_copy(update={"weights": None}).build(
        config.data.source.skeleton, 2, config.data.image_size
    )
    size = 4 * sum(int(np.prod(v.shape)) for v in regressor.trainable_variables)
    table = Table("GPUs", "link", "all-reduce, ms", "step, ms", "of linear speed")
    table.title = f"{recipe}: {size / 1e6:.0f} MB of gradients, {compute_ms:g} ms of compute"
    for number in numbers:
        _, link, bandwidth = next((row for row in reversed(LINKS) if number >= row[0]), LINKS[0])
        reduce_ms = 1000 * 2 * (number - 1) / number * size / bandwidth
        step = compute_ms + reduce_ms
        table.add_row(
            str(number), link, f"{reduce_ms:.1f}", f"{step:.1f}", f"{compute_ms / step:.1%}"
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--workers", type=int, nargs="*", default=[])
    parser.add_argument("--gpus", type=int, nargs="*", default=[])
    parser.add_argument("--compute-ms", type=float, help="of a step, on one GPU")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        worker(load_config(options.recipe, options.overrides), options.way, *options.workers)
        return
    if options.workers:
        Console().print(split(options.recipe, options.overrides, options.workers))
    if options.gpus:
        if not options.compute_ms:
            parser.error("--gpus: how long one GPU computes for a step is --compute-ms")
        table = estimate(options.recipe, options.overrides, options.gpus, options.compute_ms)
        Console().print(table)


if __name__ == "__main__":
    main()
