"""From the full COCO annotations to the first batch, against what pycocotools takes to load them.

    python -m benchmarks.annotations PATH/TO/coco2017_pose_labels_normalized.npz
    python -m benchmarks.annotations PATH/TO/... --growth docs/growth.png

The labels are made into COCO's JSON (149,813 people of 56,599 images), every image is a link to one
grey photograph; nobody is a crowd, has an outline or no joints. Each side runs in a process of its
own, in turns, and its time counts from when its packages are imported; with --growth ours alone,
on people in number from a thousand to a million, three times each, and a picture of it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from rich.table import Table

from benchmarks.measure import CONSOLE, show
from rle_tf.skeletons import COCO17
from rle_tf.timing import Times, bind, machine

SIZE = (640, 480)
TURNS, GROWTH_TURNS = 5, 3


def write_dataset(
    labels: Path, folder: Path, people: int | None = None, split: str = "train"
) -> Path:
    """COCO's JSON of a split's labels, or of so many people, drawn again where there are fewer.

    Returns:
        The JSON; its images are in `folder`/images.
    """
    with np.load(labels) as content:
        chosen = np.flatnonzero(content["is_train"] == (split == "train"))
        if people is not None:
            chosen = np.resize(chosen, people)
        joints = content["keypoints"][chosen].astype(float)
        boxes, images = content["bbox_cxcywh"][chosen].astype(float), content["image_id"][chosen]
    # The same photographs again are others: as many people an image as COCO has.
    images = images.astype(np.int64) + 10**6 * (np.arange(len(chosen)) // 149_813)
    size = np.array(SIZE, float)
    joints[..., :2] = (joints[..., :2] * size).clip(0, size).round(1)
    boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    boxes = (boxes * np.tile(size, 2)).round(2)
    annotations = [
        {
            "id": row + 1,
            "image_id": int(image),
            "category_id": 1,
            "iscrowd": 0,
            "bbox": box.tolist(),
            "area": round(0.53 * box[2] * box[3], 2) + 1,
            "num_keypoints": int((joint[:, 2] > 0).sum()),
            "keypoints": joint.ravel().tolist(),
        }
        for row, (image, box, joint) in enumerate(zip(images, boxes, joints, strict=True))
    ]
    pictures = folder / "images"
    pictures.mkdir()
    Image.new("RGB", SIZE, (127, 127, 127)).save(folder / "grey.jpg")
    entries = []
    for image in np.unique(images).tolist():
        name = f"{image:012d}.jpg"
        (pictures / name).symlink_to(folder / "grey.jpg")
        entries.append({"id": image, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
    category = {"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": entries, "annotations": annotations, "categories": [category]})
    )
    return path


# What each process does; it prints the seconds since its imports, and its memory.
OURS = """
import sys, time, tensorflow as tf
from rle_tf.timing import peak_memory_mib
from rle_tf.data.augment import Augmentation
from rle_tf.data.coco import CocoSource
from rle_tf.data.crops import CropFormat
from rle_tf.data.pipeline import PhotographedPeople
tf.constant(0)
start = time.perf_counter()
source = CocoSource(sys.argv[1], sys.argv[2])
loaded = time.perf_counter() - start
crops = CropFormat((256, 192), (0.5,) * 3, (0.5,) * 3)
next(iter(PhotographedPeople(source).batches(crops, Augmentation(), batch_size=32, seed=0)))
print(time.perf_counter() - start, loaded, peak_memory_mib())
"""
THEIRS = """
import sys, time
from rle_tf.timing import peak_memory_mib
from pycocotools.coco import COCO
start = time.perf_counter()
COCO(sys.argv[1])
print(time.perf_counter() - start, 0, peak_memory_mib())
"""


def run(code: str, path: Path) -> tuple[float, float, float]:
    """Seconds to the first batch, those to the records alone, and MiB."""
    command = [sys.executable, "-c", code, str(path), str(path.parent / "images")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(map(float, said.split()[-3:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--growth", type=Path, metavar="PICTURE")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    bind(options.cores)
    with tempfile.TemporaryDirectory() as name:
        if options.growth:
            growth(options.labels, Path(name), options.growth)
        else:
            against_pycocotools(options.labels, Path(name))


def against_pycocotools(labels: Path, folder: Path) -> None:
    path = write_dataset(labels, folder)
    sides = {"first batch of rle_tf": OURS, "pycocotools' COCO(json)": THEIRS}
    found = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, code in sides.items():
            found[name].append(run(code, path))
    times = {name: Times(tuple(each[0] for each in values)) for name, values in found.items()}
    packages = ("tensorflow", "pycocotools", "numpy", "orjson")
    show("149,813 people, from their JSON", times, "pycocotools' COCO(json)", ("s", 1.0), packages)
    for name, values in found.items():
        CONSOLE.print(f"{name}: at most {max(each[2] for each in values):.0f} MiB")


def growth(labels: Path, folder: Path, picture: Path) -> None:
    counts = (10**3, 10**4, 10**5, 10**6)
    table = Table("people", "s to the records", "s to the first batch", "MiB", title=machine())
    found = []
    for people in counts:
        own = folder / str(people)
        own.mkdir()
        path = write_dataset(labels, own, people)
        seconds, loaded, memory = zip(*(run(OURS, path) for _ in range(GROWTH_TURNS)), strict=True)
        middle = statistics.median(loaded), statistics.median(seconds), max(memory)
        shown = (
            f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
            for each in (loaded, seconds)
        )
        table.add_row(f"{people:,}", *shown, f"{max(memory):.0f}")
        found.append(middle)
    CONSOLE.print(table)
    loaded, seconds, memory = np.array(found).T
    figure, (time, space) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    time.loglog(counts, seconds, "o-", label="first batch")
    time.loglog(counts, loaded, "o-", label="records")
    time.set_ylabel("seconds")
    # TensorFlow takes most of the memory of the smallest.
    space.loglog(counts, memory, "o-", label="process")
    space.loglog(counts[1:], memory[1:] - memory[0], "o-", label="more than with a thousand")
    space.set_ylabel("MiB, at most")
    for axes, last in ((time, loaded[-1]), (space, memory[-1] - memory[0])):
        axes.loglog(counts, last * np.array(counts) / counts[-1], "k:", label="linear")
        axes.set_xlabel("people")
        axes.legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
