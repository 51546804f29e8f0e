"""`predict_image`: encoded photographs and boxes in, poses in their pixels out."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from rle_tf import build_regressor, load
from rle_tf.export.photograph import MAX_MEGAPIXELS, decode_photograph
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.prediction import predict_images, read_image
from rle_tf.skeletons import H36M18

SIZE = (64, 32)
BOXES = [[20.0, 30, 120, 180], [-15, 10, 90, 400], [100, 5, 140, 30]]
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def exported(exported_resnet):
    return exported_resnet


@pytest.fixture(scope="module")
def model(exported):
    return tf.saved_model.load(str(exported))


def picture(seed: int = 0, wh: tuple[int, int] = (200, 260)) -> Image.Image:
    """Smooth colours: JPEG keeps them, and crops of different places differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize(wh, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def predict(model, data: list[bytes], boxes: list, name: str = "predict_image") -> dict:
    boxes = np.reshape(np.array(boxes, np.float32), (len(data), -1 if data else 1, 4))
    output = model.signatures[name](image_bytes=tf.constant(data, tf.string), boxes_xyxy=boxes)
    return {key: value.numpy() for key, value in output.items()}


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_answers_of_the_predictor(exported, model, kind, flip_test):
    data = encode(picture(), kind)
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    clipped = np.clip(BOXES, 0, [199, 259, 199, 259])
    poses = load(exported, flip_test)(image, clipped)
    name = "predict_image_flip_test" if flip_test else "predict_image"
    found = predict(model, [data], [BOXES], name)
    assert found["present"].all()
    np.testing.assert_allclose(found["keypoints_px"][0], poses.keypoints, atol=0.02)
    np.testing.assert_allclose(found["sigma_px"][0], poses.sigmas, rtol=1e-3)
    np.testing.assert_allclose(found["score"][0], poses.joint_scores, atol=1e-4)
    np.testing.assert_allclose(found["person_score"][0], poses.person_scores, atol=1e-4)
    # The crops are told apart, so that equal answers mean something.
    assert np.ptp(found["score"][0], axis=0).max() > 1e-2


def test_the_command_line_s_answers_on_photographs(exported, model, coco_sample, tmp_path):
    """Of real cameras and encoders; `rle-tf predict` takes left, top, width and height."""
    photographs = sorted(coco_sample.glob("val2017/*.jpg"))[:4]
    assert photographs
    boxes_xywh = {
        path.name: np.array([[50.0, 40, 120, 200], [3, 5, 99, 99]]) for path in photographs
    }
    written = predict_images(load(exported), photographs, tmp_path, boxes_xywh)
    data = [path.read_bytes() for path in photographs]
    found = predict(model, data, [[[50, 40, 169, 239], [3, 5, 101, 103]]] * len(data))
    for image, entry in enumerate(written):
        for row, person in enumerate(entry["people"]):
            xy = [(joint["x"], joint["y"]) for joint in person["joints"]]
            np.testing.assert_allclose(found["keypoints_px"][image, row], xy, atol=0.05)
            assert found["person_score"][image, row] == pytest.approx(person["score"], abs=1e-3)


def test_the_flip_test_is_another_answer(model):
    plain = predict(model, [encode(picture())], [BOXES])
    flipped = predict(model, [encode(picture())], [BOXES], "predict_image_flip_test")
    assert np.abs(plain["keypoints_px"] - flipped["keypoints_px"]).max() > 0.1


def test_three_dimensions_and_no_flow(tmp_path):
    regressor = build_regressor("resnet18", H36M18, 3, SIZE, output_layer="layer2_1_out")
    version = export_savedmodel(
        regressor, tmp_path / "m", skeleton=H36M18, mean=(0.5,) * 3, std=(0.5,) * 3,
        box_margin=1.25, spread=[float("nan")] * 3,
    )  # fmt: skip
    data = encode(picture(), "PNG")
    found = predict(tf.saved_model.load(str(version)), [data], [[*BOXES, [0, 0, 0, 0]]])
    clipped = np.clip(BOXES, 0, [199, 259, 199, 259])
    poses = load(version)(np.asarray(picture()), clipped)
    np.testing.assert_allclose(found["depth_mm"][0, :3], poses.keypoints[..., 2], atol=0.1)
    assert (
        np.isnan(found["sigma_px"][0, :3]).all() and np.isnan(found["depth_sigma_mm"][0, :3]).all()
    )
    assert not found["sigma_px"][0, 3].any() and not found["depth_mm"][0, 3].any()


def test_batched_is_single(model):
    """Images of several sizes and formats, with different numbers of people."""
    data = [encode(picture(1)), encode(picture(2, (90, 300)), "PNG"), encode(picture(3, (50, 40)))]
    boxes = [BOXES, [[5, 5, 60, 250], [0] * 4, [0] * 4], [[0] * 4, [2.5, 2.5, 2.5, 2.5], [0] * 4]]
    together = predict(model, data, boxes)
    assert together["present"].tolist() == [[True] * 3, [True, False, False], [False] * 3]
    for row, count in enumerate((3, 1, 0)):
        alone = predict(model, data[row : row + 1], boxes[row][:count])
        for name, value in alone.items():
            np.testing.assert_allclose(
                together[name][row, :count], value[0], rtol=1e-4, atol=1e-3, err_msg=name
            )
            assert not together[name][row, count:].any(), name


def test_padding_may_come_first(model):
    data = [encode(picture())]
    plain, padded = (predict(model, data, [boxes]) for boxes in (BOXES, [[0] * 4, *BOXES]))
    np.testing.assert_allclose(plain["keypoints_px"], padded["keypoints_px"][:, 1:], atol=1e-3)


def test_zero_boxes_are_an_empty_answer(model):
    found = predict(model, [encode(picture())] * 2, [[], []])
    assert {name: value.shape for name, value in found.items()} == {
        "present": (2, 0), "person_score": (2, 0), "score": (2, 0, 17),
        "keypoints_px": (2, 0, 17, 2), "sigma_px": (2, 0, 17, 2),
    }  # fmt: skip


def test_a_box_over_all_edges_is_the_whole_image(model):
    found = predict(model, [encode(picture())], [[[-1e6, -1e6, 1e6, 1e6], [0, 0, 199, 259]]])
    np.testing.assert_array_equal(found["keypoints_px"][0, 0], found["keypoints_px"][0, 1])


def decoded(data: bytes) -> np.ndarray:
    return tf.function(decode_photograph)(tf.constant(data), tf.constant(0)).numpy()


def displayed(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_they_are_displayed(orientation, endian, kind):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "maker"  # an entry before it
    exif[ORIENTATION] = orientation
    data = encode(picture(wh=(40, 24)), kind, exif=exif)
    assert decoded(data).shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    np.testing.assert_allclose(decoded(data).astype(int), displayed(data), atol=2)


@pytest.mark.parametrize(
    "block",
    [
        b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0", b"MM\0*\0\0\0\x08\0\0",
    ],
    ids=["empty", "short", "far", "cut", "99", "none"],
)  # fmt: skip
def test_a_broken_exif_block_turns_nothing(block):
    data = encode(picture(wh=(40, 24)), exif=b"Exif\0\0" + block)
    assert decoded(data).shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"quality": 20}),
    ],
)
def test_kinds_of_jpeg(mode, options):
    data = encode(picture().convert(mode), **options)
    np.testing.assert_allclose(decoded(data).astype(int), displayed(data), atol=2)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_kinds_of_png(mode):
    data = encode(picture().convert(mode), "PNG")
    np.testing.assert_array_equal(decoded(data), displayed(data))


