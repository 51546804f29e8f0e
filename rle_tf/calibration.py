"""What sigma is worth: credible regions and confidences, fitted on people not trained on.

The density of an error is that of the loss (`PoseLoss.log_density`): base times flow, normalised,
in sigmas of the joint. Two things are fitted to it for each joint: a factor on its sigma, by
maximum likelihood, and for each share of probability the region that held that share of the
joints. A region is one of highest density, so its shape is the density's and not an ellipse.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit
from scipy.stats import chi2

from rle_tf import metrics
from rle_tf.config import RunConfig
from rle_tf.data.confidence import TOLERANCE, Confidence, logit_sigma
from rle_tf.data.source import Poses, Records, Source
from rle_tf.errors import DataError, ModelError
from rle_tf.evaluation import forward_function, predict_outputs
from rle_tf.losses import PoseLoss
from rle_tf.run_folder import RunFolder

MIN_JOINTS = 200
# Fewer labelled joints of a kind than this, and it takes what fits all kinds together.
MIN_OF_A_KIND = 50
# Shares of probability whose regions are fitted.
LEVELS = np.array([*np.arange(0.05, 1, 0.05), 0.98, 0.99])
REPORTED_LEVELS = (0.5, 0.8, 0.9, 0.95)
# Of one normal standard deviation to each side.
ONE_SIGMA = 0.6827
_KNOTS = 33


@dataclass(frozen=True)
class Calibration:
    """What was fitted for one regressor of K joints with D coordinates.

    Attributes:
        model: `fingerprint` of the regressor.
        people: How many it was fitted on.
        labelled: (K,) int, how many joints of each kind.
        scale: (K,) the factor on sigma under which the density fits best.
        spread: (K, D) within sigma times this, along each coordinate, lay 68.27 % of the joints.
        regions: (K, `LEVELS`) the depth (see `Density`) within which a share `LEVELS` of the joints
            lay, at sigma times the scale.
        confidence: The probability of being off by less than a tenth of the person's size.
    """

    model: str
    people: int
    labelled: np.ndarray
    scale: np.ndarray
    spread: np.ndarray
    regions: np.ndarray
    confidence: Confidence

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        confidence = {key: value.tolist() for key, value in vars(self.confidence).items()}
        content = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in vars(self).items()
        }
        content |= {"levels": LEVELS.round(4).tolist(), "confidence": confidence}
        path.write_text(json.dumps(content, indent=1) + "\n")


def read_calibration(path: Path) -> Calibration:
    """A calibration that `Calibration.save` wrote.

    Raises:
        ModelError: if the file is something else.
    """
    try:
        content = json.loads(path.read_text())
        confidence = {key: np.array(value) for key, value in content.pop("confidence").items()}
        if content.pop("levels") != LEVELS.round(4).tolist():
            raise ValueError("other levels")
        arrays = {key: np.array(content[key]) for key in ("labelled", "scale", "spread", "regions")}
        return Calibration(**(content | arrays), confidence=Confidence(**confidence))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path}: cannot be read ({error}); expected what rle-tf calibrate wrote"
        ) from None


def run_calibration(run: RunFolder, regressor: keras.Model) -> Calibration | None:
    """The calibration of a run's regressor, None where there is none.

    Raises:
        ModelError: if it is of another regressor: one that was trained on since, say.
    """
    if not run.calibration.is_file():
        return None
    calibration = read_calibration(run.calibration)
    if calibration.model != fingerprint(regressor):
        raise ModelError(
            f"{run.calibration}: is of another model than {run.regressor}; expected its own: "
            f"calibrate again (rle-tf calibrate {run.path}), or remove the file"
        )
    return calibration


def uncertainty(run: RunFolder, regressor: keras.Model) -> tuple[np.ndarray, Confidence | None]:
    """What one sigma of a run's regressor is worth, (K, D) where it is calibrated, else (D,) of the
    density that it was trained with, NaN where no sigma was trained; and its confidence.

    Raises:
        ModelError: as `run_calibration`, or if the run lacks what it should have.
    """
    calibration = run_calibration(run, regressor)
    if calibration is None:
        return run.spread, None
    return calibration.spread, calibration.confidence


def fingerprint(regressor: keras.Model) -> str:
    """SHA-256 of a regressor's weights."""
    digest = hashlib.sha256()
    for value in regressor.get_weights():
        digest.update(np.ascontiguousarray(value, np.float32).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Density:
    """The density of a residual that a loss has learned, by draws from it.

    A residual's *depth* is by how much its log density is below that of the densest draw. A region
    of highest density is where the depth is at most something.

    Where each joint has a density of its own, so it is below: `log`, `depth` and `depth_of` take
    and give those of all K joints, and the rest is of `of_joint`.

    Attributes:
        log_of: (..., [K,] D) residuals -> (..., [K]) log density, but for a constant.
        draws: (n, [K,] D) residuals.
        log_density: (n, [K]) theirs, ascending.
    """

    log_of: Callable[[np.ndarray], np.ndarray]
    draws: np.ndarray
    log_density: np.ndarray

    @classmethod
    def of(cls, loss: PoseLoss, dims: int, draws: int = 20_000) -> "Density":
        """Of so many draws. Raises `ModelError` for a loss that trains no density of residuals."""
        draws = loss.draws(dims, draws)
        if np.isnan(draws).any():
            raise ModelError(
                f"loss '{loss.name}' trains no density of residuals; expected a model trained with "
                "rle, direct (reparameterised), laplace or gaussian"
            )

        def log_of(residual: np.ndarray) -> np.ndarray:
            return np.asarray(loss.log_density(tf.constant(residual, tf.float32)), np.float64)

        return cls(log_of, draws, np.sort(log_of(draws), axis=0))

    @property
    def per_joint(self) -> bool:
        """Whether each joint has a density of its own."""
        return self.draws.ndim == 3

    def of_joint(self, joint: int) -> "Density":
        """That of a joint: (..., D) -> (...)."""
        if not self.per_joint:
            return self
        joints = self.draws.shape[1]

        def log_of(residual: np.ndarray) -> np.ndarray:
            each = np.repeat(residual[..., None, :], joints, axis=-2)
            return self.log_of(each)[..., joint]

        return Density(log_of, self.draws[:, joint], self.log_density[:, joint])

    def depth(self, residual: np.ndarray) -> np.ndarray:
        """(..., [K,] D) -> (..., [K])."""
        return self.log_density[-1] - self.log_of(residual)

    def depth_of(self, shares: np.ndarray) -> np.ndarray:
        """Within which depths the density has these (S,) shares of its probability, (S, [K])."""
        return np.quantile(self.log_density[-1] - self.log_density, shares, axis=0)

    def within(self, radius: np.ndarray) -> np.ndarray:
        """(N,) -> (N,) the probability that x and y are off by less than a radius, in sigmas."""
        lengths = np.sort(np.linalg.norm(self.draws[:, :2], axis=-1))
        return np.searchsorted(lengths, radius) / len(lengths)


@dataclass(frozen=True)
class Errors:
    """How far N people's joints are off.

    Attributes:
        residual: (N, K, D) (annotated - predicted) / sigma.
        log_sigma: (N, K) mean over x and y, in the regressor's coordinates.
        relative: (N, K) distance in x and y, as a share of the person's size (see `Confidence`).
        relative_sigma: (N, K) the geometric mean of sigma in x and y, as such a share.
        labelled: (N, K) bool, where these mean something.
    """

    residual: np.ndarray
    log_sigma: np.ndarray
    relative: np.ndarray
    relative_sigma: np.ndarray
    labelled: np.ndarray

    def take(self, rows: np.ndarray) -> "Errors":
        """Those of some people."""
        return Errors(*(column[rows] for column in vars(self).values()))


def joint_errors(sigma: np.ndarray, poses: Poses, records: Records, box_margin: float) -> Errors:
    """The errors of poses that were decoded with a spread of 1.

    Args:
        sigma: (N, K, D) in the regressor's coordinates.
        poses: What it says, in pixels and mm.
        records: What is annotated, row by row.
        box_margin: Between a person's box and the crop.
    """
    known = records.labelled & np.isfinite(records.keypoints).all(axis=-1)
    target = np.where(known[..., None], records.keypoints.astype(float), poses.keypoints)
    error = target - poses.keypoints
    box = poses.crop_boxes_xyxy
    size_px = ((box[:, 2:] - box[:, :2]).max(axis=1) / box_margin)[:, None]
    return Errors(
        residual=error / poses.sigmas,
        log_sigma=np.log(sigma[..., :2]).mean(axis=-1),
        relative=np.linalg.norm(error[..., :2], axis=-1) / size_px,
        relative_sigma=np.sqrt(poses.sigmas[..., :2].prod(axis=-1)) / size_px,
        labelled=known,
    )


def fit(errors: Errors, density: Density, model: str = "") -> Calibration:
    """Fits a calibration.

    Args:
        errors: Of people that the regressor was not trained on.
        density: Of the loss that it was trained with.
        model: `fingerprint` of the regressor.

    Raises:
        DataError: for fewer than `MIN_JOINTS` labelled joints.
    """
    labelled = errors.labelled
    if labelled.sum() < MIN_JOINTS:
        raise DataError(
            f"calibration: found {labelled.sum()} labelled joints of {len(labelled)} people to fit "
            f"on; expected {MIN_JOINTS} or more"
        )
    joints = labelled.shape[1]
    # Where an error's share of the size is `TOLERANCE`, in sigmas: a constant, by the crop's shape.
    log_unit = np.median((np.log(errors.relative_sigma) - errors.log_sigma)[labelled])
    logits = logit_sigma(errors.log_sigma)
    low, high = np.quantile(logits[labelled], [0.001, 0.999])
    knots = np.linspace(low - 0.5, high + 0.5, _KNOTS)

    def of(chosen: np.ndarray, density: Density) -> tuple:
        residual = errors.residual[chosen]
        scale = _scale(residual, density)
        regions = np.quantile(density.depth(residual / scale), LEVELS)
        spread = np.quantile(np.abs(residual), ONE_SIGMA, axis=0)
        correct = errors.relative[chosen] < TOLERANCE

        def features(places: np.ndarray) -> np.ndarray:
            mass = density.within(TOLERANCE / (scale * expit(places) * np.exp(log_unit)))
            return np.stack([logit(np.clip(mass, 1e-3, 1 - 1e-3)), -places], axis=-1)

        confidence = _platt(features(logits[chosen]), correct)(features(knots))
        return scale, spread, regions, confidence

    # A joint that few have is fitted as all joints together are.
    everybody = cache(lambda joint: of(labelled, density.of_joint(joint)))
    fitted = []
    for joint in range(joints):
        chosen = labelled & (np.arange(joints) == joint)
        if chosen.sum() >= MIN_OF_A_KIND:
            fitted.append(of(chosen, density.of_joint(joint)))
        else:
            fitted.append(everybody(joint if density.per_joint else 0))
    scale, spread, regions, confidence = (np.array(column) for column in zip(*fitted, strict=True))
    return Calibration(
        model=model,
        people=int(labelled.any(axis=1).sum()),
        labelled=labelled.sum(axis=0),
        scale=scale,
        spread=spread,
        regions=regions,
        confidence=Confidence(knots, confidence),
    )


def _scale(residual: np.ndarray, density: Density) -> float:
    """The factor on sigma under which residuals (N, D) are likeliest."""
    dims = (residual != 0).any(axis=0).sum()  # the root's depth is known

    def loss(log_scale: float) -> float:
        return float(dims * log_scale - density.log_of(residual * np.exp(-log_scale)).mean())

    # As many times wider or narrower as medians differ, and up to four times more.
    start = np.log(np.median(np.abs(residual)) / np.median(np.abs(density.draws)))
    span = np.log(4)
    found = minimize_scalar(loss, bounds=(start - span, start + span), method="bounded")
    return float(np.exp(found.x))


def _platt(features: np.ndarray, correct: np.ndarray):
    """Probabilities made to fit what happened: expit(a + b logit(p) - c logit(sigma)), b and c at
    least 0 (Platt, 1999, has the first two).

    p is the mass of the density. Where sigma comes near 1 it hardly changes, and what the regressor
    still tells apart is in the logit of sigma. A prior worth ten joints holds a and c near 0 and b
    near 1.
    """
    y, usual = correct.astype(float), np.array([0.0, 1.0, 0.0])

    def score(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
        return parameters[0] + x @ parameters[1:]

    def loss(parameters: np.ndarray) -> float:
        found = score(parameters, features)
        prior = 5 * np.square(parameters - usual).sum()
        return float((np.logaddexp(0, found) - y * found).sum() + prior)

    fitted = minimize(loss, usual, bounds=[(-10, 10), (0, 10), (0, 10)]).x
    return lambda x: expit(score(fitted, x))


def confidences(calibration: Calibration, errors: Errors) -> np.ndarray:
    """(N, K) calibrated confidence of each joint."""
    sigma = np.exp(errors.log_sigma)[..., None]
    return calibration.confidence(tf.constant(sigma, tf.float32)).numpy().astype(np.float64)


def calibration_report(
    calibration: Calibration,
    errors: Errors,
    density: Density,
    records: Records,
    poses: Poses,
    joints: tuple[str, ...],
    oks_sigmas: tuple[float, ...],
) -> dict:
    """How far a calibration holds for people that it was not fitted on.

    Args:
        calibration: What is judged.
        errors, records, poses: Of these people, row by row.
        density: Of the loss.
        joints: K names.
        oks_sigmas: (K,) of the skeleton; without any, correlation with OKS is None.

    Returns:
        What JSON can hold:
        people, labelled: how many people and joints.
        coverage: {level: share of the joints in their region of that level}, for levels 0.5, 0.8,
            0.9 and 0.95; `coverage_uncalibrated` the same of the density as it was trained, and
            `coverage_normal` of a normal density with the same `spread`, without the density.
        bins, ece, brier: of the confidence, see `metrics.reliability`.
        sharpness: `sigma`, the median of sigma times spread as a share of the person's size, and
            `confidence_std`.
        correlation: of a person's mean confidence with `oks`, and with `pck`, the share of its
            joints that are off by less than a tenth of its size (Pearson's); of a joint's
            confidence with its being so, `joint`.
        coverage_kept, risk, aurc: see `metrics.risk_coverage`.
        joints: {name: labelled, coverage, ece, confidence, correct, scale}.
    """
    labelled = errors.labelled
    confidence = confidences(calibration, errors)
    correct = errors.relative < TOLERANCE
    depth = density.depth(errors.residual / calibration.scale[:, None])
    raw = density.depth(errors.residual)
    spread = np.where(calibration.spread > 0, calibration.spread, 1)  # the root's depth is known
    in_spreads = np.square(errors.residual / spread).sum(axis=-1)[labelled]
    bounds = np.array([np.interp(REPORTED_LEVELS, LEVELS, row) for row in calibration.regions])

    def coverage(chosen: np.ndarray) -> dict[str, float]:
        inside = depth[..., None] <= bounds
        return {
            str(level): float(inside[..., i][chosen].mean()) if chosen.any() else None
            for i, level in enumerate(REPORTED_LEVELS)
        }

    people = labelled.any(axis=1)
    of_person = confidence.mean(axis=1)  # of all joints: what of a person is labelled nobody knows
    accuracy = np.where(labelled, correct, 0).sum(axis=1) / np.maximum(labelled.sum(axis=1), 1)
    similarity = None
    if oks_sigmas:
        oks = metrics.oks(
            poses.keypoints[..., :2],
            records.keypoints[..., :2],
            records.areas,
            oks_sigmas,
            labelled,
        )
        similarity = _known(metrics.correlation(of_person[people], oks[people]))
    reliability = metrics.reliability(confidence[labelled], correct[labelled])
    risk = metrics.risk_coverage(confidence[labelled], correct[labelled])
    sigma = errors.relative_sigma * np.sqrt(calibration.spread[:, :2].prod(axis=-1))
    dims = errors.residual.shape[-1]
    return {
        "people": int(people.sum()),
        "labelled": int(labelled.sum()),
        "coverage": coverage(labelled),
        "coverage_uncalibrated": {
            str(level): float((raw <= limit)[labelled].mean())
            for level, limit in zip(REPORTED_LEVELS, density.depth_of(REPORTED_LEVELS), strict=True)
        },
        "coverage_normal": {
            str(level): float((in_spreads <= _chi2(level, dims)).mean())
            for level in REPORTED_LEVELS
        },
        **reliability,
        "sharpness": {
            "sigma": float(np.median(sigma[labelled])),
            "confidence_std": float(confidence[labelled].std()),
        },
        "correlation": {
            "oks": similarity,
            "pck": _known(metrics.correlation(of_person[people], accuracy[people])),
            "joint": _known(metrics.correlation(confidence[labelled], correct[labelled])),
        },
        **risk,
        "joints": {
            name: {
                "labelled": int(labelled[:, k].sum()),
                "coverage": coverage(labelled & (np.arange(len(joints)) == k)),
                "scale": float(calibration.scale[k]),
                **(
                    {
                        "ece": metrics.reliability(
                            confidence[labelled[:, k], k], correct[labelled[:, k], k]
                        )["ece"],
                        "confidence": float(confidence[labelled[:, k], k].mean()),
                        "correct": float(correct[labelled[:, k], k].mean()),
                    }
                    if labelled[:, k].any()
                    else {}
                ),
            }
            for k, name in enumerate(joints)
        },
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _chi2(level: float, dims: int) -> float:
    return float(chi2.ppf(level, dims))


def calibrate_run(
    run: RunFolder,
    config: RunConfig,
    regressor: keras.Model,
    source: Source,
    *,
    trained_on: Source | None,
    force: bool = False,
    on_batch=None,
) -> tuple[Calibration, dict]:
    """Fits a calibration on half of a source's people and reports on the other half.

    People of one photograph stay together: photographs take turns. Without flip test, as an
    exported model of crops is.

    Args:
        run: The training run, where `calibration.json` and the report go.
        config: The run's.
        regressor: What is calibrated.
        source: People with their annotations, in annotated boxes.
        trained_on: The run's training people, which must not be among them.
        force: Fit on them all the same.
        on_batch: Called with the number of people of each batch that was predicted.

    Returns:
        The calibration, and `calibration_report` with `fitted_people` and `on_training_people`: how
        many of the people are in photographs that were trained on, None where that is not known.

    Raises:
        DataError: for too few labelled joints, people that the model was trained on, or people
            with another number of coordinates.
        ModelError: for a lifter, or a loss that trains no density of residuals.
    """
    input_format = config.input_format
    if not input_format.reads_images:
        raise ModelError(f"{run.path}: a lifter, which takes keypoints; expected a model of images")
    _, joints, dims = regressor.output["mu"].shape
    found = source.records.keypoints.shape[-1]
    if found != dims:
        raise DataError(
            f"calibration: found people with {found} coordinates to a joint; expected {dims}, as "
            f"{run.path} predicts"
        )
    shared = None
    if trained_on is not None:
        known = {Path(path).resolve() for path in trained_on.records.image_paths}
        shared = sum(Path(path).resolve() in known for path in source.records.image_paths)
    if shared and not force:
        raise DataError(
            f"calibration: {shared} of {len(source.records)} people are in photographs that "
            f"{run.path} was trained on, where errors are smaller than elsewhere; expected others "
            "(--force calibrates on them all the same)"
        )
    density = Density.of(run.load_loss(config, joints, dims), dims)
    forward = forward_function(regressor, source.skeleton, input_format, flip_test=False)
    output = predict_outputs(
        forward,
        source.records,
        source.skeleton,
        input_format,
        batch_size=config.evaluate.batch_size,
        on_batch=on_batch,
    )
    poses = input_format.decode(output, source.records, np.ones(dims))
    errors = joint_errors(output["sigma"], poses, source.records, input_format.box_margin)
    _, photograph = np.unique(source.records.image_paths.astype(str), return_inverse=True)
    fitted, judged = (np.flatnonzero(photograph % 2 == half) for half in (0, 1))
    if not errors.labelled[judged].any():
        raise DataError(
            f"calibration: found no labelled joint in every second of {photograph.max() + 1} "
            "photographs; expected people to fit on and others to judge by"
        )
    calibration = fit(errors.take(fitted), density, fingerprint(regressor))
    report = calibration_report(
        calibration,
        errors.take(judged),
        density,
        source.records.take(judged),
        poses.take(judged),
        source.skeleton.joints,
        source.skeleton.oks_sigmas,
    )
    report = {
        "fitted_people": calibration.people,
        "on_training_people": shared,
        **report,
    }
    return calibration, report
