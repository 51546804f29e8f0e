"""The paper's comparison: methods that differ in nothing but what they learn from, one table."""

import json
import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from rle_tf import metrics
from rle_tf.config import RunConfig, load_config
from rle_tf.config_file import validated
from rle_tf.data.source import Source
from rle_tf.errors import ConfigError
from rle_tf.evaluation import forward_function, predict_poses
from rle_tf.files import write_whole
from rle_tf.models.cost import multiply_adds, parameters
from rle_tf.run_folder import RunFolder
from rle_tf.timing import Times, in_turns
from rle_tf.training import build_estimator, train

LOG = logging.getLogger(__name__)

_MAPS = {"head": "heatmap", "map_sigma": False, "sigma_dropout": 0.0, "map_window": None}
_INTEGRAL = {"head": "soft_argmax"}

# Method: the sections that it changes in a recipe. Those with maps get as many deconvolutions as
# make maps of a quarter of the crop.
METHODS: dict[str, dict[str, dict]] = {
    "l1": {"loss": {"kind": "l1"}},
    "l2": {"loss": {"kind": "l2"}},
    "gaussian": {"loss": {"kind": "gaussian"}},
    "laplace": {"loss": {"kind": "laplace"}},
    "direct": {"loss": {"kind": "direct"}},
    "direct_places": {"loss": {"kind": "direct", "reparameterised": False}},
    "rle": {"loss": {"kind": "rle"}},
    "rle_gaussian": {"loss": {"kind": "rle", "base": "gaussian"}},
    "rle_official": {"loss": {"kind": "rle", "convention": "official"}},
    "rle_gaussian_official": {
        "loss": {"kind": "rle", "base": "gaussian", "convention": "official"}
    },
    "integral": {"loss": {"kind": "l1"}, "model": _INTEGRAL},
    "integral_rle": {"loss": {"kind": "rle"}, "model": _INTEGRAL},
    "heatmap": {"loss": {"kind": "heatmap"}, "model": _MAPS, "train": {"map_weight": 0.0}},
}
# Of a dataset's scores, those that are in the table.
_SCORES = ("AP", "PCK@0.2", "PCK@0.1", "AUC", "MPJPE", "PA-MPJPE")
# Of a crop's sides: SimpleBaseline's maps.
_MAP_STRIDE = 4
# Steps and predictions that are timed, in turns; of their times the medians are compared.
_ROUNDS = 15


@dataclass(frozen=True)
class Row:
    """What came of a method.

    Attributes:
        method: A key of `METHODS`.
        scores: {name: (seeds,)} of the dataset's metrics.
        correlation: (seeds,) of a person's mean confidence (1 - sigma; of heatmaps their height)
            and OKS; NaN where no sigma is trained or the skeleton has no OKS.
        curves: For each seed the validation people's `pck` after each epoch.
        parameters, multiply_adds: Of the regressor.
        step, latency: A training step's time and that of one crop's prediction, as a share of the
            first method's in the same run.
    """

    method: str
    scores: dict[str, list[float]]
    correlation: list[float]
    curves: list[list[float]]
    parameters: int = 0
    multiply_adds: int = 0
    step: float = math.nan
    latency: float = math.nan


