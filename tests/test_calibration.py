"""Calibration: what is fitted holds for others, what cannot be fitted is refused."""

import dataclasses
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy.special import expit

from rle_tf import calibration as cal
from rle_tf.charts import calibration_chart
from rle_tf.config import load_config
from rle_tf.data.confidence import Confidence, logit_sigma
from rle_tf.data.crops import decode
from rle_tf.data.source import Poses
from rle_tf.errors import DataError, ModelError
from rle_tf.estimator import PoseEstimator
from rle_tf.evaluation import evaluate
from rle_tf.flow import RealNVP
from rle_tf.losses import DensityLoss, L1Loss, RLELoss
from rle_tf.metrics import correlation, reliability, risk_coverage
from rle_tf.models.regressor import build_regressor
from rle_tf.run_folder import RunFolder
from rle_tf.skeletons import COCO17

JOINTS = ("wrist", "elbow", "hip")
# How much wider than it says the errors of each joint are.
TRUE_SCALE = np.array([0.5, 1.0, 3.0])
DENSITY = cal.Density.of(DensityLoss("laplace"), 2)
SIDE = 100.0


def people(count: int, seed: int, heavy: float = 0.0):
    """Errors of a model whose sigma ranks joints well and is wrong by `TRUE_SCALE`; a share `heavy`
    of the errors is ten times as large."""
    rng = np.random.default_rng(seed)
    log_sigma = rng.uniform(np.log(0.005), np.log(0.2), (count, len(JOINTS)))
    sigma = np.exp(log_sigma)[..., None] * np.ones(2)
    residual = rng.laplace(size=(count, len(JOINTS), 2)) * TRUE_SCALE[:, None]
    residual[rng.uniform(size=residual.shape[:2]) < heavy] *= 10
    box = np.tile([0.0, 0, SIDE * 1.25, SIDE * 1.25], (count, 1))
    labelled = rng.uniform(size=(count, len(JOINTS))) < 0.9
    poses = Poses(
        keypoints=rng.uniform(0, SIDE, residual.shape),
        sigmas=sigma * SIDE * 1.25,
        joint_scores=1 - sigma.mean(axis=-1),
        person_scores=np.zeros(count),
        crop_boxes_xyxy=box,
    )
    records = SimpleNamespace(
        keypoints=poses.keypoints + residual * poses.sigmas,
        labelled=labelled,
        areas=np.full(count, 0.5 * SIDE**2),
    )
    records.keypoints[~labelled] = np.nan
    return cal.joint_errors(sigma, poses, records, box_margin=1.25), records, poses


@pytest.fixture(scope="module")
def fitted():
    return cal.fit(people(1500, 0)[0], DENSITY, "abc")


def test_errors_are_in_sigmas_and_in_sizes():
    errors, records, poses = people(50, 1)
    known = errors.labelled
    difference = (records.keypoints - poses.keypoints)[known]
    np.testing.assert_allclose(errors.residual[known], difference / poses.sigmas[known])
    np.testing.assert_allclose(errors.relative[known], np.linalg.norm(difference, axis=-1) / SIDE)
    np.testing.assert_allclose(errors.relative_sigma, 1.25 * np.exp(errors.log_sigma))
    assert np.isfinite(errors.residual).all() and np.isfinite(errors.relative).all()


def test_the_factor_on_sigma_is_found(fitted):
    np.testing.assert_allclose(fitted.scale, TRUE_SCALE, rtol=0.06)
    # Of the density 68.27 % are within 1.148 along an axis.
    np.testing.assert_allclose(fitted.spread, 1.148 * TRUE_SCALE[:, None] * np.ones(2), rtol=0.1)
    assert fitted.people == 1500 - (~people(1500, 0)[0].labelled).all(axis=1).sum()


