"""Leeds Sports Pose extended: joints.mat and photographs, scored by the torso."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from rle_tf import PERSON19, CropFormat, LspSource, MixSource, training_batches
from rle_tf.config import load_config
from rle_tf.data.coco import CocoSource
from rle_tf.data.source import Poses
from rle_tf.errors import ConfigError, DataError
from rle_tf.metrics import torso_scores
from rle_tf.skeletons import LSP14

SHOULDER, HIP = LSP14.joints.index("left_shoulder"), LSP14.joints.index("right_hip")


def person(rng) -> np.ndarray:
    """(14, 3): joints in the middle of a photograph of 96x80, all annotated."""
    return np.column_stack([rng.uniform((30, 10), (70, 70), (14, 2)).round(1), np.ones(14)])


@pytest.fixture
def write_lsp(tmp_path):
    """`write_lsp(change=None, people=4, **variables)`: (joints.mat, image folder)."""

    def write(change=None, people=4, **variables):
        rng = np.random.default_rng(0)
        joints = np.stack([person(rng) for _ in range(people)], axis=-1)
        if change:
            change(joints)
        savemat(tmp_path / "joints.mat", variables or {"joints": joints})
        images = tmp_path / "images"
        images.mkdir(exist_ok=True)
        for number in range(1, people + 1):
            coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8))
            coarse.resize((96, 80)).save(images / f"im{number:05d}.jpg")
        return tmp_path / "joints.mat", images

    return write


def poses(source, shift_px=(0.0, 0.0)) -> Poses:
    records = source.records
    return Poses(
        keypoints=records.keypoints.astype(float) + shift_px,
        sigmas=np.ones(records.keypoints.shape),
        joint_scores=np.full(records.labelled.shape, 0.5),
        person_scores=np.arange(len(records), dtype=float),
        crop_boxes_xyxy=records.boxes_xyxy,
    )


def test_people_in_the_order_of_the_photographs(write_lsp):
    source = LspSource(*write_lsp(), first=2, last=3)
    rng = np.random.default_rng(0)
    everybody = [person(rng) for _ in range(4)]
    assert [path[-11:] for path in source.records.image_paths] == ["im00002.jpg", "im00003.jpg"]
    np.testing.assert_allclose(source.records.keypoints[0], everybody[1][:, :2], rtol=1e-6)
    assert source.records.labelled.all() and source.parts == (2,)
    assert source.records.image_wh.tolist() == [[96, 80]] * 2
    assert len(LspSource(*write_lsp()).records) == 4
    assert source.take([1]).records.image_ids.tolist() == [3]


def test_the_box_is_that_of_the_annotated_joints_and_a_tenth(write_lsp):
    def change(joints):
        joints[0] = [[5000], [-5000], [0]]  # not annotated: anything may stand there
        joints[1, :, 0] = np.nan, np.nan, 0

    source = LspSource(*write_lsp(change))
    for points, labelled, box in zip(
        source.records.keypoints, source.records.labelled, source.records.boxes_xyxy, strict=True
    ):
        seen = points[labelled]
        assert not labelled[0] and np.isfinite(points).all()
        grow = 0.1 * np.ptp(seen, axis=0).max()
        low = np.maximum(seen.min(axis=0) - grow, 0)
        high = np.minimum(seen.max(axis=0) + grow, (95, 79))
        np.testing.assert_allclose(box, [*low, *high], atol=1e-3)


def test_people_without_a_box_are_left_out_and_counted(write_lsp, caplog):
    def change(joints):
        joints[1:, 2, 1] = 0  # one joint
        joints[:, 2, 2] = 0  # none

    caplog.set_level("INFO")
    source = LspSource(*write_lsp(change))
    assert source.records.image_ids.tolist() == [1, 4]
    assert "joints.mat: 2 people without a box are left out" in caplog.text


def test_the_truth_has_a_perfect_score_and_a_shift_is_measured_in_torsos(write_lsp):
    source = LspSource(*write_lsp())
    scores = source.score(poses(source))
    assert scores["PCK@0.2"] == scores["PCK@0.1"] == scores["AUC"] == 1
    assert scores["error_px"] == scores["error_torso"] == 0
    torso = np.linalg.norm(
        source.records.keypoints[:, SHOULDER] - source.records.keypoints[:, HIP], axis=-1
    )
    one = source.take(slice(1))
    scores = one.score(poses(one, (0.15 * torso[0], 0)))
    assert (scores["PCK@0.2"], scores["PCK@0.1"]) == (1, 0)
    assert scores["error_torso"] == pytest.approx(0.15, rel=1e-4)
    assert scores["error_px"] == pytest.approx(0.15 * torso[0], rel=1e-4)
    assert scores["AUC"] == pytest.approx(6 / 21, abs=1 / 21)  # of 0, 0.01, ..., 0.2 torsos
    assert scores["PCK@0.2/left_wrist"] == 1


def test_people_without_a_torso_count_in_pixels_alone():
    target = np.zeros((2, 14, 2))
    target[:, SHOULDER] = (0, 10)
    labelled = np.ones((2, 14), bool)
    labelled[1, HIP] = False
    predicted = target + (0, 1.5)
    predicted[1] += (0, 50)
    predicted[0, 5] = np.nan
    labelled[0, 5] = False
    scores = torso_scores(predicted, target, np.full_like(target, 2), labelled, LSP14.joints,
                          (SHOULDER, HIP))  # fmt: skip
    assert scores["error_torso"] == pytest.approx(0.15)
    assert scores["error_px"] == pytest.approx((13 * 1.5 + 13 * 51.5) / 26)
    assert scores["within_1_sigma"] == pytest.approx(3 / 4)  # x of everybody, y of one
    labelled[:] = False
    scores = torso_scores(predicted, target, target, labelled, LSP14.joints, (SHOULDER, HIP))
    assert np.isnan([scores["PCK@0.2"], scores["AUC"], scores["error_px"]]).all()


def test_results(write_lsp):
    source = LspSource(*write_lsp())
    entry = source.results(poses(source))[2]
    assert (entry["image"], entry["score"]) == ("im00003.jpg", 2)
    np.testing.assert_allclose(
        np.array(entry["keypoints"])[:, :2], source.records.keypoints[2], atol=1e-3
    )


def test_mixed_with_coco_the_shared_joints_are_supervised(write_lsp, write_coco):
    coco, lsp = CocoSource(*write_coco()), LspSource(*write_lsp())
    mix = MixSource(coco, lsp)
    labelled = mix.records.labelled[len(coco.records) :]
    shared = [joint in LSP14.joints for joint in coco.skeleton.joints]
    assert sum(shared) == 12
    assert labelled[:, shared].all() and not labelled[:, np.logical_not(shared)].any()
    crops = CropFormat((32, 32), (0.5,) * 3, (0.5,) * 3)
    batches = training_batches(
        mix.records, mix.skeleton, crops, None, parts=mix.parts, batch_size=4, seed=0
    )
    image, target = next(iter(batches))
    assert image.shape == (4, 32, 32, 3) and target["keypoints"].shape == (4, 17, 2)


def test_under_a_skeleton_of_both_each_source_is_scored_by_its_own_joints(write_lsp, write_coco):
    lsp, coco = LspSource(*write_lsp()), CocoSource(*write_coco())
    mix = MixSource(lsp, coco, PERSON19)
    people = len(lsp.records)
    assert mix.records.keypoints.shape == (people + len(coco.records), 19, 2)
    labelled = mix.records.labelled
    assert (labelled[:people].sum(axis=1) == lsp.records.labelled.sum(axis=1)).all()
    assert (labelled[people:, :17] == coco.records.labelled).all()
    assert not labelled[people:, 17:].any() and not labelled[:people, :5].any()
    everybody = poses(mix)
    scores = mix.score(everybody)
    assert scores["PCK@0.1"] == 1 and scores["second_AP"] == pytest.approx(1)
    assert "PCK@0.2/head_top" in scores and "second_error_px/nose" in scores
    assert len(mix.results(everybody)[0]["keypoints"]) == 14
    own = mix.second.results(everybody.take(slice(people, None)))
    assert len(own[0]["keypoints"]) == 3 * 17
    few = mix.take(np.array([people, 0]))
    assert few.score(poses(few))["PCK@0.2"] == 1


def flags(value):
    def change(joints):
        joints[3, 2, 1] = value

    return change


def no_place(joints):
    joints[3, 0, 1] = np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flags(2), r"joints.mat: person 2, left_hip is .*, a flag that is neither 0 nor 1"),
        (flags(np.nan), "person 2, left_hip .* a flag that is neither"),
        (no_place, r"person 2, left_hip is \[inf, .*, a place that is not finite; expected x, y"),
    ],
)
def test_wrong_entries_are_named(write_lsp, change, message):
    with pytest.raises(DataError, match=message):
        LspSource(*write_lsp(change))


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"other": np.zeros(3)}, "holds no 'joints'"),
        ({"joints": np.zeros((3, 14, 5))}, r"holds 'joints' \(3, 14, 5\) of float64"),
        ({"joints": np.array([["text"]])}, r"holds 'joints' \(1, 1\) of <U4"),
    ],
)
def test_another_mat_file_is_named(write_lsp, variables, found):
    with pytest.raises(
        DataError, match=rf"joints.mat: {found}; expected LSP extended's .*14, 3, N"
    ):
        LspSource(*write_lsp(**variables))


def test_files_that_are_absent_or_broken_are_named(write_lsp, tmp_path):
    joints, images = write_lsp()
    with pytest.raises(DataError, match="none.mat: no such file; expected LSP"):
        LspSource(tmp_path / "none.mat", images)
    for range_ in ((0, 3), (3, 2), (1, 5)):
        with pytest.raises(DataError, match="asked for people .* a range in 1 to 4"):
            LspSource(joints, images, *range_)
    (images / "im00002.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="im00002.jpg: cannot be read as an image"):
        LspSource(joints, images)
    (images / "im00002.jpg").unlink()
    with pytest.raises(DataError, match="im00002.jpg: no such file; expected the photographs that"):
        LspSource(joints, images)
    LspSource(joints, images, 3, 4)  # others are not looked at
    joints.write_bytes(b"no mat file at all" * 20)
    with pytest.raises(DataError, match="joints.mat: cannot be read as a .mat file"):
        LspSource(joints, images)


def test_the_recipe_on_real_photographs(lsp_sample):
    config = load_config("configs/lsp_mobilenet_rle.yaml", [f"data.source.root={lsp_sample}"])
    train, val = config.open_source("train"), config.open_source("val")
    assert (len(train.records), len(val.records)) == (6500, 1000)
    assert not set(train.records.image_paths) & set(val.records.image_paths)
    inside = (val.records.keypoints >= val.records.boxes_xyxy[:, None, :2] - 1) & (
        val.records.keypoints <= val.records.boxes_xyxy[:, None, 2:] + 1
    )
    assert inside[val.records.labelled].mean() > 0.995  # some lie outside their photograph
    with pytest.raises(ConfigError, match="'detections' is not for LSP"):
        load_config(
            "configs/lsp_mobilenet_rle.yaml",
            [f"data.source.root={lsp_sample}", "evaluate.boxes=detections"],
        ).open_source("val")