def variant(config: RunConfig, method: str, seed: int) -> RunConfig:
    """A recipe as one of the `METHODS` and with another seed; all else stays.

    A flow is as large as the recipe's, where that has one. Wanted peaks of heatmaps are as wide in
    the crop as SimpleBaseline's, and one cell at least.

    Raises:
        ConfigError: for an unknown method, or one that the recipe's model cannot have.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r}; expected some of {', '.join(METHODS)}")
    if getattr(config.model, "trained", "all") != "all":
        raise ConfigError(
            f"model.trained: found {config.model.trained} in recipe {config.name}; expected all, "
            "methods are compared by training whole models"
        )
    values = config.model_dump(mode="json")
    flow = {key: value for key, value in values["loss"].items() if key.startswith("flow_")}
    changes = METHODS[method]
    if "model" in changes and config.model.kind != "image":
        raise ConfigError(f"method {method!r} has maps; expected a recipe of model.kind image")
    values |= {"name": f"{config.name}-{method}-{seed}", "seed": seed}
    for section in ("model", "train"):
        values[section] |= changes.get(section, {})
    kind = changes["loss"]["kind"]
    own = values["loss"] if values["loss"]["kind"] == kind == "heatmap" else {}
    values["loss"] = own | changes["loss"] | (flow if kind in ("rle", "direct") else {})
    if "model" in changes:
        height = _map_height(values["model"], config)
        fine = config.data.image_size[0] / _MAP_STRIDE
        values["model"]["deconvolutions"] = max(0, round(math.log2(fine / height)))
        if kind == "heatmap" and not own:
            # Peaks as wide in the crop as SimpleBaseline's, but for what coarse maps can show.
            height *= 2 ** values["model"]["deconvolutions"]
            values["loss"]["sigma_cells"] = max(1.0, 2 * height / 64)
    return validated(RunConfig, values, f"{config.name} with method {method}")


def _map_height(model: dict, config: RunConfig) -> int:
    """Rows of the maps without deconvolutions."""
    plain = model | {"head": "soft_argmax", "deconvolutions": 0, "weights": None, "freeze": None}
    plain |= {"map_sigma": False, "sigma_dropout": 0.0, "map_window": None}
    section = validated(type(config.model), plain, config.name)
    regressor = section.build(config.data.source.skeleton, 2, config.data.image_size)
    return regressor.get_layer("score_maps").output.shape[1]


def compare(
    config: RunConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    on_run: Callable[[RunConfig], Sequence[keras.callbacks.Callback]] = lambda config: (),
) -> list[Row]:
    """Trains every method with every seed under one budget and writes what came of it.

    Runs are in OUT/METHOD-SEED; those that are done, or were interrupted, are gone on with. The
    table is OUT/comparison.md and .json.

    Args:
        config: The recipe, whose loss and head the methods replace.
        methods: Some of `METHODS`; times are relative to the first one's.
        seeds: Of weights, order and augmentation.
        out: A folder.
        on_run: Called with the config of each run before it trains; gives callbacks for it.

    Raises:
        ConfigError: as `variant`, or OUT has runs of another recipe.
        As `train`.
    """
    if not methods or not seeds or len(set(methods)) < len(methods):
        raise ConfigError(f"methods: found {list(methods)}; expected some, each once")
    # All of them before the first is trained.
    configs = {
        (method, seed): variant(config, method, seed) for method in methods for seed in seeds
    }
    dims = config.open_source("val", boxes="ground_truth").records.keypoints.shape[-1]
    for (method, seed), run in configs.items():
        if dims == 3 and run.loss.kind == "heatmap":
            raise ConfigError(f"method {method!r}: maps have no depth; expected people in 2D")
        _same_budget(RunFolder(out / f"{method}-{seed}"), run)
    found = {}
    for seed in seeds:
        for method in methods:
            run = configs[method, seed]
            folder = RunFolder(out / f"{method}-{seed}")
            callbacks = list(on_run(run))
            scores = train(run, folder.path, resume=folder.config.exists(), callbacks=callbacks)
            history = [json.loads(line) for line in folder.history.read_text().splitlines()]
            curve = [line.get("val_pck", math.nan) for line in history]
            found[method, seed] = scores, _correlation(folder, run), curve
            keras.backend.clear_session()
    rows = []
    for method in methods:
        scores, correlation, curves = zip(*(found[method, seed] for seed in seeds), strict=True)
        names = [name for name in scores[0] if "/" not in name]
        rows.append(
            Row(
                method,
                {name: [each[name] for each in scores] for name in names},
                list(correlation),
                list(curves),
            )
        )
    # Before what may need more memory than a training.
    _write(rows, out)
    costs = _costs({method: configs[method, seeds[0]] for method in methods})
    rows = [replace(row, **costs[row.method]) for row in rows]
    _write(rows, out)
    return rows


def _same_budget(folder: RunFolder, config: RunConfig) -> None:
    """Raises `ConfigError` for a run that had another budget, which a resumed one may have."""
    if not folder.config.exists():
        return
    before = load_config(folder.config)
    for key, old, new in (
        ("train.epochs", before.train.epochs, config.train.epochs),
        ("train.start", before.train.start, config.train.start),
        ("model.weights", *(getattr(c.model, "weights", None) for c in (before, config))),
    ):
        if old != new:
            raise ConfigError(
                f"{folder.config}: {key} was {old!r} and is {new!r}; expected the same for all "
                "runs of a comparison, or another --out"
            )


def _write(rows: Sequence[Row], out: Path) -> None:
    write_whole(out / "comparison.md", markdown(rows))
    plain = keras.tree.map_structure(_known, [vars(row) for row in rows])
    write_whole(out / "comparison.json", json.dumps(plain, indent=1) + "\n")


def _known(value):
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: means over the seeds, and with several +- their deviation."""
    names = [name for name in _SCORES if name in rows[0].scores]
    first = rows[0].method
    header = [
        "method", *names, "confidence and OKS", "parameters", "GFLOPs",
        f"step / {first}'s", f"latency / {first}'s",
    ]  # fmt: skip
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        lines.append(
            [
                row.method,
                *(_spread(row.scores[name], 1 if "MPJPE" in name else 3) for name in names),
                _spread(row.correlation, 3),
                f"{row.parameters / 1e6:.1f} M",
                f"{row.multiply_adds / 1e9:.2f}",
                _spread([row.step], 2),
                _spread([row.latency], 2),
            ]
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _spread(values: Sequence[float], digits: int) -> str:
    if np.isnan(values).any():
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _correlation(folder: RunFolder, config: RunConfig) -> float:
    _, regressor = folder.load()
    source: Source = config.open_source("val", boxes="ground_truth")
    sigmas = source.skeleton.oks_sigmas
    if not sigmas or config.loss.kind in ("l1", "l2"):
        return math.nan
    records = source.records
    poses = predict_poses(
        regressor,
        records,
        source.skeleton,
        config.input_format,
        batch_size=config.evaluate.batch_size,
        flip_test=config.evaluate.flip_test,
    )
    places = poses.keypoints[..., :2], records.keypoints[..., :2]
    oks = metrics.oks(*places, records.areas, sigmas, records.labelled)
    known = ~np.isnan(oks)
    return metrics.correlation(poses.joint_scores.mean(axis=1)[known], oks[known])


def _costs(configs: dict[str, RunConfig]) -> dict[str, dict[str, float]]:
    """Size and relative times of each method's model, with random weights and in turns, since a
    machine is not equally fast all the time."""
    steps, forwards, costs = {}, {}, {}
    people = next(iter(configs.values())).open_training()
    for method, config in configs.items():
        plain = config.model_copy(
            update={"model": config.model.model_copy(update={"weights": None})}
            if config.model.kind == "image"
            else {}
        )
        estimator = build_estimator(plain, people, steps_per_epoch=1)
        batches = people.batches(
            config.input_format,
            config.data.augmentation,
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        inputs, target = next(iter(batches))
        steps[method] = lambda e=estimator, x=inputs, y=target: e.train_on_batch(x, y)
        forward = forward_function(estimator.regressor, people.skeleton, config.input_format, False)
        forwards[method] = lambda f=forward, x=inputs[:1]: f(x)["mu"].numpy()
        costs[method] = {
            "parameters": parameters(estimator.regressor),
            "multiply_adds": multiply_adds(estimator.regressor),
        }
    try:
        for key, calls in (("step", steps), ("latency", forwards)):
            times = times_in_turns(calls)
            first = next(iter(times.values()))
            for method, each in times.items():
                costs[method][key], _, _ = each.ratio(first)
    except tf.errors.ResourceExhaustedError:
        LOG.warning("too little memory to time all methods side by side; the table has no times")
    return costs


def times_in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, Times]:
    """Of calls of which the first ones trace, as a training step's."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it takes several models' steps for one that is traced again
    try:
        return in_turns(calls, _ROUNDS, warm_up=2)
    finally:
        logger.setLevel(level)
