"""How good a set of poses is: NumPy arrays and COCO dicts in, numbers out."""

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rle_tf.errors import DataError

AP_NAMES = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
"""The numbers of the COCO keypoint challenge, in the order of `COCOeval.stats`."""


def oks(
    keypoints_px: ArrayLike,
    references_px: ArrayLike,
    areas_px2: ArrayLike,
    sigmas: ArrayLike,
    labelled: ArrayLike | None = None,
) -> np.ndarray:
    """Object keypoint similarity of poses to reference poses, in [0, 1].

    The mean over joints of exp(-d^2 / (2 area (2 sigma)^2)), d the distance in pixels (COCO
    keypoint challenge). Leading dimensions broadcast: `oks(a[:, None], b[None], ...)` compares
    all with all.

    Args:
        keypoints_px: (..., K, 2) x and y.
        references_px: (..., K, 2) x and y.
        areas_px2: (...) area of the reference person.
        sigmas: (K,) per-joint constants, as in `Skeleton.oks_sigmas`.
        labelled: (..., K) bool, the joints that count; all of them where None. What the arrays
            hold at the others does not matter.

    Returns:
        (...) float64; NaN where no joint is labelled.
    """
    squared_px2 = np.square(np.asarray(keypoints_px, float) - np.asarray(references_px, float))
    variances = np.square(2 * np.asarray(sigmas, float))
    # The machine epsilon is COCOeval's: it keeps an area of zero from dividing by zero.
    areas_px2 = np.asarray(areas_px2, float)[..., None] + np.spacing(1.0)
    similarity = np.exp(-squared_px2.sum(axis=-1) / variances / areas_px2 / 2)
    if labelled is None:
        return similarity.mean(axis=-1)
    return _masked_mean(similarity, np.broadcast_to(labelled, similarity.shape), axis=-1)


def oks_nms(
    keypoints: ArrayLike,
    scores: ArrayLike,
    areas_px2: ArrayLike,
    sigmas: ArrayLike,
    threshold: float = 0.9,
) -> np.ndarray:
    """Removes duplicate detections of one image by their object keypoint similarity.

    Goes from the highest score down; each detection kept removes the later ones whose OKS to it,
    over all K joints and at the mean of the two areas, is above the threshold.

    Args:
        keypoints: (N, K, 2) x and y in pixels, or (N, K, 3) with a score that is not used.
        scores: (N,) person scores.
        areas_px2: (N,) areas of the persons.
        sigmas: (K,) per-joint constants, as in `Skeleton.oks_sigmas`.
        threshold: OKS above which two detections are of the same person.

    Returns:
        (M,) int64 indices of the detections kept, by decreasing score; ties in input order.
    """
    keypoints_px = np.asarray(keypoints, float)[..., :2]
    areas_px2 = np.asarray(areas_px2, float)
    remaining = np.argsort(-np.asarray(scores, float), kind="stable")
    kept = []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        kept.append(best)
        mean_areas_px2 = (areas_px2[best] + areas_px2[remaining]) / 2
        similarity = oks(keypoints_px[remaining], keypoints_px[best], mean_areas_px2, sigmas)
        remaining = remaining[similarity <= threshold]
    return np.array(kept, np.int64)


def person_scores(joint_scores: ArrayLike, box_scores: ArrayLike = 0.0) -> np.ndarray:
    """The score that ranks a person: detection score + mean + maximum of the joint scores.

    Args:
        joint_scores: (N, K), 1 - mean sigma of each joint.
        box_scores: (N,) scores of the detector, or 0 where boxes come from the ground truth.

    Returns:
        (N,) float64.

    Raises:
        DataError: The shapes are not those.
    """
    joint_scores = np.asarray(joint_scores, float)
    box_scores = np.asarray(box_scores, float)
    if joint_scores.ndim != 2 or box_scores.shape not in ((), joint_scores.shape[:1]):
        raise DataError(
            f"person_scores: found joint scores {joint_scores.shape} and box scores "
            f"{box_scores.shape}, expected (N, K) and (N,) or one number"
        )
    return box_scores + joint_scores.mean(axis=1) + joint_scores.max(axis=1)


