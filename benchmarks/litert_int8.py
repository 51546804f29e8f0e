"""What rounds in an int8 file: everything, or all but the heads, or all but heads and stem.

    python benchmarks/litert_int8.py runs/demo saved_models/demo/1

prints, for each, the deviation from Keras on the run's validation people: keypoints in pixels of
the crop, sigma relative to Keras's. docs/litert.md has the figures.
"""

import argparse
import tempfile
from pathlib import Path

import tensorflow as tf
from rich.console import Console
from rich.table import Table

from rle_tf.evaluation import forward_function, of_pixels, pixel_format, predict_outputs
from rle_tf.export.formats import Precision
from rle_tf.export.litert import calibration_crops
from rle_tf.export.litert_converter import convert, heads, stem
from rle_tf.export.report import deviation, litert_forward
from rle_tf.run_folder import RunFolder

KEPT = {
    "nothing": lambda model: [],
    "heads": heads,
    "stem and heads": lambda model: stem(model) + heads(model),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path, help="the SavedModel that was exported from it")
    options = parser.parse_args()

    config, regressor = RunFolder(options.run).load()
    crop_format, source = config.input_format, config.open_source("val")
    calibration = calibration_crops(config.open_source("train"), crop_format)
    regress = forward_function(regressor, source.skeleton, crop_format, flip_test=False)

    def outputs(forward):
        return predict_outputs(
            of_pixels(forward), source.records, source.skeleton, pixel_format(crop_format)
        )

    reference = outputs(lambda crops: regress(crop_format.normalise(tf.cast(crops, tf.float32))))
    table = Table("in float32", "MB", "px mean / p95 / max", "sigma median / p95")
    for name, keep in KEPT.items():
        model = convert(str(options.model), ["serving_default"], Precision.int8, calibration, keep)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.tflite")
            file.write_bytes(model)
            found = deviation(outputs(litert_forward(file)), reference, crop_format.image_size)
        px, sigma = found["deviation_px"], found["deviation_sigma"]
        table.add_row(
            name,
            f"{len(model) / 1e6:.2f}",
            " / ".join(f"{value:.3f}" for value in px.values()),
            " / ".join(f"{value:.2%}" for value in sigma.values()),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
