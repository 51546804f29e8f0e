"""Poses of the people in a photograph, from TensorFlow Serving or `rle-tf serve`, over REST.

    python examples/rest_client.py photo.jpg --box 120 40 310 460 --model demo

Needs Python alone.
"""

import argparse
import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path


def predict(url: str, model: str, photograph: bytes, boxes_xyxy: list, flip_test: bool) -> dict:
    """The answer for one image: lists by the names of `predict_image`'s outputs."""
    request = {
        "signature_name": "predict_image_flip_test" if flip_test else "predict_image",
        "instances": [
            {
                "image_bytes": {"b64": base64.b64encode(photograph).decode()},
                # JSON has no empty tensor of shape (0, 4): four zeros are no box.
                "boxes_xyxy": boxes_xyxy or [[0, 0, 0, 0]],
            }
        ],
    }
    answer = urllib.request.urlopen(
        urllib.request.Request(
            f"{url}/v1/models/{urllib.parse.quote(model)}:predict",
            json.dumps(request).encode(),
            {"Content-Type": "application/json"},
        ),
        timeout=60,
    )
    return json.load(answer)["predictions"][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photograph", type=Path, help="JPEG or PNG")
    parser.add_argument(
        "--box", type=float, nargs=4, action="append", metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="of a person, in pixels; may be given several times; default: the whole image",
    )  # fmt: skip
    parser.add_argument("--model", default="demo")
    parser.add_argument("--url", default="http://127.0.0.1:8501")
    parser.add_argument("--flip-test", action="store_true")
    options = parser.parse_args()
    # A box is clipped to its image, so that this one is all of it.
    boxes = options.box or [[0, 0, 1e6, 1e6]]
    try:
        photograph = options.photograph.read_bytes()
        answer = predict(options.url, options.model, photograph, boxes, options.flip_test)
    except urllib.error.HTTPError as error:
        raise SystemExit(error.read().decode(errors="replace")) from None
    except (OSError, ValueError) as error:  # no such file, nobody answers, no JSON
        raise SystemExit(str(error)) from None
    # Batched with images of more people, an answer has rows that are nobody.
    for person, present in enumerate(answer["present"]):
        if present:
            print(f"person {person}: score {answer['person_score'][person]:.3f}")
            for joint, (x, y) in enumerate(answer["keypoints_px"][person]):
                sigma_x, sigma_y = answer["sigma_px"][person][joint]
                line = f"  {joint:2d}  {x:7.1f} +- {sigma_x:5.1f}  {y:7.1f} +- {sigma_y:5.1f}"
                if "confidence" in answer:  # of a calibrated model
                    line += f"  {answer['confidence'][person][joint]:.2f} sure"
                print(line)


if __name__ == "__main__":
    main()