def per_joint_error(
    predicted_px: ArrayLike,
    target_px: ArrayLike,
    labelled: ArrayLike,
    areas_px2: ArrayLike,
    longer_sides_px: ArrayLike,
    pck_threshold: float = 0.1,
) -> dict[str, np.ndarray | float]:
    """How far each joint is off, in pixels, relative to the person, and as PCK.

    Args:
        predicted_px: (N, K, 2) x and y in image pixels.
        target_px: (N, K, 2) x and y in image pixels.
        labelled: (N, K) bool, the joints that count. What the arrays hold at the others does
            not matter.
        areas_px2: (N,) areas of the persons; errors are divided by their square roots, the
            length that OKS measures in.
        longer_sides_px: (N,) longer side of each person's box, the length that PCK measures in.
        pck_threshold: A joint is correct when it is off by no more than this share of the
            longer side.

    Returns:
        `"error_px"`, `"error_per_sqrt_area"` and `"pck"`, each (K,) float64, means over the
        persons that have the joint labelled; `"mean_error_px"`, `"mean_error_per_sqrt_area"`
        and `"mean_pck"`, means over all labelled joints of all persons; `"count"`, (K,) int64
        labelled joints. NaN where nothing is labelled.

    Raises:
        DataError: A person with labelled joints has no positive area or longer side.
    """
    labelled = np.asarray(labelled, bool)
    areas_px2 = np.asarray(areas_px2, float)
    longer_sides_px = np.asarray(longer_sides_px, float)
    bad = labelled.any(axis=1) & ~((areas_px2 > 0) & (longer_sides_px > 0))
    if bad.any():
        person = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"per_joint_error: person {person} has an area of {areas_px2[person]:g} px2 and a "
            f"longer side of {longer_sides_px[person]:g} px, expected both above 0"
        )

    # Where nothing is labelled the differences may be NaN and the lengths 0: put harmless
    # values there before computing, so that a warning always means a mistake.
    difference_px = np.asarray(predicted_px, float) - np.asarray(target_px, float)
    error_px = np.linalg.norm(np.where(labelled[..., None], difference_px, 0), axis=-1)
    any_labelled = labelled.any(axis=1)
    relative = error_px / np.sqrt(np.where(any_labelled, areas_px2, 1))[:, None]
    correct = error_px <= pck_threshold * longer_sides_px[:, None]

    values = {"error_px": error_px, "error_per_sqrt_area": relative, "pck": correct}
    per_joint = {name: _masked_mean(value, labelled, axis=0) for name, value in values.items()}
    overall = {
        f"mean_{name}": float(_masked_mean(value.ravel(), labelled.ravel(), axis=0))
        for name, value in values.items()
    }
    return per_joint | overall | {"count": labelled.sum(axis=0)}


