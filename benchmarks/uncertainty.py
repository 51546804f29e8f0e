"""What a calibrated model says of people who are hidden, cut off, turned, blurred, or not there.

    python benchmarks/uncertainty.py pose_small --data PATH/TO/DATA [--flip-test]
    python benchmarks/uncertainty.py pose_small --photo astronaut.png --nobody coffee.png \
        --sheet docs/uncertainty.jpg

The first prints two tables over the validation people of configs/pose_small.yaml: hidden joints,
and crops that are out of the ordinary. The second draws a photograph so changed, and others without
anybody. MODEL_CARD.md has the figures. Confidence is calibrated for one pass, without flip test.
"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from scipy.stats import mannwhitneyu

from rle_tf.config import load_config
from rle_tf.data.background import background
from rle_tf.data.crops import CropFormat
from rle_tf.data.pipeline import evaluation_batches
from rle_tf.data.source import Records
from rle_tf.drawing import contact_sheet, draw_poses
from rle_tf.evaluation import pixel_format
from rle_tf.prediction import Predictor, load, read_image

# Sides of an occluder, as shares of the crop.
OCCLUDERS = (0.2, 0.3, 0.4, 0.5)
# As a share of the crop: a joint that is predicted so near to where it is was found.
FOUND = 0.05


def outputs(predictor: Predictor, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sigma in the geometric mean of x and y, and confidence: (N, K) each."""
    sigmas, confidences = [], []
    for start in range(0, len(crops), 64):
        sigma = predictor.forward(tf.constant(crops[start : start + 64]))["sigma"]
        sigmas.append(np.exp(np.log(sigma).mean(axis=-1)))
        confidences.append(predictor.confidence(sigma).numpy())
    return np.concatenate(sigmas), np.concatenate(confidences)


def places(predictor: Predictor, crops: np.ndarray) -> np.ndarray:
    """Predicted joints in pixels of the crops, (N, K, 2)."""
    parts = [crops[start : start + 64] for start in range(0, len(crops), 64)]
    mu = np.concatenate([predictor.forward(tf.constant(part))["mu"] for part in parts])
    return (mu + 0.5) * crops.shape[2:0:-1]