def test_sixteen_bits_of_grey(exported, model, tmp_path):
    """Pillow alone would cut them at 255."""
    grey = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    path = tmp_path / "a.png"
    Image.fromarray(grey).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(decoded(path.read_bytes()), image)
    assert len(np.unique(image)) > 100
    poses = load(exported)(image, np.clip(BOXES, 0, [199, 259, 199, 259]))
    found = predict(model, [path.read_bytes()], [BOXES])
    np.testing.assert_allclose(found["keypoints_px"][0], poses.keypoints, atol=0.02)


def png_header(width: int, height: int) -> bytes:
    whole = encode(picture(wh=(8, 8)), "PNG")
    return whole[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + whole[24:]


def jpeg_header(width: int, height: int) -> bytes:
    whole = encode(picture(wh=(8, 8)))
    frame = whole.index(b"\xff\xc0") + 5
    return whole[:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + whole[frame + 4 :]


WHOLE = [[0, 0, 1e6, 1e6]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"rle_tf: image_bytes\[1\]: found no JPEG or PNG"),
        (b"GIF89a" + b"\0" * 50, r"rle_tf: image_bytes\[1\]: found no JPEG or PNG"),
        (b"\x89PNG\r\n\x1a\n", r"rle_tf: image_bytes\[1\]: found no JPEG or PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (encode(picture())[:600], "Invalid JPEG"),
        (encode(picture(), "PNG")[:300], "Invalid PNG"),
        (
            png_header(30_000, 30_000),
            rf"image_bytes\[1\]: found an image of 30000 x 30000 .* at most {MAX_MEGAPIXELS} mega",
        ),
        (jpeg_header(30_000, 30_000), "found an image of 30000 x 30000 pixels"),
        (png_header(0, 9), "found an image of 0 x 9 pixels"),
        (png_header(2**32 - 1, 9), "found an image of -1 x 9 pixels"),
    ],
    ids=[
        "empty",
        "gif",
        "png-magic",
        "jpeg-magic",
        "cut-jpeg",
        "cut-png",
        "huge-png",
        "huge-jpeg",
        "no-width",
        "negative-width",
    ],
)
def test_what_is_no_image_is_named(model, data, message):
    good = encode(picture())
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        predict(model, [good, data], [WHOLE, WHOLE])
    assert predict(model, [good], [WHOLE])["present"].all()  # the next one works


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([float("nan"), 0, 5, 5], r"rle_tf: boxes_xyxy\[0, 1\]: found \[nan 0 5 5\]; .* finite"),
        ([0, 0, float("inf"), 5], r"found \[0 0 inf 5\]; expected finite"),
        ([float("inf")] * 4, r"found \[inf inf inf inf\]; expected finite"),
        ([10, 0, 5, 5], r"found \[10 0 5 5\]; .* left < right and top < bottom"),
        ([0, 5, 5, 5], r"found \[0 5 5 5\]; .* left < right and top < bottom"),
        ([400, 0, 500, 50], r"found \[400 0 500 50\]; expected a box with an area inside its"),
        ([-9, -9, -1, -1], "expected a box with an area inside its image"),
    ],
    ids=str,
)
def test_wrong_boxes_are_named(model, box, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        predict(model, [encode(picture())], [[*WHOLE, box]])


def test_boxes_of_another_number_of_images(model):
    with pytest.raises(tf.errors.InvalidArgumentError, match="found boxes of 2 images; expected 1"):
        model.signatures["predict_image"](
            image_bytes=tf.constant([encode(picture())]), boxes_xyxy=tf.zeros((2, 1, 4))
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="found no images; expected one"):
        predict(model, [], [])
