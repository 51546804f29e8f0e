"""Poses in a photograph with LiteRT alone: ai-edge-litert, NumPy, and Pillow to open the file.

    pip install ai-edge-litert numpy pillow
    python examples/litert_photo.py saved_models/demo/1-int8.tflite photo.jpg --box 120 40 260 420

prints for each joint its place and expected error in pixels of the photograph, and its confidence
where the model is calibrated, else its score. --flip-test looks at the mirrored crop, too, where
the model was exported with it. The JSON beside the model, which `rle-tf export --format litert`
writes, says how the crop is cut.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps


def read(path):
    """(h, w, 3) uint8 RGB, turned as its EXIF orientation says."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits of grey
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        sys.exit(f"{path}: cannot be read as an image: {error}")


def crop_box(box_xyxy, image_size, margin):
    """The person's box, grown to the aspect of the model's input and by the margin it knows."""
    height, width = image_size
    left, top, right, bottom = box_xyxy
    box_width, box_height = right - left, bottom - top
    half_width = max(box_width, box_height * width / height) * margin / 2
    half_height = max(box_height, box_width * height / width) * margin / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def cut(photo, crop_xyxy, image_size):
    """(h, w, 3) uint8 -> (H, W, 3) uint8: sampled bilinearly, black outside the photograph."""
    low, fraction = [], []
    for start, end, cells in zip(crop_xyxy[:2], crop_xyxy[2:], image_size[::-1], strict=True):
        places = start + np.arange(cells) * (end - start) / cells
        low.append(np.floor(places).astype(int))
        fraction.append(places - low[-1])
    (x, y), (dx, dy) = low, fraction
    height, width = photo.shape[:2]

    def at(rows, columns):
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        pixels = photo[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
        return pixels * inside[..., None]

    dx, dy = dx[None, :, None], dy[:, None, None]
    above = at(y, x) * (1 - dx) + at(y, x + 1) * dx
    below = at(y + 1, x) * (1 - dx) + at(y + 1, x + 1) * dx
    return np.round(above * (1 - dy) + below * dy).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description="Poses in a photograph with LiteRT alone.")
    parser.add_argument("model", type=Path, help="a .tflite file with its .json beside it")
    parser.add_argument("photo", type=Path)
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="the person, in pixels of the photograph; default: all of it",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flip-test", action="store_true", help="look at the mirrored crop, too")
    options = parser.parse_args()

    for path in (options.model, options.model.with_suffix(".json"), options.photo):
        if not path.is_file():
            sys.exit(f"{path}: no such file")
    about = json.loads(options.model.with_suffix(".json").read_text())
    if about["input"] != "image":
        sys.exit(f"{options.model}: takes {about['input']}; expected a model that takes images")
    photo = read(options.photo)
    last = np.array([photo.shape[1] - 1, photo.shape[0] - 1] * 2)
    box = last * [0, 0, 1, 1] if options.box is None else np.clip(options.box, 0, last)
    if not (box[2:] > box[:2]).all():
        sys.exit(f"--box: found {options.box}; expected left < right, top < bottom in the photo")

    crop_xyxy = np.array(crop_box(box, about["image_size"], about["box_margin"]))
    crop = cut(photo, crop_xyxy, about["image_size"])

    interpreter = Interpreter(str(options.model), num_threads=options.threads)
    signature = "serving_default_flip_test" if options.flip_test else "serving_default"
    if signature not in interpreter.get_signature_list():
        sys.exit(f"{options.model}: has no flip test; expected an export with --flip-test")
    pose = interpreter.get_signature_runner(signature)(image=crop[None])

    height, width = about["image_size"]
    scale = (crop_xyxy[2:] - crop_xyxy[:2]) / (width, height)  # of photograph to crop pixels
    places = crop_xyxy[:2] + pose["keypoints_px"][0] * scale
    errors = pose["sigma_px"][0] * scale
    scores = pose["confidence" if "confidence" in pose else "score"][0]
    for joint, (x, y), error, score in zip(about["joints"], places, errors, scores, strict=True):
        print(f"{joint:<16} {x:9.2f} {y:9.2f}  +- {error[0]:.2f} {error[1]:.2f}  {score:.4f}")


if __name__ == "__main__":
    main()
