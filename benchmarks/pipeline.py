"""Training images a second on one core: from photographs and records, against OpenCV with PyTorch's
DataLoader, and against decoding the part of the photograph that a person needs.

    pip install -e ".[benchmark]"
    python -m benchmarks.pipeline PATH/TO/coco
    python -m benchmarks.pipeline PATH/TO/DATA --recipe configs/RECIPE.yaml

The paper's 2D augmentation (half body, scale, rotation, flip) at 256x192, batches of 32. Each side
runs in a process of its own that is bound to one core (`--cores` for more), and all take turns.
With a recipe its photographs against its records, alone. `--profile` shows instead in what
operations ours spends an image's time, from photographs and from records.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.measure import CONSOLE, profile, show
from rle_tf.timing import Times, bind

TURNS, WARM_UP, BATCHES, BATCH = 7, 2, 20, 32
SIZE = (256, 192)
SIDES = (
    THEIRS := "OpenCV + DataLoader",
    PHOTOGRAPHS := "rle_tf, photographs",
    RECORDS := "rle_tf, records",
    FLOOR := "region decoded alone",
)


def coco(root: str):
    from rle_tf.data.coco import CocoSource

    folder = Path(root)
    annotations = folder / "annotations/person_keypoints_train2017.json"
    return CocoSource(annotations, folder / "train2017")


def crop_format():
    from rle_tf.data.crops import CropFormat

    return CropFormat(SIZE, (0.406, 0.457, 0.480), (1.0, 1.0, 1.0))


def training(options: argparse.Namespace):
    """What is read: a source, crops, a view of them and how many a batch; the recipe's or ours."""
    from rle_tf.data.augment import Augmentation

    if not options.recipe:
        return coco(options.root), crop_format(), Augmentation(), BATCH
    from rle_tf.config import load_config

    config = load_config(options.recipe, [f"data.source.root={options.root}", *options.overrides])
    source = config.open_source("train")
    return source, config.input_format, config.data.augmentation, config.train.batch_size


def batches(side: str, options: argparse.Namespace) -> tuple[Iterator, int]:
    """A side's, and how many images each has."""
    source, crops, view, batch = training(options)
    if side == THEIRS:
        from benchmarks.opencv_pipeline import People, loader

        people = People(source.records, source.skeleton, SIZE, view, crops.mean, crops.std)
        # On one core a worker would only be in the loader's way.
        made = loader(people, batch, 0 if options.cores == 1 else options.cores)
        return itertools.chain.from_iterable(itertools.repeat(made)), batch
    if side == FLOOR:
        return iter(regions(source)), batch
    from rle_tf.data.pipeline import PhotographedPeople
    from rle_tf.data.records import PackedPeople

    people = PackedPeople(options.records) if side == RECORDS else PhotographedPeople(source)
    return iter(people.batches(crops, view, batch_size=batch, seed=0)), batch


def regions(source):
    """What no pipeline does without: the file, and of it the person's part."""
    import tensorflow as tf

    from rle_tf.data.crops import read_region

    columns = crop_format().columns(source.records)

    def region(path, image_wh, centre, size_wh):
        last = tf.cast(image_wh, tf.float32)
        low, high = (tf.clip_by_value(centre + s * size_wh / 2, 0.0, last) for s in (-1, 1))
        low = tf.minimum(tf.cast(low, tf.int32), image_wh - 1)
        high = tf.maximum(tf.cast(tf.math.ceil(high), tf.int32), low + 1)
        return tf.shape(read_region(path, image_wh, low, high)[0])

    dataset = tf.data.Dataset.from_tensor_slices(
        (columns.path, columns.image_wh, columns.centre, columns.size_wh)
    )
    dataset = dataset.shuffle(10_000, seed=0).repeat().map(region, tf.data.AUTOTUNE)
    return dataset.batch(BATCH).prefetch(2)


def take(made: Iterator) -> None:
    for _ in range(BATCHES):
        next(made)


def serve(options: argparse.Namespace) -> None:
    """Answers each line on the standard input by the seconds that an image took."""
    made, batch = batches(options.side, options)
    for _ in sys.stdin:
        start = time.perf_counter()
        take(made)
        print(json.dumps((time.perf_counter() - start) / (BATCHES * batch)), flush=True)


class Side:
    """A process that makes a side's batches, and is stopped with its workers while others do."""

    def __init__(self, name: str, records: str):
        self.name, self.log = name, tempfile.TemporaryFile()
        arguments = [*sys.argv[1:], "--side", name, "--records", records]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pipeline", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_) -> None:
        self._signal(signal.SIGKILL)
        self.process.communicate()
        self.log.close()

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def seconds(self) -> float:
        """An image's, over some batches."""
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it died of is in its log
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"{self.name}: {self.log.read().decode(errors='replace')}")
        # Or it would go on making batches ahead while the others are timed.
        self._signal(signal.SIGSTOP)
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root")
    parser.add_argument("--recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--records", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bind(options.cores)
    if options.side:
        serve(options)
        return
    title = options.recipe or f"The paper's 2D augmentation at {SIZE[0]}x{SIZE[1]}"
    from rle_tf.data.records import write_records

    names = (PHOTOGRAPHS, RECORDS) if options.recipe else SIDES
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        records = f"{folder}/records"
        source, crops, view, _ = training(options)
        index = write_records(source, crops, view, records, shards=4)
        size = sum(shard.bytes for shard in index.shards) / len(source.records) / 1024
        CONSOLE.print(f"a record has {size:.0f} KiB")
        if options.profile:
            options.records = records
            for name in (PHOTOGRAPHS, RECORDS):
                made, batch = batches(name, options)
                each = BATCHES * batch
                profile(f"{title}: {name}, ms an image", partial(take, made), each, rows=20)
            return
        sides = [stack.enter_context(Side(name, records)) for name in names]
        seconds = {side.name: [] for side in sides}
        for turn in range(WARM_UP + TURNS):
            for side in sides:
                found = side.seconds()
                if turn >= WARM_UP:
                    seconds[side.name].append(found)
    times = {name: Times(tuple(values)) for name, values in seconds.items()}
    packages = ("tensorflow", "torch", "opencv-python-headless")
    show(title, times, names[0], ("ms an image", 1e3), packages)
    for name, each in times.items():
        CONSOLE.print(f"{name}: {1 / each.median:.0f} images/s")
    if not options.recipe:
        floor, least, most = times[PHOTOGRAPHS].ratio(times[FLOOR])
        CONSOLE.print(f"{PHOTOGRAPHS}: {floor:.1f} times {FLOOR} ({least:.1f} to {most:.1f})")


if __name__ == "__main__":
    main()