@pytest.mark.parametrize("heavy", [0.0, 0.15])
def test_regions_hold_their_share_of_others_whatever_the_tails(heavy):
    calibration = cal.fit(people(1500, 0, heavy)[0], DENSITY)
    errors, records, poses = people(1500, 1, heavy)
    report = cal.calibration_report(calibration, errors, DENSITY, records, poses, JOINTS, ())
    for level, share in report["coverage"].items():
        assert share == pytest.approx(float(level), abs=0.03)
    for entry in report["joints"].values():
        for level, share in entry["coverage"].items():
            assert share == pytest.approx(float(level), abs=0.06)
    assert report["ece"] < 0.04
    # Before: a third of the joints was too unsure of itself, a third much too sure.
    assert abs(report["coverage_uncalibrated"]["0.9"] - 0.9) > 0.05
    assert report["correlation"]["oks"] is None and report["correlation"]["joint"] > 0.3
    assert report["risk"][4] < report["risk"][-1] - 0.1
    assert json.loads(json.dumps(report)) == report


def test_confidence_is_the_density_s_where_it_is_right():
    """P(|error| < 10 % of the size) of a joint whose sigma is what it says."""
    calibration = cal.fit(people(6000, 2)[0], DENSITY)
    sigma = np.exp(np.linspace(np.log(0.01), np.log(0.1), 5))
    drawn = np.random.default_rng(5).laplace(size=(200_000, 2))
    lengths = np.linalg.norm(drawn, axis=-1)
    expected = [(lengths * s * 1.25 < 0.1).mean() for s in sigma]
    found = calibration.confidence(np.tile(sigma[:, None, None], (1, 3, 2)))[:, 1]
    np.testing.assert_allclose(found, expected, atol=0.04)


def test_confidence_falls_with_sigma_and_is_a_probability(fitted):
    sigma = np.exp(np.linspace(-12, 0, 300))[:, None, None] * np.ones((1, 3, 2))
    values = fitted.confidence(tf.constant(sigma, tf.float32)).numpy()
    assert (values >= 0).all() and (values <= 1).all()
    assert (np.diff(values, axis=0) <= 1e-6).all() and values[0].min() > values[-1].max()


def test_the_function_is_piecewise_linear():
    function = Confidence(np.array([-3.0, -2, -1]), np.array([[0.9, 0.5, 0.1], [0.8, 0.8, 0.2]]))
    sigma = expit([-9.0, -3, -2.5, -2, -1.25, 9])[:, None, None] * np.ones((1, 2, 3))
    found = function(tf.constant(sigma, tf.float32)).numpy()
    np.testing.assert_allclose(found[:, 0], [0.9, 0.9, 0.7, 0.5, 0.2, 0.1], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], [0.8, 0.8, 0.8, 0.8, 0.35, 0.2], atol=1e-6)
    # Of x and y it is the geometric mean; depth does not count.
    uneven = expit(-2) * np.exp([[[-0.5, 0.5, 5.0]] * 2])
    np.testing.assert_allclose(function(uneven), [[0.5, 0.8]], atol=1e-6)
    one = function(sigma[2:3])
    np.testing.assert_allclose(one, found[2:3], atol=1e-6)


def test_sigmas_near_their_bound_are_told_apart():
    """Where sigma is 1 in all but the sixth digit its logit still says how sure a joint is."""
    function = Confidence(np.array([-20.0, 20]), np.array([[1.0, 0.0]]))
    z = np.array([-15.0, -3, 0, 4, 8, 12])
    found = function(tf.constant(expit(z)[:, None, None] * np.ones((1, 1, 2)), tf.float32))
    np.testing.assert_allclose(found[:, 0], 0.5 - z / 40, atol=0.003)
    assert np.isfinite(function(tf.ones((1, 1, 2)))).all()
    np.testing.assert_allclose(logit_sigma(np.log(expit(z))), z, rtol=1e-3)


def test_a_joint_that_is_rarely_labelled_takes_what_fits_all():
    errors, _, _ = people(300, 3)
    errors.labelled[20:, 1] = False
    rare = cal.fit(errors, DENSITY)
    assert rare.labelled[1] < cal.MIN_OF_A_KIND
    errors.labelled[:, 0] = False  # now one kind alone fits all
    only = cal.fit(errors, DENSITY)
    assert only.scale[0] == only.scale[1] and only.scale[1] == pytest.approx(3, rel=0.2)
    assert rare.scale[1] < only.scale[1] / 1.3
    assert (only.confidence.values[0] == only.confidence.values[1]).all()


