"""Scoring 6,352 people, all of COCO val2017's, against the time that COCOeval alone takes.

    python -m benchmarks.evaluation PATH/TO/coco2017_pose_labels_normalized.npz

What a model that answers at once would say is near the annotated poses. Ours takes that from its
outputs to what `rle_tf.evaluate` returns: to pixels, with detections through OKS-NMS, the results
and their scores, with their checks, COCOeval and the errors of joints. COCOeval has its results in
memory. Both have the ground truth, and photographs are not read by either.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

from benchmarks.annotations import write_dataset
from benchmarks.measure import show
from rle_tf.data.coco import CocoSource
from rle_tf.data.crops import CropFormat
from rle_tf.data.source import UNIT_SPREAD
from rle_tf.timing import bind, in_turns

TURNS = 7
CROPS = CropFormat((256, 192), (0.5,) * 3, (0.5,) * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    bind(options.cores)
    with tempfile.TemporaryDirectory() as name:
        path = write_dataset(options.labels, Path(name), split="val")
        annotated = CocoSource(path, path.parent / "images")
        detections = path.with_name("detections.json")
        boxes = annotated.records.boxes_xyxy
        entries = zip(annotated.records.image_ids.tolist(), boxes.tolist(), strict=True)
        detections.write_text(
            json.dumps(
                [
                    {
                        "image_id": image,
                        "category_id": 1,
                        "bbox": [x, y, right - x, bottom - y],
                        "score": 0.9,
                    }
                    for image, (x, y, right, bottom) in entries
                ]
            )
        )
        detected = CocoSource(path, path.parent / "images", detections=detections)
        output = answers(annotated)
        sides = {
            "annotated boxes": lambda: evaluated(annotated, output),
            "detections, OKS-NMS": lambda: evaluated(detected, output),
            "COCOeval alone": coco_eval(annotated, output),
        }
        show(
            f"{len(annotated.records):,} people",
            in_turns(sides, TURNS),
            "COCOeval alone",
            ("s", 1.0),
            ("pycocotools", "numpy"),
        )


def answers(source: CocoSource) -> dict[str, np.ndarray]:
    """Outputs a few pixels off."""
    records = source.records
    low, high = np.split(CROPS.crop_boxes(records)[:, None], 2, axis=-1)
    places = np.where(records.labelled[..., None], records.keypoints, (low + high) / 2)
    rng = np.random.default_rng(0)
    mu = (places - low) / (high - low) - 0.5 + 0.02 * rng.normal(size=places.shape)
    return {"mu": mu.astype("float32"), "sigma": rng.uniform(0.01, 0.2, mu.shape).astype("float32")}


def evaluated(source: CocoSource, output: dict[str, np.ndarray]) -> tuple[dict, list[dict]]:
    """As `rle_tf.evaluation.evaluate` ends."""
    poses = CROPS.decode(output, source.records, UNIT_SPREAD)
    return source.score(poses), source.results(poses)


def coco_eval(source: CocoSource, output: dict[str, np.ndarray]):
    """A call of pycocotools' evaluation of the same results."""
    results = source.results(CROPS.decode(output, source.records, UNIT_SPREAD))

    def evaluate():
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(source.ground_truth, predicted, "keypoints")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

    with contextlib.redirect_stdout(io.StringIO()):
        predicted = source.ground_truth.loadRes(results)
    return evaluate


if __name__ == "__main__":
    main()
