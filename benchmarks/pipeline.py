"""Training images a second on one core: from photographs and records, against OpenCV with PyTorch's
DataLoader, and against decoding the part of the photograph that a person needs.

    pip install -e ".[benchmark]"
    python -m benchmarks.pipeline PATH/TO/coco

The paper's augmentation at 256x192, batches of 32. Each side runs in a process of its own that is
bound to one core (`--cores` for more), and all take turns. `--profile` shows instead in what
operations ours spends an image's time.
"""

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import CONSOLE, Times, machine, profile, show
from rle_tf.export.latency import bind

TURNS, WARM_UP, BATCHES, BATCH = 7, 2, 20, 32
SIZE = (256, 192)
SIDES = ("OpenCV + DataLoader", "rle_tf, photographs", "rle_tf, records", "region decoded alone")


def coco(root: str):
    from rle_tf.data.coco import CocoSource

    folder = Path(root)
    annotations = folder / "annotations/person_keypoints_train2017.json"
    return CocoSource(annotations, folder / "train2017")


def crop_format():
    from rle_tf.data.crops import CropFormat

    return CropFormat(SIZE, (0.406, 0.457, 0.480), (1.0, 1.0, 1.0))


def batches(side: str, root: str, records: str, cores: int) -> Iterator:
    from rle_tf.data.augment import Augmentation

    view = Augmentation()
    if side == SIDES[0]:
        from benchmarks.opencv_pipeline import People, loader

        source, crops = coco(root), crop_format()
        people = People(source.records, source.skeleton, SIZE, view, crops.mean, crops.std)
        # On one core a worker would only be in the loader's way.
        made = loader(people, BATCH, 0 if cores == 1 else cores)
        return itertools.chain.from_iterable(itertools.repeat(made))
    if side == SIDES[3]:
        return iter(regions(coco(root)))
    from rle_tf.data.pipeline import PhotographedPeople
    from rle_tf.data.records import PackedPeople

    people = PackedPeople(records) if side == SIDES[2] else PhotographedPeople(coco(root))
    return iter(people.batches(crop_format(), view, batch_size=BATCH, seed=0))


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


def serve(side: str, root: str, records: str, cores: int) -> None:
    """Answers each line on the standard input by the seconds that some batches took."""
    bind(cores)
    made = batches(side, root, records, cores)
    for _ in sys.stdin:
        start = time.perf_counter()
        take(made)
        print(json.dumps(time.perf_counter() - start), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--records", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.root, options.records, options.cores)
        return
    if options.profile:
        bind(options.cores)
        made = batches(SIDES[1], options.root, "", options.cores)
        title = f"{SIDES[1]}: ms an image, {options.cores} cores"
        profile(title, lambda: take(made), each=BATCHES * BATCH, rows=20)
        return
    from rle_tf.data.augment import Augmentation
    from rle_tf.data.records import write_records

    with tempfile.TemporaryDirectory() as folder:
        records = f"{folder}/records"
        write_records(coco(options.root), crop_format(), Augmentation(), records, shards=4)
        processes = {
            side: subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.pipeline", options.root, "--side", side,
                    "--records", records, "--cores", str(options.cores),
                ],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )
            for side in SIDES
        }  # fmt: skip
        seconds = {side: [] for side in SIDES}
        for turn in range(WARM_UP + TURNS):
            for side, process in processes.items():
                process.send_signal(signal.SIGCONT)
                process.stdin.write("\n")
                process.stdin.flush()
                found = json.loads(process.stdout.readline())
                # Or it would go on making batches ahead while the others are timed.
                process.send_signal(signal.SIGSTOP)
                if turn >= WARM_UP:
                    seconds[side].append(found)
        for process in processes.values():
            process.kill()
            process.communicate()
    times = {side: Times(tuple(values)) for side, values in seconds.items()}
    images = BATCHES * BATCH
    title = f"Training images at {SIZE[0]}x{SIZE[1]}, {options.cores} cores"
    show(title, times, SIDES[0], ("ms an image", 1e3 / images))
    for side, each in times.items():
        CONSOLE.print(f"{side}: {images / each.median:.0f} images/s")
    floor, _, _ = times[SIDES[1]].ratio(times[SIDES[3]])
    CONSOLE.print(f"photographs take {floor:.2f} times the region's decoding")
    CONSOLE.print(machine(("torch", "opencv-python-headless")))


if __name__ == "__main__":
    main()