@pytest.mark.parametrize(
    ("convention", "dims"),
    [
        ("paper", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("paper", 3), ("official", 2), ("official", 3))
        ),
    ],
)
def test_of_a_density_with_a_flow_its_own_draws_are_calibrated(dims, convention):
    """Nothing to correct: a factor of 1, and each region holds its share of the draws."""
    keras.utils.set_random_seed(0)
    flow = RealNVP(dims, layers=4, hidden=8)
    for variable in flow.variables:
        variable.assign_add(0.2 * keras.random.normal(variable.shape))
    loss = RLELoss(flow, convention=convention)
    density = cal.Density.of(loss, dims)
    residual = loss.draws(dims, 4000, seed=5)
    inside = [(density.depth(residual) <= limit).mean() for limit in density.depth_of(cal.LEVELS)]
    np.testing.assert_allclose(inside, cal.LEVELS, atol=0.03)
    assert cal._scale(residual, density) == pytest.approx(1, abs=0.05)
    assert cal._scale(2.5 * residual, density) == pytest.approx(2.5, rel=0.05)


def test_each_joint_can_have_a_density_of_its_own():
    """Draws of each joint's flow are calibrated by it, and not by another joint's."""
    keras.utils.set_random_seed(0)
    flow = RealNVP(2, layers=4, hidden=8, joints=2)
    for variable in flow.variables:
        variable.assign_add(0.3 * keras.random.normal(variable.shape))
    loss = RLELoss(flow)
    density = cal.Density.of(loss, 2)
    assert density.per_joint and loss.spread(2).shape == (2, 2)
    residual = loss.draws(2, 4000, seed=5)
    inside = [(density.depth(residual) <= limit).mean(0) for limit in density.depth_of(cal.LEVELS)]
    np.testing.assert_allclose(inside, np.stack([cal.LEVELS] * 2, axis=-1), atol=0.03)
    for joint in range(2):
        alone = density.of_joint(joint)
        np.testing.assert_allclose(
            alone.log_of(residual[:, joint]), density.log_of(residual)[:, joint], atol=1e-4
        )
        assert cal._scale(residual[:, joint], alone) == pytest.approx(1, abs=0.05)
    errors, records, poses = people(400, 0)
    errors.residual[:, :2] = residual[:400]
    few = cal.Errors(
        errors.residual[:, :2], errors.log_sigma[:, :2], errors.relative[:, :2],
        errors.relative_sigma[:, :2], np.ones((400, 2), bool),
    )  # fmt: skip
    few.labelled[20:, 1] = False  # which is fitted as all are
    calibration = cal.fit(few, density)
    assert calibration.scale[0] == pytest.approx(1, abs=0.15)
    all_joints = few.residual[few.labelled]
    assert calibration.scale[1] == cal._scale(all_joints, density.of_joint(1))
    assert calibration.scale[1] != cal._scale(all_joints, density.of_joint(0))


def test_errors_beyond_all_draws_are_told_apart():
    """A tenth of the joints is where the density has nothing: 95 % regions reach there."""
    errors, records, poses = people(1500, 0)
    far = np.random.default_rng(9).uniform(size=errors.labelled.shape) < 0.1
    errors.residual[far] = 300 + errors.residual[far]
    calibration = cal.fit(errors, DENSITY)
    report = cal.calibration_report(calibration, errors, DENSITY, records, poses, JOINTS, ())
    assert report["coverage"]["0.95"] == pytest.approx(0.95, abs=0.01)


def test_a_root_whose_depth_is_known_is_calibrated_in_x_and_y():
    rng = np.random.default_rng(0)
    residual = rng.laplace(size=(400, 2, 3))
    residual[:, 0, 2] = 0
    errors = cal.Errors(
        residual=residual,
        log_sigma=rng.uniform(-4, -2, (400, 2)),
        relative=rng.uniform(0, 0.2, (400, 2)),
        relative_sigma=np.full((400, 2), 0.05),
        labelled=np.ones((400, 2), bool),
    )
    density = cal.Density.of(DensityLoss("laplace"), 3)
    calibration = cal.fit(errors, density)
    assert calibration.spread[0, 2] == 0 and (calibration.spread[1] > 0.9).all()
    np.testing.assert_allclose(calibration.scale, 1, atol=0.12)
    poses = SimpleNamespace(keypoints=np.zeros((400, 2, 3)))
    records = SimpleNamespace(keypoints=residual, areas=np.ones(400))
    report = cal.calibration_report(
        calibration, errors, density, records, poses, ("pelvis", "wrist"), ()
    )
    assert 0.4 < report["coverage_normal"]["0.5"] < 0.7
    assert report["coverage"]["0.9"] == pytest.approx(0.9, abs=0.02)