def coverage(
    predicted_px: ArrayLike,
    target_px: ArrayLike,
    sigma_px: ArrayLike,
    labelled: ArrayLike,
    factor: float = 1.0,
) -> float:
    """The share of coordinates whose error is at most `factor` times the expected one.

    Sigmas that mean what a normal density's do give 0.683 at a factor of 1 and 0.954 at 2.

    Args:
        predicted_px, target_px, sigma_px: (N, K, 2) x and y in image pixels.
        labelled: (N, K) bool, the joints that count.
        factor: Of sigma.

    Returns:
        In [0, 1]; NaN where nothing is labelled or a sigma that counts is not known.
    """
    labelled = np.asarray(labelled, bool)
    sigma_px = np.asarray(sigma_px, float)[labelled]
    if not labelled.any() or np.isnan(sigma_px).any():
        return float("nan")
    error_px = np.abs(np.asarray(predicted_px, float) - np.asarray(target_px, float))[labelled]
    return float((error_px <= factor * sigma_px).mean())


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> dict:
    """How often what was held to be likely came true (Guo et al., "On calibration of modern neural
    networks", ICML 2017).

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
        bins: Of equal width.

    Returns:
        `"bins"`: a dict of each bin with anything in it: mean `confidence`, share `correct`, and
            how many `joints`.
        `"ece"`: expected calibration error, the mean distance of the two weighted by the number.
        `"brier"`: mean squared distance of confidence and outcome. Both NaN for N = 0.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, bool)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = np.flatnonzero(count)
    means = np.bincount(which, confidence, bins)[filled] / count[filled]
    shares = np.bincount(which, correct, bins)[filled] / count[filled]
    total = len(confidence)
    return {
        "bins": [
            {"confidence": float(mean), "correct": float(share), "joints": int(n)}
            for mean, share, n in zip(means, shares, count[filled], strict=True)
        ],
        "ece": float(np.abs(means - shares) @ count[filled] / total) if total else float("nan"),
        "brier": float(np.square(confidence - correct).mean()) if total else float("nan"),
    }


def risk_coverage(confidence: ArrayLike, correct: ArrayLike, points: int = 21) -> dict:
    """What is gained by leaving out what is unsure (El-Yaniv and Wiener, JMLR 2010).

    Args:
        confidence: (N,), N at least 1; the surest come first, ties in the order given.
        correct: (N,) bool.
        points: At which shares the curve is given, equidistant from 0 to 1.

    Returns:
        `"coverage_kept"`: shares kept, and `"risk"`: of wrong ones among the kept, both `points`
            long (at 0 the risk of the surest one); `"aurc"`: mean risk over all numbers kept.
    """
    order = np.argsort(-np.asarray(confidence, float), kind="stable")
    wrong = ~np.asarray(correct, bool)[order]
    risk = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    shares = np.linspace(0, 1, points)
    kept = np.maximum(np.ceil(shares * len(wrong)).astype(int), 1)
    return {
        "coverage_kept": shares.round(4).tolist(),
        "risk": risk[kept - 1].tolist(),
        "aurc": float(risk.mean()),
    }


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson's correlation of two (N,) arrays; NaN where one of them is constant."""
    a, b = (np.asarray(values, float) - np.mean(values) for values in (a, b))
    scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float(a @ b / scale) if scale > 0 else float("nan")


def torso_scores(
    predicted_px: ArrayLike,
    target_px: ArrayLike,
    sigma_px: ArrayLike,
    labelled: ArrayLike,
    joints: Sequence[str],
    torso: tuple[int, int],
) -> dict[str, float]:
    """How far joints are off in torsos, as Leeds Sports Pose is scored (Yang and Ramanan,
    "Articulated human detection with flexible mixtures of parts", PAMI 2013).

    Args:
        predicted_px, target_px, sigma_px: (N, K, 2) x and y in image pixels.
        labelled: (N, K) bool, the joints that count.
        joints: K names.
        torso: The two joints whose distance is the length; people who lack one count in `error_px`
            and `within_*_sigma` alone.

    Returns:
        `"PCK@0.2"`, `"PCK@0.1"`: share of the joints off by at most that share of the torso;
        `"AUC"`: mean of that share at 0, 0.01, ..., 0.2 torsos; `"error_torso"`: mean error in
        torsos; `"error_px"`; `"within_1_sigma"` and `"within_2_sigma"`: `coverage`;
        `"PCK@0.2_limbs"` and `"PCK@0.1_limbs"`: without neck and head top, which not every
        skeleton has; `"PCK@0.2/NAME"` of each joint. NaN where nothing is labelled.
    """
    labelled = np.asarray(labelled, bool)
    target_px = np.where(labelled[..., None], np.asarray(target_px, float), 0)
    difference_px = np.where(labelled[..., None], np.asarray(predicted_px, float) - target_px, 0)
    error_px = np.linalg.norm(difference_px, axis=-1)
    length_px = np.linalg.norm(target_px[:, torso[0]] - target_px[:, torso[1]], axis=-1)
    measured = labelled[:, torso[0]] & labelled[:, torso[1]] & (length_px > 0)
    error = error_px / np.where(measured, length_px, 1)[:, None]
    counted = labelled & measured[:, None]

    limbs = ~np.isin(joints, ("neck", "head_top"))

    def share(threshold: float, chosen: np.ndarray | slice = slice(None)) -> float:
        hit = error[:, chosen] <= threshold
        return float(_masked_mean(hit.ravel(), counted[:, chosen].ravel(), axis=0))

    scores = {
        "PCK@0.2": share(0.2),
        "PCK@0.1": share(0.1),
        "AUC": float(np.mean([share(threshold / 100) for threshold in range(21)])),
        "error_torso": float(_masked_mean(error.ravel(), counted.ravel(), axis=0)),
        "error_px": float(_masked_mean(error_px.ravel(), labelled.ravel(), axis=0)),
    }
    for factor in (1, 2):
        scores[f"within_{factor}_sigma"] = coverage(
            predicted_px, target_px, sigma_px, labelled, factor
        )
    scores |= {f"PCK@{threshold}_limbs": share(threshold, limbs) for threshold in (0.2, 0.1)}
    per_joint = _masked_mean(error <= 0.2, counted, axis=0)
    names = zip(joints, per_joint, strict=True)
    return scores | {f"PCK@0.2/{joint}": float(value) for joint, value in names}


