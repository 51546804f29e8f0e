"""examples/litert_photo.py needs neither TensorFlow nor this package, and agrees with both."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from rle_tf.export.litert import export_litert
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.models.regressor import build_regressor
from rle_tf.prediction import load
from rle_tf.skeletons import COCO17

EXAMPLE = Path(__file__).parents[2] / "examples" / "litert_photo.py"
SIZE = (64, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A version, its float32 `.tflite` and a photograph of 150 x 110 pixels."""
    keras.utils.set_random_seed(3)
    image = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(8, 5, 4, "same", activation="relu")(image)
    regressor = build_regressor(keras.Model(image, x), COCO17, 2, SIZE, head="soft_argmax")
    for layer in regressor.layers:
        if layer.name in ("score_maps", "sigma_dense"):
            layer.kernel.assign(2 * keras.random.normal(layer.kernel.shape, seed=1))
    folder = tmp_path_factory.mktemp("photo")
    version = export_savedmodel(
        regressor, folder, skeleton=COCO17, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
        box_margin=1.25, spread=(0.5, 0.25),
    )  # fmt: skip
    export_litert(version, folder / "1-float32.tflite", flip_test=True)
    noise = np.random.default_rng(0).integers(0, 256, (11, 15, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((150, 110), Image.Resampling.BICUBIC).save(folder / "photo.png")
    return folder


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    code = (
        "import runpy, sys\n"
        "sys.argv[1:], example = sys.argv[2:], sys.argv[1]\n"
        "for name in ['tensorflow', 'keras', 'rle_tf']: sys.modules[name] = None\n"
        "runpy.run_path(example, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, EXAMPLE, "1-float32.tflite", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def poses(process: subprocess.CompletedProcess) -> tuple[list[str], np.ndarray]:
    """Names, and x, y, two errors and a score of each joint."""
    assert process.returncode == 0, process.stderr
    lines = [line.replace("+-", "").split() for line in process.stdout.splitlines()]
    return [line[0] for line in lines], np.array([line[1:] for line in lines], float)


# Inside; at an edge, where the crop has black; one whose crop is smaller than the input.
@pytest.mark.parametrize(
    ("box", "options"),
    [
        ((40, 20, 95, 90), []),
        ((40, 20, 95, 90), ["--flip-test"]),
        ((0, 30, 60, 109), []),
        ((70, 60, 84, 81), []),
    ],
)
def test_it_agrees_with_the_predictor(folder, box, options):
    joints, found = poses(run(folder, "photo.png", "--box", *map(str, box), *options))
    photo = np.asarray(Image.open(folder / "photo.png"))
    wanted = load(folder, flip_test=bool(options))(photo, np.array([box], float))
    assert joints == list(COCO17.joints)
    assert np.ptp(wanted.keypoints[0], axis=0).min() > 3
    # Printed to hundredths; a crop's pixel may be rounded to the other grey level.
    np.testing.assert_allclose(found[:, :2], wanted.keypoints[0], rtol=0, atol=0.05)
    np.testing.assert_allclose(found[:, 2:4], wanted.sigmas[0], rtol=0, atol=0.05)
    np.testing.assert_allclose(found[:, 4], wanted.joint_scores[0], rtol=0, atol=1e-3)


def test_without_a_box_the_person_fills_the_photograph(folder):
    _, found = poses(run(folder, "photo.png"))
    _, wanted = poses(run(folder, "photo.png", "--box", "0", "0", "149", "109"))
    np.testing.assert_array_equal(found, wanted)
    # What lies outside the photograph is cut off.
    _, clipped = poses(run(folder, "photo.png", "--box", "-50", "-1", "149", "500"))
    np.testing.assert_array_equal(clipped, wanted)


def test_a_photograph_is_turned_as_its_exif_says(folder):
    upright = Image.open(folder / "photo.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "turned.png", exif=exif)
    box = ["--box", "40", "20", "95", "90"]
    _, found = poses(run(folder, "turned.png", *box))
    _, wanted = poses(run(folder, "photo.png", *box))
    np.testing.assert_array_equal(found, wanted)


def test_what_it_cannot_do_is_said(folder, tmp_path):
    process = run(folder, "photo.png", "--box", "90", "20", "40", "80")
    assert process.returncode == 1 and "--box: found [90.0, 20.0, 40.0, 80.0]" in process.stderr
    about = json.loads((folder / "1-float32.json").read_text())
    process = run(tmp_path, str(folder / "photo.png"))
    assert process.returncode == 1 and process.stderr == "1-float32.tflite: no such file\n"
    (tmp_path / "1-float32.tflite").touch()
    (tmp_path / "1-float32.json").write_text(json.dumps({**about, "input": "keypoints"}))
    process = run(tmp_path, str(folder / "photo.png"))
    assert process.returncode == 1 and "takes keypoints; expected" in process.stderr
    (tmp_path / "1-float32.json").write_text(json.dumps(about))
    (tmp_path / "photo.png").write_text("no image")
    process = run(tmp_path, "photo.png")
    assert process.returncode == 1 and "photo.png: cannot be read as an image" in process.stderr