def test_people_with_other_coordinates_are_refused(run):
    records = run.load()[0].open_source("val").records
    deep = np.concatenate([records.keypoints, records.keypoints[..., :1]], axis=-1)
    source = SimpleNamespace(records=dataclasses.replace(records, keypoints=deep), skeleton=COCO17)
    with pytest.raises(
        DataError, match="found people with 3 coordinates to a joint; expected 2, as"
    ):
        calibrate(run, source=source)


def test_people_of_one_photograph_cannot_be_fitted_and_judged(run):
    source = run.load()[0].open_source("val")
    one = dataclasses.replace(
        source.records, image_paths=np.repeat(source.records.image_paths[:1], 40)
    )
    source = SimpleNamespace(records=one, skeleton=COCO17)
    with pytest.raises(DataError, match="no labelled joint in every second of 1 photographs"):
        calibrate(run, source=source)


def test_too_few_joints_are_refused():
    with pytest.raises(
        DataError, match="found 1[0-9][0-9] labelled joints of 60 people to fit on; expected"
    ):
        cal.fit(people(60, 0)[0], DENSITY)


def test_a_loss_without_sigma_is_refused():
    with pytest.raises(
        ModelError, match="'l1_loss' trains no density of residuals; expected a model"
    ):
        cal.Density.of(L1Loss(), 2)


def test_written_and_read_it_is_the_same(fitted, tmp_path):
    path = tmp_path / "calibration.json"
    fitted.save(path)
    again = cal.read_calibration(path)
    assert (again.model, again.people) == ("abc", fitted.people)
    for key in ("labelled", "scale", "spread", "regions"):
        np.testing.assert_array_equal(getattr(again, key), getattr(fitted, key))
    np.testing.assert_array_equal(again.confidence.values, fitted.confidence.values)
    for text in ("{", "[]", "{}", path.read_text().replace("0.95", "0.94")):
        path.write_text(text)
        with pytest.raises(ModelError, match="calibration.json: cannot be read .*; expected what"):
            cal.read_calibration(path)


