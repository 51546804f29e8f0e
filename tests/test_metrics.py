import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from rle_tf.errors import DataError
from rle_tf.geometry import DEPTH_MM, image_to_camera
from rle_tf.metrics import (
    AP_NAMES,
    coco_from_dict,
    coco_keypoint_ap,
    coverage,
    joint_errors_mm,
    oks,
    oks_nms,
    pa_joint_errors_mm,
    per_joint_error,
    person_scores,
    pose3d_scores,
)
from rle_tf.skeletons import COCO17

SIGMAS = np.array(COCO17.oks_sigmas)
GOLDEN = Path(__file__).parent / "golden"


def make_dataset(areas=(2500.0, 40000.0), sizes=(60.0, 250.0), images=4, joints=17, seed=0):
    """A COCO keypoint dataset: on each image one person of each size, some joints unlabelled."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image_id in range(1, images + 1):
        for area, size in zip(areas, sizes, strict=True):
            x0, y0 = rng.uniform(0, 300, 2)
            visibility = rng.integers(0, 3, joints)
            visibility[:2] = 2
            keypoints = np.column_stack(
                [x0 + rng.uniform(0, size, joints), y0 + rng.uniform(0, size, joints), visibility]
            )
            keypoints[visibility == 0] = 0
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((visibility > 0).sum()),
                    "area": area,
                    "bbox": [x0, y0, size, size],
                    "iscrowd": 0,
                }
            )
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }


def as_results(dataset, shift_px=0.0):
    """The labelled people of a dataset as predictions, all joints moved right by `shift_px`."""
    results = []
    for annotation in dataset["annotations"]:
        if annotation["num_keypoints"] and not annotation["iscrowd"]:
            keypoints = np.array(annotation["keypoints"], float).reshape(-1, 3)
            keypoints[:, 0] += shift_px
            keypoints[:, 2] = 1
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": 1,
                    "keypoints": keypoints.ravel().tolist(),
                    "score": 1.0,
                }
            )
    return results


# Object keypoint similarity


def test_oks_of_a_pose_with_itself_is_one():
    pose = np.random.default_rng(0).uniform(0, 200, (5, 17, 2))
    np.testing.assert_array_equal(oks(pose, pose, np.full(5, 900.0), SIGMAS), np.ones(5))
    np.testing.assert_array_equal(oks(pose, pose, np.zeros(5), SIGMAS), np.ones(5))


def test_oks_of_one_displaced_joint_is_the_formula():
    pose = np.zeros((17, 2))
    moved = pose.copy()
    moved[5] = 3.0, 4.0
    expected = (16 + np.exp(-(5.0**2) / (2 * 900.0 * (2 * SIGMAS[5]) ** 2))) / 17
    np.testing.assert_allclose(oks(moved, pose, 900.0, SIGMAS), expected, rtol=1e-12)


def test_oks_equals_cocoeval_on_labelled_joints():
    dataset = make_dataset(images=6)
    rng = np.random.default_rng(1)
    results = as_results(dataset)
    for number, entry in enumerate(results):
        entry["keypoints"] = (np.array(entry["keypoints"]) + rng.normal(0, 6, 51)).tolist()
        entry["score"] = 1.0 - number / 100
    truth = coco_from_dict(dataset)
    evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
    evaluation._prepare()
    for image_id in truth.imgs:
        people = [a for a in dataset["annotations"] if a["image_id"] == image_id]
        found = [r for r in results if r["image_id"] == image_id]
        target = np.array([a["keypoints"] for a in people]).reshape(1, -1, 17, 3)
        predicted = np.array([r["keypoints"] for r in found]).reshape(-1, 1, 17, 3)
        areas = np.array([[a["area"] for a in people]])
        ours = oks(predicted[..., :2], target[..., :2], areas, SIGMAS, target[..., 2] > 0)
        np.testing.assert_allclose(ours, evaluation.computeOks(image_id, 1), rtol=1e-10)


def test_oks_ignores_what_unlabelled_joints_hold():
    pose = np.random.default_rng(0).uniform(0, 50, (2, 17, 2))
    noise = pose + 2.0
    labelled = np.ones((2, 17), bool)
    labelled[0, 3:] = False
    labelled[1] = False
    broken = np.where(labelled[..., None], pose, np.nan)
    found = oks(noise, broken, np.full(2, 900.0), SIGMAS, labelled)
    expected = oks(noise[0, :3], pose[0, :3], 900.0, SIGMAS[:3])
    np.testing.assert_allclose(found, [expected, np.nan], rtol=1e-12)


def test_oks_nms_keeps_what_the_reference_keeps():
    golden = json.loads((GOLDEN / "oks_nms.json").read_text())
    detections = golden["detections"]
    kept = []
    for image_id in sorted({d["image_id"] for d in detections}):
        indices = [i for i, d in enumerate(detections) if d["image_id"] == image_id]
        of_image = [detections[i] for i in indices]
        found = oks_nms(
            np.array([d["keypoints"] for d in of_image]).reshape(-1, 17, 3),
            [d["score"] for d in of_image],
            [d["area"] for d in of_image],
            SIGMAS,
            golden["threshold"],
        )
        kept += [indices[i] for i in found]
    assert 0 < len(kept) < len(detections)
    assert kept == golden["kept_indices"]


def test_oks_nms_threshold_decides_and_nothing_is_fine():
    pose = np.random.default_rng(0).uniform(0, 100, (17, 2))
    poses = np.stack([pose, pose + 1.0, pose + 500.0])
    areas = np.array([400.0, 1600.0, 400.0])
    similarity = oks(poses[1], poses[0], 1000.0, SIGMAS)  # at the mean of the two areas
    scores = [0.2, 0.9, 0.5]
    assert oks_nms(poses, scores, areas, SIGMAS, similarity - 1e-9).tolist() == [1, 2]
    assert oks_nms(poses, scores, areas, SIGMAS, similarity + 1e-9).tolist() == [1, 2, 0]
    assert oks_nms(np.zeros((0, 17, 3)), [], [], SIGMAS).tolist() == []


def test_oks_nms_breaks_ties_in_input_order():
    poses = np.arange(4.0)[:, None, None] * 1000 + np.zeros((4, 17, 2))
    kept = oks_nms(poses, [0.5, 0.7, 0.5, 0.7], np.full(4, 100.0), SIGMAS)
    assert kept.tolist() == [1, 3, 0, 2]


# Person scores


def test_person_scores_equal_the_reference(golden):
    arrays = golden("decode2d")
    found = person_scores(arrays["score_flip_averaged"][..., 0])
    np.testing.assert_allclose(found, arrays["person_score_without_detection"], rtol=1e-6)
    boxes = np.linspace(0, 1, len(found))
    with_boxes = person_scores(arrays["score_flip_averaged"][..., 0], boxes)
    np.testing.assert_allclose(with_boxes - found, boxes, atol=1e-12)


def test_person_scores_refuse_shapes_that_would_broadcast():
    with pytest.raises(DataError, match=r"found joint scores \(3, 17, 1\)"):
        person_scores(np.ones((3, 17, 1)))
    with pytest.raises(DataError, match=r"box scores \(3, 1\), expected \(N, K\) and \(N,\)"):
        person_scores(np.ones((3, 17)), np.ones((3, 1)))


# COCO AP


def test_ground_truth_given_back_scores_one():
    dataset = make_dataset()
    found = coco_keypoint_ap(coco_from_dict(dataset), as_results(dataset), SIGMAS)
    assert found == pytest.approx(dict.fromkeys(AP_NAMES, 1.0), abs=1e-9)


def test_ground_truth_given_back_scores_one_on_real_annotations(coco_sample):
    path = coco_sample / "annotations" / "person_keypoints_val2017.json"
    dataset = json.loads(path.read_text())
    found = coco_keypoint_ap(coco_from_dict(dataset), as_results(dataset), SIGMAS)
    assert found == pytest.approx(dict.fromkeys(AP_NAMES, 1.0), abs=1e-9)


def test_ap_equals_cocoeval_through_load_res(capsys):
    dataset = make_dataset(images=8)
    rng = np.random.default_rng(2)
    results = as_results(dataset)
    for entry in results:
        entry["keypoints"] = (np.array(entry["keypoints"]) + rng.normal(0, 5, 51)).tolist()
        entry["score"] = float(rng.uniform())
    # A duplicate behind the first result, and false alarms of both sizes: the size of what is not
    # matched decides whether it counts in APM or APL.
    results.append(results[0] | {"score": 0.99 * results[0]["score"]})
    for image_id, size in ((1, 60), (2, 60), (3, 60), (4, 250)):
        keypoints = 1000 + rng.uniform(0, size, 51)
        results.append(results[0] | {"image_id": image_id, "keypoints": keypoints.tolist()})
        results[-1]["score"] = float(rng.uniform(0.5, 1))
    truth = coco_from_dict(dataset)
    evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()

    found = coco_keypoint_ap(truth, results, SIGMAS)
    assert capsys.readouterr().out == ""
    assert list(found) == list(AP_NAMES)
    np.testing.assert_allclose(list(found.values()), evaluation.stats, rtol=1e-12)
    assert 0 < found["AP75"] < found["AP50"] < 1
    assert found["APM"] != found["APL"]


def test_annotation_ids_may_start_at_zero():
    dataset = make_dataset()
    for annotation in dataset["annotations"]:
        annotation["id"] -= 1
    found = coco_keypoint_ap(coco_from_dict(dataset), as_results(dataset), SIGMAS)
    assert found["AP"] == pytest.approx(1) and found["AR"] == pytest.approx(1)


def test_moving_all_joints_lowers_ap_monotonically():
    dataset = make_dataset(images=6)
    truth = coco_from_dict(dataset)
    found = [
        coco_keypoint_ap(truth, as_results(dataset, shift_px), SIGMAS)["AP"]
        for shift_px in (0, 2, 5, 10, 20, 40, 400)
    ]
    assert found[0] == pytest.approx(1) and found[-1] == 0
    assert (np.diff(found) <= 0).all()
    assert len(set(found)) >= 5


def test_ap_of_no_results_is_zero():
    found = coco_keypoint_ap(coco_from_dict(make_dataset()), [], SIGMAS)
    assert found == dict.fromkeys(AP_NAMES, 0.0)


def test_ap_of_a_size_that_nobody_has_is_nan():
    dataset = make_dataset(areas=(2500.0,), sizes=(60.0,))
    found = coco_keypoint_ap(coco_from_dict(dataset), as_results(dataset), SIGMAS)
    assert {name for name, value in found.items() if np.isnan(value)} == {"APL", "ARL"}
    assert found["APM"] == pytest.approx(1)


def test_ap_with_the_sigmas_of_another_skeleton():
    dataset = make_dataset(joints=5)
    truth = coco_from_dict(dataset)
    results = as_results(dataset, shift_px=6.0)
    strict, loose = (coco_keypoint_ap(truth, results, np.full(5, s))["AP"] for s in (0.02, 0.2))
    assert strict < loose


def test_ap_changes_neither_argument():
    dataset = make_dataset()
    results = as_results(dataset)
    before = copy.deepcopy((dataset, results))
    coco_keypoint_ap(coco_from_dict(dataset), results, SIGMAS)
    assert (dataset, results) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, r"results\[3\]: found image_id 99, which is none of the 4 images"),
        ({"category_id": 7}, r"results\[3\]: found category_id 7, expected one of \[1\]"),
        ({"keypoints": [1.0] * 48}, r"results\[3\]: .*shape \(48,\), expected 51 numbers"),
        (
            {"keypoints": [1.0] * 30 + [np.nan] + [1.0] * 20},
            r"results\[3\]: found nan at keypoints\[30\] \(joint 10\), expected finite",
        ),
        ({"keypoints": ["a"] * 51}, r"results\[3\]: keypoints and score must be numbers"),
        ({"keypoints": None}, r"results\[3\]: found keypoints of shape \(\), expected 51"),
        ({"score": np.inf}, r"results\[3\]: found a score of inf"),
        ({"score": None}, r"results\[3\]: keypoints and score must be numbers"),
    ],
)
def test_a_bad_result_is_named(change, message):
    dataset = make_dataset()
    results = as_results(dataset)
    results[3] |= change
    with pytest.raises(DataError, match=message):
        coco_keypoint_ap(coco_from_dict(dataset), results, SIGMAS)


def test_a_result_without_a_score_is_named():
    dataset = make_dataset()
    results = as_results(dataset)
    del results[1]["score"]
    with pytest.raises(DataError, match=r"results\[1\]: found no \['score'\], only"):
        coco_keypoint_ap(coco_from_dict(dataset), results, SIGMAS)


def test_a_bad_ground_truth_is_named():
    dataset = make_dataset()
    with pytest.raises(DataError, match=r"annotations\[0\] \(id 1\): found 51 .* expected 42"):
        coco_keypoint_ap(coco_from_dict(dataset), [], np.full(14, 0.1))
    del dataset["annotations"][2]["num_keypoints"]
    with pytest.raises(DataError, match=r"annotations\[2\].*found no \['num_keypoints'\]"):
        coco_keypoint_ap(coco_from_dict(dataset), [], SIGMAS)
    with pytest.raises(DataError, match=r"found no \['annotations', 'categories'\]"):
        coco_from_dict({"images": []})


# Joint errors


def test_per_joint_error_of_known_displacements():
    target = np.random.default_rng(0).uniform(0, 100, (2, 3, 2))
    predicted = target.copy()
    predicted[0, 0] += 3.0, 4.0  # 5 px
    predicted[1, 0] += 15.0, 0.0
    predicted[0, 1] += 0.0, 2.0
    labelled = np.array([[True, True, False], [True, False, False]])
    predicted[~labelled] = np.nan
    found = per_joint_error(predicted, target, labelled, [100.0, 400.0], [60.0, 100.0])
    np.testing.assert_allclose(found["error_px"], [10.0, 2.0, np.nan])
    np.testing.assert_allclose(found["error_per_sqrt_area"], [(0.5 + 0.75) / 2, 0.2, np.nan])
    np.testing.assert_allclose(found["pck"], [0.5, 1.0, np.nan])
    assert found["count"].tolist() == [2, 1, 0]
    assert found["mean_error_px"] == pytest.approx(22 / 3)
    assert found["mean_error_per_sqrt_area"] == pytest.approx(1.45 / 3)
    assert found["mean_pck"] == pytest.approx(2 / 3)
    wider = per_joint_error(predicted, target, labelled, [100.0, 400.0], [60.0, 100.0], 0.16)
    assert wider["mean_pck"] == 1.0


def test_per_joint_error_without_anybody_labelled_is_nan():
    labelled = np.zeros((2, 3), bool)
    found = per_joint_error(np.ones((2, 3, 2)), np.zeros((2, 3, 2)), labelled, [0, 0], [0, 0])
    assert np.isnan(found["mean_error_px"]) and np.isnan(found["pck"]).all()


def test_per_joint_error_refuses_a_person_without_area():
    ones = np.ones((2, 3, 2))
    with pytest.raises(DataError, match="person 1 has an area of 0 px2 and a longer side of 9 px"):
        per_joint_error(ones, ones, np.ones((2, 3), bool), [4.0, 0.0], [9.0, 9.0])


# Poses in millimetres


def poses_mm(people=6, joints=17, noise_mm=40.0, seed=0):
    """Predictions and references of people, (N, K, 3) each, that differ in every joint."""
    rng = np.random.default_rng(seed)
    reference_mm = rng.normal(0, 400, (people, joints, 3)) + (100, -200, 5000)
    return reference_mm + rng.normal(0, noise_mm, reference_mm.shape), reference_mm


def test_errors_of_3d_poses_are_the_reference_s(golden):
    arrays = golden("h36m_metrics")
    # The reference scores 17 of the 18 joints: the last, the thorax, is a midpoint of others.
    cameras = np.concatenate(
        [arrays["focal_px"], arrays["principal_point_px"], arrays["root_cam_mm"][:, 2:]], axis=1
    )
    keypoints = arrays["uvd"] * (1, 1, DEPTH_MM)
    predicted_mm = image_to_camera(keypoints, cameras)[:, :17]
    reference_mm = arrays["joints_cam_mm"][:, :17]
    np.testing.assert_allclose(
        joint_errors_mm(predicted_mm, reference_mm, 0), arrays["per_joint_error_mm"], rtol=1e-9
    )
    np.testing.assert_allclose(
        pa_joint_errors_mm(predicted_mm, reference_mm), arrays["per_joint_pa_error_mm"], rtol=1e-9
    )
    actions = [str(number) for number in arrays["action_id"]]
    found = pose3d_scores(predicted_mm, reference_mm, actions, 0)
    assert found["MPJPE"] == pytest.approx(float(arrays["mpjpe_mm"]), rel=1e-9)
    assert found["PA-MPJPE"] == pytest.approx(float(arrays["pa_mpjpe_mm"]), rel=1e-9)


@pytest.mark.parametrize("root", [0, 5])
def test_joint_errors_do_not_see_where_the_root_is(root):
    predicted_mm, reference_mm = poses_mm()
    found = joint_errors_mm(predicted_mm, reference_mm, root)
    shift_mm = np.random.default_rng(1).normal(0, 1000, (6, 1, 3))
    np.testing.assert_allclose(
        joint_errors_mm(predicted_mm + shift_mm, reference_mm, root), found, atol=1e-9
    )
    assert (found[:, root] == 0).all() and (np.delete(found, root, axis=1) > 0).all()


def test_alignment_lowers_the_squares_of_each_person_and_forgives_size():
    predicted_mm, reference_mm = poses_mm()
    of_root = np.square(joint_errors_mm(predicted_mm, reference_mm, 0)).mean(axis=1)
    aligned = np.square(pa_joint_errors_mm(predicted_mm, reference_mm)).mean(axis=1)
    assert (aligned < of_root).all()
    assert pa_joint_errors_mm(1.3 * reference_mm, reference_mm).max() < 1e-9
    assert joint_errors_mm(1.3 * reference_mm, reference_mm, 0).max() > 100


def test_perfect_3d_poses_have_perfect_scores():
    _, reference_mm = poses_mm(2)
    found = pose3d_scores(reference_mm, reference_mm, ["Walking", "Eating"], 0)
    assert list(found) == [
        "MPJPE", "PA-MPJPE", "MPJPE_by_action", "PA-MPJPE_by_action", "PCK3D@150mm", "AUC",
        "MPJPE/Eating", "PA-MPJPE/Eating", "MPJPE/Walking", "PA-MPJPE/Walking",
    ]  # fmt: skip
    errors = [value for name, value in found.items() if "MPJPE" in name]
    assert errors == pytest.approx([0] * 8, abs=1e-9)
    assert found["PCK3D@150mm"] == 1
    assert found["AUC"] == pytest.approx(30 / 31)  # nothing is less than 0 mm off


def test_actions_count_alike_however_many_people_they_have():
    reference_mm = np.zeros((4, 2, 3))
    reference_mm[:, 1, 2] = 400
    predicted_mm = reference_mm.copy()
    predicted_mm[:, 1, 0] += 20, 20, 20, 100
    found = pose3d_scores(predicted_mm, reference_mm, ["Sitting"] * 3 + ["Posing"], 0)
    assert found["MPJPE/Sitting"] == pytest.approx(10)
    assert found["MPJPE/Posing"] == pytest.approx(50)
    assert found["MPJPE"] == pytest.approx(20)
    assert found["MPJPE_by_action"] == pytest.approx(30)
    aligned = [found["PA-MPJPE/Sitting"], found["PA-MPJPE/Posing"]]
    assert found["PA-MPJPE_by_action"] == pytest.approx(np.mean(aligned), abs=1e-12)


def test_pck_and_auc_of_known_distances():
    reference_mm = np.zeros((1, 4, 3))
    predicted_mm = reference_mm.copy()
    predicted_mm[0, 1:, 1] = 75, 149.9, 150
    found = pose3d_scores(predicted_mm, reference_mm, ["Posing"], 0)
    assert found["PCK3D@150mm"] == 0.75
    # Under 31 thresholds the root is right at 30, the others at 80 to 150, at 150, and at none.
    assert found["AUC"] == pytest.approx((30 + 15 + 1) / 4 / 31)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"predicted_mm": np.ones((2, 3, 3))},
            r"\(2, 3, 3\) and reference_mm of shape \(2, 4, 3\)",
        ),
        ({"predicted_mm": np.ones((1, 4, 3))}, r"predicted_mm of shape \(1, 4, 3\)"),
        ({"actions": ["Posing"]}, r"found 2 people and actions of shape \(1,\)"),
        ({"actions": "Posing"}, r"found 2 people and actions of shape \(\)"),
    ],
)
def test_3d_poses_that_do_not_belong_together_are_refused(change, message):
    ones = np.ones((2, 4, 3))
    good = {"predicted_mm": ones, "reference_mm": ones, "actions": ["Posing"] * 2, "root": 0}
    with pytest.raises(DataError, match=message):
        pose3d_scores(**(good | change))


def test_nobody_and_poses_in_the_plane_are_refused():
    with pytest.raises(DataError, match="found 0 people"):
        pose3d_scores(np.ones((0, 4, 3)), np.ones((0, 4, 3)), [], 0)
    with pytest.raises(DataError, match=r"expected \(N, K, 3\) twice"):
        pa_joint_errors_mm(np.ones((2, 4, 2)), np.ones((2, 4, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_coordinate_that_is_not_finite_is_named(bad):
    predicted_mm, reference_mm = poses_mm()
    predicted_mm[4, 7, 1] = bad
    with pytest.raises(
        DataError, match=rf"{bad}, .*at predicted_mm\[4\], joint 7, expected finite"
    ):
        joint_errors_mm(predicted_mm, reference_mm, 0)
    with pytest.raises(DataError, match=r"at reference_mm\[4\], joint 7"):
        pa_joint_errors_mm(reference_mm, predicted_mm)


def test_metrics_do_not_import_tensorflow():
    check = "import sys, rle_tf.metrics; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_coverage_counts_the_labelled_coordinates_within_sigma():
    target = np.zeros((1, 3, 2))
    predicted = np.array([[[1.0, -3.0], [0.5, 0.5], [np.nan, 99.0]]])
    sigma = np.array([[[2.0, 2.0], [1.0, 0.4], [np.nan, 1.0]]])
    labelled = np.array([[True, True, False]])
    assert coverage(predicted, target, sigma, labelled) == 0.5
    assert coverage(predicted, target, sigma, labelled, factor=2) == 1.0
    assert np.isnan(coverage(predicted, target, sigma, [[True, True, True]]))
    assert np.isnan(coverage(predicted, target, sigma, np.zeros((1, 3), bool)))


def test_coverage_of_normal_errors_is_the_normal_s():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(1, 5, (5000, 4, 2))
    predicted = rng.normal(scale=sigma)
    everybody = np.ones((5000, 4), bool)
    for factor, share in ((1, 0.6827), (2, 0.9545)):
        found = coverage(predicted, np.zeros_like(sigma), sigma, everybody, factor)
        assert found == pytest.approx(share, abs=0.01)
