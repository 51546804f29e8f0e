"""How fast a user's own model is: exported in each runtime that is installed, and in training."""

import importlib.util
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rle_tf.comparison import times_in_turns, variant
from rle_tf.config import RunConfig
from rle_tf.errors import ModelError
from rle_tf.export.formats import Format, Precision
from rle_tf.export.latency import Runner, measure_latency
from rle_tf.export.run import export_run
from rle_tf.export.savedmodel import newest_version
from rle_tf.files import bytes_of
from rle_tf.models.cost import multiply_adds, parameters
from rle_tf.run_folder import RunFolder
from rle_tf.timing import in_turns
from rle_tf.training import build_estimator

# Of training batches whose making is timed: times, batches of each, and those before them.
_TIMES, _BATCHES, _WARM_UP = 5, 8, 5
# Fewer than a report's: every runtime, number of threads and batch is timed.
_ROUNDS, _RUNS = 5, 10


@dataclass(frozen=True)
class Speed:
    """Of an exported model in one runtime.

    Attributes:
        runtime: A key of `rle_tf.export.latency.RUNTIMES`.
        file: The model's name.
        bytes: Its size.
        peak_mib: The most memory that its process has held, with the runtime, for one crop.
        latency_ms: {threads: median for one crop}.
        to_first: How many times the first runtime's time that is, with the most threads: median of
            turns, least and most.
        crops_per_second: {batch: at most that many threads' rate}.
    """

    runtime: str
    file: str
    bytes: int
    peak_mib: float
    latency_ms: dict[int, float]
    to_first: tuple[float, float, float]
    crops_per_second: dict[int, float]


@dataclass(frozen=True)
class TrainingSpeed:
    """Of a recipe.

    Attributes:
        parameters, multiply_adds: Of the regressor, for one crop.
        step_ms: Median of a training step on a batch that is there.
        step_to_l1: How many times that of loss l1: median of turns, least and most.
        input_ms: Time in which a batch is made, with all cores and nothing beside: median of some,
            least and most.
        images_per_second: What that is, at the median.
        images_per_core_second: Images that a second of one core's work makes.
    """

    parameters: int
    multiply_adds: int
    step_ms: float
    step_to_l1: tuple[float, float, float]
    input_ms: tuple[float, float, float]
    images_per_second: float
    images_per_core_second: float


def benchmark_model(
    model: Path,
    threads: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 4, 16, 64),
    on_step: Callable[[str], None] = lambda line: None,
) -> list[Speed]:
    """Times an exported model, or a run exported for it, in TensorFlow, LiteRT and where they are
    installed ONNX Runtime and OpenVINO, each in a process of its own, in turns.

    Args:
        model: The folder of a run, or of an exported model or its versions.
        threads: Numbers of threads for one crop.
        batches: Numbers of crops at once, with the most threads of those.
        on_step: Called with a line about each step before it begins.

    Raises:
        ModelError: if it is neither, sees no images, or a runtime cannot run it.
    """
    with ExitStack() as stack:
        if (model / "config.yaml").is_file():
            on_step("exporting")
            model = _exported(model, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        runners = _runners(model)
        latency, peaks = [{} for _ in runners], [0.0] * len(runners)
        for count in sorted(threads):
            on_step(f"one crop, {count} threads")
            found = measure_latency(runners, count, _ROUNDS, _RUNS)
            ratios = [measured.times.ratio(found[0].times) for measured in found]
            for each, measured in zip(latency, found, strict=True):
                each[count] = measured.median_ms
            peaks = [measured.peak_mib for measured in found]
        rates = [{} for _ in runners]
        for batch in batches:
            on_step(f"{batch} crops at once")
            found = measure_latency(runners, max(threads), _ROUNDS, 2, batch)
            for each, measured in zip(rates, found, strict=True):
                each[batch] = 1000 * batch / measured.median_ms
        return [
            Speed(runner.runtime, runner.path.name, bytes_of(runner.path), *measured)
            for runner, *measured in zip(runners, peaks, latency, ratios, rates, strict=True)
        ]


def benchmark_recipe(
    config: RunConfig, on_step: Callable[[str], None] = lambda line: None
) -> TrainingSpeed:
    """Times a recipe's training step, and the making of its batches.

    Raises:
        As `rle_tf.training.train`.
    """
    people = config.open_training()
    batches = iter(
        people.batches(
            config.input_format,
            config.data.augmentation,
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
    )
    on_step("making batches")
    with people.named_errors(config.input_format):
        for _ in range(_WARM_UP):
            inputs, target = next(batches)
        # What was made ahead comes at once, so that single batches do not tell the rate.
        worked = time.process_time()
        take = {"batches": lambda: deque(islice(batches, _BATCHES), maxlen=0)}
        made = in_turns(take, _TIMES, warm_up=0)
        worked = time.process_time() - worked
    seconds = [each / _BATCHES for each in made["batches"].seconds]
    median = statistics.median(seconds)
    on_step("training steps")
    estimator = build_estimator(config, people, steps_per_epoch=1)
    other = build_estimator(variant(config, "l1", config.seed), people, steps_per_epoch=1)
    step, l1 = (lambda e=each: e.train_on_batch(inputs, target) for each in (estimator, other))
    times = times_in_turns({"l1": l1, "own": step})
    return TrainingSpeed(
        parameters=parameters(estimator.regressor),
        multiply_adds=multiply_adds(estimator.regressor),
        step_ms=1000 * times["own"].median,
        step_to_l1=times["own"].ratio(times["l1"]),
        input_ms=tuple(1000 * each for each in (median, min(seconds), max(seconds))),
        images_per_second=config.train.batch_size / median,
        images_per_core_second=config.train.batch_size * _TIMES * _BATCHES / worked,
    )


def _exported(run: Path, out: Path) -> Path:
    folder = RunFolder(run)
    config, regressor = folder.load()
    formats = [Format.savedmodel, Format.litert]
    if all(map(importlib.util.find_spec, ("tf2onnx", "onnx"))):
        formats.append(Format.onnx)
    if importlib.util.find_spec("openvino"):
        formats.append(Format.openvino)
    precisions = [Precision.float32, Precision.float16, Precision.dynamic_int8]
    export_run(folder, config, regressor, out, "model", formats=formats, precisions=precisions)
    return out / "model"


def _runners(model: Path) -> list[Runner]:
    version = model
    if newest := newest_version(model):
        version = model / str(newest)
    if not (version / "saved_model.pb").is_file():
        raise ModelError(
            f"{model}: found neither config.yaml nor saved_model.pb; expected the folder of a "
            "training run or of an exported model"
        )
    runners = [Runner("SavedModel", version)]
    beside = version.parent
    runners += [Runner("LiteRT", p) for p in sorted(beside.glob(f"{version.name}-*.tflite"))]
    for runtime, package, suffix in (
        ("ONNX Runtime", "onnxruntime", ".onnx"),
        ("OpenVINO", "openvino", ".xml"),
    ):
        file = beside / f"{version.name}{suffix}"
        if file.is_file() and importlib.util.find_spec(package):
            runners.append(Runner(runtime, file))
    return runners
