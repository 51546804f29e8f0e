"""Rendered scenes as a COCO keypoints dataset on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

from rle_tf.data.rendering.dataset_folder import (
    check_arguments,
    run,
    worthwhile_workers,
    write_folder,
    write_json,
)
from rle_tf.data.rendering.scenes import SUPERSAMPLING, box_xyxy, sample_scene
from rle_tf.skeletons import COCO17

RENDERER_VERSION = 1  # raise it with any change that alters what is written
# A worker takes about a second to start: fewer people than this are not worth one.
_PEOPLE_PER_WORKER = 75


_SPLITS = ("train2017", "val2017")
_LICENSE_ID = 1


def _outline(mask: np.ndarray) -> list[float]:
    """The outermost edges of a mask row by row as one polygon x, y, x, y, ..., pixels."""
    rows = np.nonzero(mask.any(1))[0]
    rows = np.unique(np.append(rows[::8], rows[-1] + 1))
    within = mask[np.minimum(rows, len(mask) - 1)]
    within[-1] = mask[rows[-1] - 1]
    left = within.argmax(1)
    right = mask.shape[1] - within[:, ::-1].argmax(1)
    filled = within.any(1)
    points = np.concatenate(
        [
            np.stack([left, rows], 1)[filled],
            np.stack([right, rows], 1)[filled][::-1],
        ]
    )
    return (points / SUPERSAMPLING).ravel().tolist()


def _image_id(split: str, index: int) -> int:
    """COCO's train and val share no ids; neither do these."""
    return index + 1 + (1_000_000 if split == "val2017" else 0)


def _write_image(job: tuple[Path, str, int, int, int, tuple[int, int]]) -> list[dict]:
    """Renders one image into the folder; returns its annotations, without their ids.

    What is drawn depends on (seed, split, index) alone, so any process may draw it.
    """
    folder, split, index, people, seed, size = job
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    scene = sample_scene(rng, size, people)
    path = folder / split / f"{_image_id(split, index):012d}.jpg"
    Image.fromarray(scene.image).save(path, quality=90)
    annotations = []
    for mask, keypoints in zip(scene.masks, scene.keypoints, strict=True):
        x0, y0, x1, y1 = (box_xyxy(mask) / SUPERSAMPLING).tolist()
        annotations.append(
            {
                "image_id": _image_id(split, index),
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()) / SUPERSAMPLING**2,
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "keypoints": [
                    value
                    for x, y, v in keypoints.tolist()
                    for value in (round(x, 2), round(y, 2), int(v))
                ],
                "segmentation": [_outline(mask)],
            }
        )
    return annotations


def _detections(
    rng: np.random.Generator, images: list[dict], annotations: list[dict]
) -> list[dict]:
    """What a person detector might have found, in COCO's result format.

    Boxes are off by some percent; a few people are missed, a few found twice, and about one
    image in six has a false positive. Scores are higher for people than for what is none.
    """
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    found = []
    for image in images:
        width, height = image["width"], image["height"]
        boxes: list[tuple[np.ndarray, float]] = []
        for annotation in by_image[image["id"]]:
            box = np.array(annotation["bbox"])
            hits = rng.choice(3, p=[0.03, 0.9, 0.07])
            for again in range(hits):
                spread = 0.04 * (1 + 2 * again)
                extent = box[2:] * np.exp(rng.normal(0, spread, 2))
                centre = box[:2] + box[2:] * (0.5 + rng.normal(0, spread, 2))
                score = 1 - rng.beta(1.2, 6) if again == 0 else rng.uniform(0.05, 0.6)
                boxes.append((np.concatenate([centre - extent / 2, centre + extent / 2]), score))
        if rng.random() < 0.17:
            low = rng.uniform(0, 0.7, 2) * (width, height)
            extent = rng.uniform(0.1, 0.5, 2) * (width, height)
            boxes.append((np.concatenate([low, low + extent]), rng.uniform(0.05, 0.7)))
        for box, score in boxes:
            x0, x1 = np.clip(box[[0, 2]], 0, width)
            y0, y1 = np.clip(box[[1, 3]], 0, height)
            if x1 - x0 < 1 or y1 - y0 < 1:
                continue
            found.append(
                {
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": [round(float(value), 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(float(score), 5),
                }
            )
    return found