def joint_errors_mm(predicted_mm: ArrayLike, reference_mm: ArrayLike, root: int) -> np.ndarray:
    """How far each joint is off after both poses are moved so that their roots coincide.

    The mean of these is the MPJPE (Ionescu et al., "Human3.6M", PAMI 2014).

    Args:
        predicted_mm: (N, K, 3).
        reference_mm: (N, K, 3).
        root: Index of the joint moved to the origin, as in `Skeleton.root`; its error is 0.

    Returns:
        (N, K) float64, millimetres.

    Raises:
        DataError: The shapes differ or are not those, or a coordinate is not finite.
    """
    predicted_mm, reference_mm = _checked_joints("joint_errors_mm", predicted_mm, reference_mm)
    difference_mm = predicted_mm - reference_mm
    return np.linalg.norm(difference_mm - difference_mm[:, [root]], axis=-1)


def pa_joint_errors_mm(predicted_mm: ArrayLike, reference_mm: ArrayLike) -> np.ndarray:
    """How far each joint is off after the similarity that brings each pose closest.

    The mean of these is the PA-MPJPE, also called P-MPJPE or reconstruction error. Every joint
    given takes part in the alignment.

    Args:
        predicted_mm: (N, K, 3), moved as `geometry.procrustes_align` does.
        reference_mm: (N, K, 3).

    Returns:
        (N, K) float64, millimetres.

    Raises:
        DataError: The shapes differ or are not those, or a coordinate is not finite.
    """
    # Not at the top: geometry takes TensorFlow with it, for which the other metrics do not wait.
    from rle_tf.geometry import procrustes_align

    predicted_mm, reference_mm = _checked_joints("pa_joint_errors_mm", predicted_mm, reference_mm)
    return np.linalg.norm(procrustes_align(predicted_mm, reference_mm) - reference_mm, axis=-1)