def crops_of(records: Records, predictor: Predictor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 crops (N, H, W, 3), joints (N, K, 2) in their pixels, and which are to be seen."""
    crop_format = CropFormat(predictor.image_size, (0.5,) * 3, (0.5,) * 3, predictor.box_margin)
    batches = evaluation_batches(
        records, predictor.skeleton, pixel_format(crop_format), batch_size=64
    )
    height, width = predictor.image_size
    crops, joints, seen = [], [], []
    for images, target in batches:
        crops.append(np.round(images.numpy()).astype(np.uint8))
        joints.append((target["keypoints"].numpy() + 0.5) * (width, height))
        inside = (np.abs(target["keypoints"].numpy()) < 0.5).all(axis=-1)
        seen.append(inside & (target["weight"].numpy()[..., 0] > 0))
    return tuple(np.concatenate(parts) for parts in (crops, joints, seen))


def covers(rng: np.random.Generator, crops: np.ndarray) -> dict:
    """What a square of a crop is covered with: functions of the square's shape."""

    def patch(shape):
        other = crops[rng.integers(len(crops))]
        y, x = (rng.integers(crops.shape[axis + 1] - shape[axis] + 1) for axis in (0, 1))
        return other[y : y + shape[0], x : x + shape[1]]

    return {
        "noise": lambda shape: rng.integers(0, 256, shape),
        "grey": lambda shape: np.full(shape, 128),
        "part of another photograph": patch,
    }


def hidden(predictor: Predictor, crops, joints, seen) -> Table:
    """One joint of each person is covered by a square about it."""
    table = Table("a joint covered by", "a square of", "sigma is larger", "if it was found")
    for name in ("times, median", "confidence"):
        table.add_column(name)
    before, sure = outputs(predictor, crops)
    off = np.linalg.norm(places(predictor, crops) - joints, axis=-1)
    found = off < FOUND * crops.shape[2]
    rows = np.flatnonzero(seen.any(axis=1))
    for share in OCCLUDERS:
        side = round(share * crops.shape[2])
        for name in covers(None, crops):
            rng = np.random.default_rng(0)
            cover = covers(rng, crops)[name]
            changed, chosen = crops.copy(), []
            for row in rows:
                joint = rng.choice(np.flatnonzero(seen[row]))
                x, y = np.maximum(np.round(joints[row, joint] - side / 2).astype(int), 0)
                square = changed[row, y : y + side, x : x + side]
                square[:] = cover(square.shape)
                chosen.append(joint)
            after, unsure = outputs(predictor, changed)
            ratio = after[rows, chosen] / before[rows, chosen]
            table.add_row(
                name,
                f"{share:.0%}",
                f"{(ratio > 1).mean():.1%}",
                f"{(ratio > 1)[found[rows, chosen]].mean():.1%}",
                f"{np.median(ratio):.2f}",
                f"{sure[rows, chosen].mean():.3f} -> {unsure[rows, chosen].mean():.3f}",
            )
    table.title = f"{len(rows)} people; found: within {FOUND:.0%} of the crop"
    return table


def cut_off(crops: np.ndarray) -> np.ndarray:
    """As where a photograph ends: the lower half is black."""
    changed = crops.copy()
    changed[:, crops.shape[1] // 2 :] = 0
    return changed


def blurred(crops: np.ndarray) -> np.ndarray:
    """By a normal density as wide as a twentieth of the crop."""
    filter = ImageFilter.GaussianBlur(crops.shape[1] / 20)
    return np.stack([np.asarray(Image.fromarray(crop).filter(filter)) for crop in crops])


CHANGES = {
    "as they are": lambda crops: crops,
    "lower half cut off": cut_off,
    "blurred": blurred,
    "upside down": lambda crops: crops[:, ::-1, ::-1],
}


def unusual(predictor: Predictor, crops: np.ndarray, nobody: np.ndarray) -> Table:
    """Confidence of whole crops, and how well it tells them from ordinary ones."""
    table = Table("crops", "number", "confidence, mean", "sigma, times", "told apart (AUROC)")
    sigma, confidence = outputs(predictor, crops)
    usual = confidence.mean(axis=1)
    sets = {name: change(crops) for name, change in CHANGES.items()} | {"nobody there": nobody}
    for name, changed in sets.items():
        other_sigma, other = outputs(predictor, changed)
        mean = other.mean(axis=1)
        apart = mannwhitneyu(usual, mean).statistic / (len(usual) * len(mean))
        table.add_row(
            name,
            str(len(changed)),
            f"{mean.mean():.3f}",
            f"{np.median(other_sigma) / np.median(sigma):.2f}",
            "" if name == "as they are" else f"{apart:.3f}",
        )
    return table


def sheet(predictor: Predictor, photo: Path, nobody: list[Path]) -> Image.Image:
    """What is predicted of a photograph as it is and changed, and of some without anybody."""
    image = Image.fromarray(read_image(photo))
    image.thumbnail((512, 512))
    pixels = np.asarray(image)
    hidden_part = pixels.copy()
    height, width = pixels.shape[:2]
    hidden_part[height // 2 : height * 3 // 4, : width // 2] = 128
    variants = {
        "as it is": pixels,
        "half of it hidden": hidden_part,
        **{name: change(pixels[None])[0] for name, change in [*CHANGES.items()][1:]},
        **{path.stem: np.asarray(Image.fromarray(read_image(path))) for path in nobody},
    }
    drawn, labels = [], []
    for name, variant in variants.items():
        corner = np.array(variant.shape[1::-1]) - 1
        poses = predictor(np.ascontiguousarray(variant), np.array([[0.0, 0, *corner]]))
        picture = draw_poses(variant, poses.keypoints, poses.sigmas, predictor.skeleton)
        picture.thumbnail((384, 384))
        drawn.append(picture)
        labels.append(f"{name}: {poses.confidences.mean():.2f}")
    return contact_sheet(drawn, columns=4, labels=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", help="folder of lspet/ and coco/")
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--nobody", type=Path, nargs="*", default=[])
    parser.add_argument("--flip-test", action="store_true", help="look at mirrored crops, too")
    parser.add_argument("--sheet", type=Path, default=Path("uncertainty.png"))
    options = parser.parse_args()
    predictor = load(options.model, options.flip_test)
    if predictor.confidence is None:
        raise SystemExit(f"{options.model}: is not calibrated; expected a calibrated model")
    if options.data:
        root = f"data.source.root={options.data!r}"
        source = load_config("configs/pose_small.yaml", [root]).open_source("val")
        crops, joints, seen = crops_of(source.records, predictor)
        Console().print(hidden(predictor, crops, joints, seen))
        nobody, _, _ = crops_of(background(source.second.source, 500), predictor)
        Console().print(unusual(predictor, crops, nobody))
    if options.photo:
        sheet(predictor, options.photo, options.nobody).save(options.sheet)
        Console().print(f"drawn: {options.sheet}")


if __name__ == "__main__":
    main()