def _crowd_sizes(rng: np.random.Generator, people: int) -> list[int]:
    """1 to 3 people an image, mostly one, `people` in all."""
    sizes = []
    while people > 0:
        sizes.append(min(people, int(rng.choice([1, 2, 3], p=[0.78, 0.16, 0.06]))))
        people -= sizes[-1]
    return sizes


def _write_dataset(
    folder: Path, people: dict[str, int], seed: int, size: tuple[int, int], workers: int
) -> None:
    """Writes everything but the manifest into a folder that is not there yet."""
    height, width = size
    crowds = {
        split: _crowd_sizes(np.random.default_rng([seed, 2, number]), people[split])
        for number, split in enumerate(_SPLITS)
    }
    jobs = [
        (folder, split, index, count, seed, size)
        for split in _SPLITS
        for index, count in enumerate(crowds[split])
    ]
    for split in _SPLITS:
        (folder / split).mkdir(parents=True)
    written = run(_write_image, jobs, workers, "write_synthetic_coco")
    for number, split in enumerate(_SPLITS):
        annotations = [each for _ in crowds[split] for each in next(written)]
        for index, annotation in enumerate(annotations):
            annotation["id"] = _image_id(split, index)
        images = [
            {
                "id": _image_id(split, index),
                "file_name": f"{_image_id(split, index):012d}.jpg",
                "width": width,
                "height": height,
                "license": _LICENSE_ID,
            }
            for index in range(len(crowds[split]))
        ]
        content = {
            "info": {
                "description": f"Rendered people, {split}, rle_tf.data.synthetic",
                "version": str(RENDERER_VERSION),
            },
            "licenses": [
                {
                    "id": _LICENSE_ID,
                    "name": "Apache License 2.0",
                    "url": "https://www.apache.org/licenses/LICENSE-2.0",
                }
            ],
            "images": images,
            "annotations": annotations,
            "categories": [
                {
                    "id": 1,
                    "name": "person",
                    "supercategory": "person",
                    "keypoints": list(COCO17.joints),
                    "skeleton": [[first + 1, second + 1] for first, second in COCO17.bones],
                }
            ],
        }
        write_json(folder / "annotations" / f"person_keypoints_{split}.json", content)
        if split == "val2017":
            rng = np.random.default_rng([seed, 3, number])
            write_json(
                folder / "detections" / f"person_detections_{split}.json",
                _detections(rng, images, annotations),
            )


def write_synthetic_coco(
    root: Path,
    *,
    train_people: int,
    val_people: int,
    seed: int,
    image_size: tuple[int, int] = (160, 160),
    workers: int | None = None,
) -> None:
    """Writes rendered people as a COCO keypoints dataset, with detections for its val split.

    The folder then holds `train2017/` and `val2017/` (JPEG), `annotations/` with
    `person_keypoints_train2017.json` and `..._val2017.json`, `detections/` with
    `person_detections_val2017.json`, and `synthetic.json`, which says how it was made. The same
    arguments give the same bytes, whatever the number of workers. A folder that already holds
    this dataset is left as it is. Nothing stands at `root` before all of it is written.

    Large datasets are rendered in spawned processes: as always with those, a script calls this
    under `if __name__ == "__main__":`.

    Args:
        root: The dataset's folder: absent, empty, or written with the same arguments.
        train_people: People in the train split, at least 1; 1 to 3 an image.
        val_people: The same for the val split.
        seed: Not negative.
        image_size: (height, width) of each image, pixels, each at least 64.
        workers: Processes to render in; 1 is this one. None takes one a core, fewer where the
            people are few.

    Raises:
        ConfigError: An argument is outside its range.
        DataError: `root` is a file or holds something else, or a worker process died.
    """
    check_arguments(
        "write_synthetic_coco",
        train_people=train_people,
        val_people=val_people,
        seed=seed,
        image_size=image_size,
        workers=workers,
    )
    if workers is None:
        workers = worthwhile_workers(train_people + val_people, _PEOPLE_PER_WORKER)
    manifest = {
        "renderer": RENDERER_VERSION,
        "train_people": train_people,
        "val_people": val_people,
        "seed": seed,
        "image_size": list(image_size),
    }
    people = dict(zip(_SPLITS, (train_people, val_people), strict=True))
    write_folder(
        root,
        manifest,
        lambda folder: _write_dataset(folder, people, seed, tuple(image_size), workers),
    )