def pose3d_scores(
    predicted_mm: ArrayLike, reference_mm: ArrayLike, actions: Sequence[str], root: int
) -> dict[str, float]:
    """The numbers that 3D poses are compared by, over the joints given.

    Args:
        predicted_mm: (N, K, 3), N at least 1.
        reference_mm: (N, K, 3).
        actions: (N,) what each person is doing.
        root: Index of the joint that both poses are moved to, as in `Skeleton.root`. It counts as
            a joint, as in the authors' code.

    Returns:
        In this order:
        `"MPJPE"`, `"PA-MPJPE"`: means over all people and joints, in millimetres; what the authors'
            code reports.
        `"MPJPE_by_action"`, `"PA-MPJPE_by_action"`: means of the actions' means, "Avg." in the
            tables of the literature.
        `"PCK3D@150mm"`: share of the joints less than 150 mm off, roots aligned, in [0, 1].
        `"AUC"`: mean of that share at 0, 5, ..., 150 mm. Both as Mehta et al., "Monocular 3D Human
            Pose Estimation in the Wild Using Improved CNN Supervision" (3DV 2017) score
            MPI-INF-3DHP. No joint is less than 0 mm off: a perfect pose has 30/31.
        `"MPJPE/<action>"` and `"PA-MPJPE/<action>"` for one action after the other, sorted.

    Raises:
        DataError: Nobody is given, the shapes differ or are not those, or a coordinate is not
            finite.
    """
    errors_mm = joint_errors_mm(predicted_mm, reference_mm, root)
    people = len(errors_mm)
    actions = np.asarray(actions, str)
    if not people or actions.shape != (people,):
        raise DataError(
            f"pose3d_scores: found {people} people and actions of shape {actions.shape}, "
            "expected at least one person and one action for each"
        )
    errors = {"MPJPE": errors_mm, "PA-MPJPE": pa_joint_errors_mm(predicted_mm, reference_mm)}
    by_action = {
        f"{name}/{action}": float(values[actions == action].mean())
        for action in sorted(set(actions.tolist()))
        for name, values in errors.items()
    }
    averages = {
        f"{name}_by_action": float(
            np.mean([value for key, value in by_action.items() if key.startswith(f"{name}/")])
        )
        for name in errors
    }
    correct = [float((errors_mm < threshold_mm).mean()) for threshold_mm in range(0, 151, 5)]
    return (
        {name: float(values.mean()) for name, values in errors.items()}
        | averages
        | {"PCK3D@150mm": correct[-1], "AUC": float(np.mean(correct))}
        | by_action
    )