def test_the_picture(fitted, tmp_path):
    errors, records, poses = people(400, 4)
    report = cal.calibration_report(fitted, errors, DENSITY, records, poses, JOINTS, (0.1,) * 3)
    assert report["correlation"]["oks"] > 0.3
    calibration_chart(report, "three joints", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


# ---- metrics


def test_reliability_counts_each_bin():
    found = reliability([0.05, 0.05, 0.95, 0.85, 1.0], [False, True, True, True, True])
    assert [entry["joints"] for entry in found["bins"]] == [2, 1, 2]
    assert [entry["correct"] for entry in found["bins"]] == [0.5, 1, 1]
    assert found["ece"] == pytest.approx((2 * 0.45 + 0.15 + 2 * 0.025) / 5)
    assert found["brier"] == pytest.approx(np.mean([0.05**2, 0.95**2, 0.05**2, 0.15**2, 0]))
    assert np.isnan(reliability([], [])["ece"])


def test_risk_of_what_is_kept():
    found = risk_coverage([0.9, 0.1, 0.5, 0.7], [True, False, False, True], points=5)
    assert found["coverage_kept"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["risk"] == pytest.approx([0, 0, 0, 1 / 3, 0.5])
    assert found["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_correlation():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [True, False, False]) == pytest.approx(-np.sqrt(3) / 2)
    assert np.isnan(correlation([1, 1], [0, 1]))


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an untrained network on rendered people, with a sigma that differs by the image."""
    root = tmp_path_factory.mktemp("run")
    config = load_config(
        "configs/demo.yaml",
        [f"data.source.root={root / 'people'}", "data.source.train_people=32",
         "data.source.val_people=40", "loss={kind: laplace}"],
    )  # fmt: skip
    keras.utils.set_random_seed(0)
    image = keras.Input((64, 32, 3))
    features = keras.layers.Conv2D(8, 5, 4, activation="relu")(image)
    regressor = build_regressor(keras.Model(image, features), COCO17, 2, (64, 32))
    kernel = regressor.get_layer("sigma_dense").kernel
    kernel.assign(2 * keras.random.normal(kernel.shape, seed=1))
    folder = RunFolder(root / "run")
    folder.path.mkdir()
    config.save(folder.config)
    folder.save_regressor(PoseEstimator(regressor, config.loss.build(2, 14)))
    return folder


def calibrate(run, **arguments):
    config, regressor = run.load()
    arguments = {"trained_on": config.open_source("train"), **arguments}
    source = arguments.pop("source", None) or config.open_source("val")
    return cal.calibrate_run(run, config, regressor, source, **arguments)


def test_of_a_run_half_of_the_people_are_fitted_and_half_are_judged(run):
    calibration, report = calibrate(run)
    # Two people to a photograph, mostly: they stay together.
    assert calibration.people + report["people"] == 40 and 15 <= calibration.people <= 25
    assert report["fitted_people"] == calibration.people
    assert report["on_training_people"] == 0
    assert calibration.model == cal.fingerprint(run.load()[1])
    assert calibration.spread.shape == (17, 2) and set(report["joints"]) == set(COCO17.joints)


def test_a_calibrated_run_says_what_is_fitted(run):
    config, regressor = run.load()
    assert cal.uncertainty(run, regressor)[0].shape == (2,)
    calibration, _ = calibrate(run)
    calibration.save(run.calibration)
    try:
        spread, confidence = cal.uncertainty(run, regressor)
        assert (confidence.values == calibration.confidence.values).all()
        np.testing.assert_array_equal(spread, calibration.spread)
        scores, _ = evaluate(
            regressor, config.open_source("val"), config.input_format, flip_test=False,
            spread=spread,
        )  # fmt: skip
        assert scores["within_1_sigma"] == pytest.approx(0.6827, abs=0.06)
        other = keras.models.clone_model(regressor)
        with pytest.raises(
            ModelError, match="is of another model than .*calibrate again .* remove"
        ):
            cal.run_calibration(run, other)
    finally:
        run.calibration.unlink()


def test_decoded_with_a_confidence():
    output = {"mu": np.zeros((2, 3, 2)), "sigma": np.full((2, 3, 2), expit(-2))}
    function = Confidence(np.array([-3.0, -1]), np.array([[1, 0], [0.8, 0.4], [0.6, 0.6]]))
    spread = np.array([[1, 2], [3, 4], [5, 6.0]])
    poses = decode(output, np.array([[0, 0, 100, 100]] * 2), spread=spread, confidence=function)
    np.testing.assert_allclose(poses.confidences, [[0.5, 0.6, 0.6]] * 2, atol=1e-6)
    np.testing.assert_allclose(poses.sigmas[0], 100 * expit(-2) * spread)
    np.testing.assert_array_equal(poses.take([1]).confidences, poses.confidences[[1]])
    assert poses.of_joints([2, 0], 2).confidences.shape == (2, 2)


def test_training_people_are_refused_unless_forced(run):
    train = run.load()[0].open_source("train")
    with pytest.raises(DataError, match="32 of 32 people are in photographs that .* trained on"):
        calibrate(run, source=train)
    _, report = calibrate(run, source=train, force=True)
    assert report["on_training_people"] == 32
    _, report = calibrate(run, source=train, trained_on=None, force=True)
    assert report["on_training_people"] is None


def test_a_run_without_its_flow_is_named(run, tmp_path):
    config, _ = run.load()
    folder = RunFolder(tmp_path)
    folder.load_loss(config, 14, 2)  # laplace has none
    config = load_config(run.config, ["loss={kind: rle}"])
    with pytest.raises(ModelError, match="flow.npz: no such file; expected the flow of a run"):
        folder.load_loss(config, 14, 2)
    np.savez(folder.flow, np.zeros(3))
    differs = r"holds 1 arrays, the first that differs of \(3,\) and not \(2, 64\); expected the 72"
    with pytest.raises(ModelError, match=differs):
        folder.load_loss(config, 14, 2)
    for content in (b"no zip", b""):
        folder.flow.write_bytes(content)
        with pytest.raises(ModelError, match="flow.npz: cannot be read as a flow"):
            folder.load_loss(config, 14, 2)
