"""Many requests in one call of the model, none of which notices."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from rle_tf.errors import ModelError
from rle_tf.server import Options
from rle_tf.server.batching import load


def request(encoded, seed: int, images: int, boxes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 30, (images, boxes, 2, 2)), axis=2)
    data = np.array([encoded(int(grey)) for grey in rng.integers(0, 256, images)], object)
    return {"image_bytes": data, "boxes_xyxy": corners.reshape(images, boxes, 4).astype("f4")}


def together(signature, requests: list) -> list:
    """What each gets, an exception where it is one, when all are put at the same moment."""
    barrier = threading.Barrier(len(requests))

    def put(arrays):
        barrier.wait()
        try:
            return signature(arrays)
        except tf.errors.OpError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(put, requests))


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, err_msg=key)


def test_requests_that_arrive_together_are_one_call(tiny, encoded):
    signature = load(tiny, Options(batch_wait_ms=300)).signatures["predict_image"]
    requests = [request(encoded, seed, images=1 + seed % 2, boxes=2) for seed in range(8)]
    answers = together(signature, requests)
    assert max(rows for _, rows in answers) > 2
    plain = load(tiny, Options(batch=1)).signatures["predict_image"]
    for arrays, (outputs, _) in zip(requests, answers, strict=True):
        same(outputs, plain(arrays)[0])


@pytest.mark.parametrize("boxes", [0, 1, 2, 3, 5, 8])
def test_boxes_are_filled_up_and_cut_off(tiny, encoded, boxes):
    model = tf.saved_model.load(str(tiny))
    arrays = request(encoded, boxes, images=3, boxes=boxes)
    outputs, _ = load(tiny, Options()).signatures["predict_image"](arrays)
    assert outputs["keypoints_px"].shape == (3, boxes, 3, 2)
    expected = model.signatures["predict_image"](
        image_bytes=tf.constant(arrays["image_bytes"], tf.string), boxes_xyxy=arrays["boxes_xyxy"]
    )
    same(outputs, {key: tensor.numpy() for key, tensor in expected.items()})


def test_numbers_of_boxes_between_powers_of_two_share_a_batch(tiny, encoded):
    signature = load(tiny, Options(batch_wait_ms=300, batch=64)).signatures["predict_image"]
    requests = [request(encoded, seed, images=1, boxes=3 + seed % 2) for seed in range(6)]
    answers = together(signature, requests)
    assert max(rows for _, rows in answers) > 3  # three of them have three boxes
    for arrays, (outputs, _) in zip(requests, answers, strict=True):
        assert outputs["person_score"].shape == arrays["boxes_xyxy"].shape[:2]


def test_a_bad_image_does_not_fail_its_neighbours(tiny, encoded):
    signature = load(tiny, Options(batch_wait_ms=300)).signatures["predict_image"]
    requests = [request(encoded, seed, images=1, boxes=1) for seed in range(6)]
    requests[2]["image_bytes"][0] = b"no image"
    answers = together(signature, requests)
    assert isinstance(answers[2], tf.errors.InvalidArgumentError)
    assert "rle_tf: image_bytes[0]" in answers[2].message
    del answers[2], requests[2]
    plain = load(tiny, Options(batch=1)).signatures["predict_image"]
    for arrays, (outputs, _) in zip(requests, answers, strict=True):
        same(outputs, plain(arrays)[0])


def test_a_large_request_takes_several_calls(tiny, encoded):
    arrays = request(encoded, 0, images=11, boxes=2)
    outputs, rows = load(tiny, Options(batch=8)).signatures["predict_image"](arrays)
    assert rows <= 4  # 8 crops are 4 images of 2 boxes
    same(outputs, load(tiny, Options()).signatures["predict_image"](arrays)[0])


def test_the_newest_version_of_a_folder_is_loaded(tiny, tmp_path):
    (tmp_path / "hands").mkdir()
    for version in ("9", "10"):
        (tmp_path / "hands" / version).symlink_to(tiny)
    assert load(tmp_path / "hands", Options()).version == 10
    assert load(tiny.parent, Options()).version == 3
    found = load(tiny, Options(), name="other")
    assert (found.name, found.version) == ("other", 3)


@pytest.mark.parametrize("damage", ["cut", "junk", "gone"])
def test_a_broken_model_is_named(exported, tmp_path, damage):
    folder = tmp_path / "broken" / "1"
    shutil.copytree(exported, folder)
    data = folder / "variables" / "variables.data-00000-of-00001"
    match damage:
        case "cut":
            data.write_bytes(data.read_bytes()[:1000])
        case "junk":
            (folder / "saved_model.pb").write_bytes(b"junk")
        case "gone":
            shutil.rmtree(data.parent)
    with pytest.raises(ModelError, match="broken/1: cannot be loaded; expected a whole SavedModel"):
        load(folder, Options())


def test_a_name_that_no_address_can_hold(tiny):
    with pytest.raises(ModelError, match="name: found 'we ird'; expected letters"):
        load(tiny, Options(), name="we ird")


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_what_is_no_model_is_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=f"{folder}: found no saved_model.pb"):
        load(tmp_path / folder, Options())