def _checked_joints(
    where: str, predicted_mm: ArrayLike, reference_mm: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    poses_mm = {
        "predicted_mm": np.asarray(predicted_mm, float),
        "reference_mm": np.asarray(reference_mm, float),
    }
    predicted_mm, reference_mm = poses_mm.values()
    shape = reference_mm.shape
    if predicted_mm.shape != shape or len(shape) != 3 or shape[1] < 1 or shape[2] != 3:
        raise DataError(
            f"{where}: found predicted_mm of shape {predicted_mm.shape} and reference_mm of shape "
            f"{shape}, expected (N, K, 3) twice"
        )
    for name, joints_mm in poses_mm.items():
        bad = ~np.isfinite(joints_mm).all(axis=-1)
        if bad.any():
            row, joint = np.argwhere(bad)[0]
            raise DataError(
                f"{where}: found {joints_mm[row, joint].tolist()} at {name}[{row}], joint {joint}, "
                "expected finite millimetres"
            )
    return predicted_mm, reference_mm


def _masked_mean(values: np.ndarray, mask: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis where the mask holds; NaN where it holds nowhere."""
    count = mask.sum(axis=axis)
    total = np.where(mask, values, 0).sum(axis=axis, dtype=float)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def coco_from_dict(dataset: Mapping) -> COCO:
    """The pycocotools index of a COCO dataset that is in memory, made without printing.

    Args:
        dataset: The content of a COCO annotation file. It is held, not copied.

    Raises:
        DataError: A list that COCO files have is missing.
    """
    missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
    if missing:
        raise DataError(f"COCO dataset: found no {missing}, only {sorted(dataset)}")
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def coco_keypoint_ap(
    ground_truth: COCO, results: Sequence[Mapping], sigmas: ArrayLike
) -> dict[str, float]:
    """COCO keypoint AP and AR over all images of a ground truth, by pycocotools' COCOeval.

    People without labelled joints and crowds are ignored, and the 20 results of an image with
    the highest scores count, as in the challenge. Prints nothing and changes neither argument.

    Args:
        ground_truth: COCO keypoint annotations of K joints.
        results: What the evaluation server takes: dicts with `image_id`, `category_id`,
            `keypoints` (3 K numbers x, y, score) and `score`. Other keys are not used: the
            size that decides whether an unmatched result counts in APM or APL is that of its
            keypoints, as on the server. May be empty.
        sigmas: (K,) per-joint constants, as in `Skeleton.oks_sigmas`.

    Returns:
        The `AP_NAMES`, in [0, 1]; NaN (pycocotools: -1) for a size of which the ground truth
        has nobody.

    Raises:
        DataError: An annotation or a result that cannot be scored, by its index.
    """
    sigmas = np.asarray(sigmas, float)
    # COCOeval writes into the annotations it is given, and takes a match with id 0 for none:
    # it gets copies, numbered from 1.
    annotations = []
    for index, annotation in enumerate(ground_truth.dataset["annotations"]):
        _check_annotation(index, annotation, 3 * len(sigmas))
        annotations.append({**annotation, "id": index + 1})
    truth = coco_from_dict({**ground_truth.dataset, "annotations": annotations})

    detections = []
    for index, entry in enumerate(results):
        keypoints = _checked_keypoints(index, entry, truth, 3 * len(sigmas))
        extent = np.ptp(keypoints.reshape(-1, 3), axis=0)
        detections.append(
            {
                "id": index + 1,
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "keypoints": keypoints,
                "score": entry["score"],
                "area": extent[0] * extent[1],
            }
        )
    found = coco_from_dict({**ground_truth.dataset, "annotations": detections})

    evaluation = COCOeval(truth, found, "keypoints")
    evaluation.params.kpt_oks_sigmas = sigmas
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: float(value) if value >= 0 else float("nan")
        for name, value in zip(AP_NAMES, evaluation.stats, strict=True)
    }


def _check_annotation(index: int, annotation: Mapping, length: int) -> None:
    where = f"ground truth annotations[{index}] (id {annotation.get('id')})"
    needed = ("image_id", "category_id", "keypoints", "num_keypoints", "area", "bbox", "iscrowd")
    missing = [key for key in needed if key not in annotation]
    if missing:
        raise DataError(f"{where}: found no {missing}, expected COCO keypoint annotations")
    if len(annotation["keypoints"]) != length:
        raise DataError(
            f"{where}: found {len(annotation['keypoints'])} numbers in keypoints, "
            f"expected {length} (x, y, visibility of {length // 3} joints)"
        )


def _checked_keypoints(index: int, entry: Mapping, truth: COCO, length: int) -> np.ndarray:
    where = f"results[{index}]"
    missing = [k for k in ("image_id", "category_id", "keypoints", "score") if k not in entry]
    if missing:
        raise DataError(f"{where}: found no {missing}, only {sorted(entry)}")
    if entry["image_id"] not in truth.imgs:
        raise DataError(
            f"{where}: found image_id {entry['image_id']!r}, which is none of the "
            f"{len(truth.imgs)} images of the ground truth"
        )
    if entry["category_id"] not in truth.cats:
        raise DataError(
            f"{where}: found category_id {entry['category_id']!r}, expected one of "
            f"{sorted(truth.cats)}"
        )
    try:
        keypoints = np.asarray(entry["keypoints"], float)
        score = float(entry["score"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: keypoints and score must be numbers: {error}") from error
    if keypoints.shape != (length,):
        raise DataError(
            f"{where}: found keypoints of shape {keypoints.shape}, expected {length} numbers "
            f"(x, y, score of {length // 3} joints)"
        )
    if not np.isfinite(keypoints).all():
        position = int(np.flatnonzero(~np.isfinite(keypoints))[0])
        raise DataError(
            f"{where}: found {keypoints[position]} at keypoints[{position}] "
            f"(joint {position // 3}), expected finite numbers"
        )
    if not np.isfinite(score):
        raise DataError(f"{where}: found a score of {score}, expected a finite number")
    return keypoints
