"""How long an exported model takes for its crops, each in a process of its own.

    python -m rle_tf.export.latency RUNTIME MODEL THREADS BATCH

loads a SavedModel's folder, a .tflite, an .onnx or an OpenVINO .xml file, and answers each number
of runs on its standard input by a line of JSON: the seconds of each, and the memory it took.
"""

import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rle_tf.errors import ModelError
from rle_tf.export.formats import crops_signature
from rle_tf.timing import Times, bind, peak_memory_mib

WARM_UP_RUNS = 20
ROUNDS = 10
RUNS = 20


@dataclass(frozen=True)
class Runner:
    """An exported model, and what runs it.

    Attributes:
        runtime: A key of `RUNTIMES`, or `module:name` of a function like those.
        path: The file or folder that it is given.
    """

    runtime: str
    path: Path

    @classmethod
    def of(cls, path: Path, flip_test: bool = False) -> "Runner":
        """By what usually runs such a file; with a flip test only a SavedModel and a .tflite."""
        if flip_test:
            name = "litert" if path.suffix == ".tflite" else "savedmodel"
            return cls(f"{__name__}:{name}_flip_test", path)
        usual = {".tflite": "LiteRT", ".onnx": "ONNX Runtime", ".xml": "OpenVINO"}
        return cls(usual.get(path.suffix, "SavedModel"), path)


@dataclass(frozen=True)
class Latency:
    """Of an exported model.

    Attributes:
        times: The median of each round's runs.
        peak_mib: The most memory that its process, with the runtime, has held.
    """

    times: Times
    peak_mib: float

    @property
    def median_ms(self) -> float:
        return 1000 * self.times.median


def measure_latency(
    models: Sequence[Runner], threads: int, rounds: int = ROUNDS, runs: int = RUNS, batch: int = 1
) -> list[Latency]:
    """How long each model takes for so many crops at once.

    The models take turns, `runs` runs each, for what else the machine does to meet all alike. Where
    the system can, each process is bound to as many processor cores as it has threads.

    Raises:
        ModelError: A model cannot be run; the message ends with what was said.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_Process(model, threads, batch)) for model in models]
        for process in processes:
            process.run(max(runs, WARM_UP_RUNS // batch))
        answers = [[process.run(runs) for process in processes] for _ in range(rounds)]
    return [
        Latency(
            Times(tuple(statistics.median(answer["seconds"]) for answer in of_model)),
            of_model[-1]["peak_mib"],
        )
        for of_model in zip(*answers, strict=True)
    ]


class _Process:
    def __init__(self, model: Runner, threads: int, batch: int):
        self.model = model.path
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, model.runtime, model.path, str(threads), str(batch)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def run(self, runs: int) -> dict:
        try:
            self.process.stdin.write(f"{runs}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it died of is in its log
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            reason = "\n".join(self.log.read().decode(errors="replace").splitlines()[-5:])
            raise ModelError(f"{self.model}: cannot be run; expected an exported model\n{reason}")
        return json.loads(line)


def _crops(batch: int, shape: Sequence) -> np.ndarray:
    size = [int(length) for length in shape[1:]]
    return np.random.default_rng(0).integers(0, 256, (batch, *size), dtype=np.uint8)


def _savedmodel(
    model: str, threads: int, batch: int, flip_test: bool = False
) -> Callable[[], object]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    loaded = tf.saved_model.load(model)
    key = crops_signature(flip_test)
    signature = loaded.signatures[key]
    crops = _crops(batch, signature.structured_input_signature[1]["image"].shape)

    def run():
        # With the model, which the signature does not keep.
        output = loaded.signatures[key](image=tf.constant(crops))
        return {name: tensor.numpy() for name, tensor in output.items()}

    return run


def _litert(model: str, threads: int, batch: int, flip_test: bool = False) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model, num_threads=threads)
    runner = interpreter.get_signature_runner(crops_signature(flip_test))
    crops = _crops(batch, runner.get_input_details()["image"]["shape"])
    return lambda: runner(image=crops)


def _onnx(model: str, threads: int, batch: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    crops = _crops(batch, session.get_inputs()[0].shape)
    return lambda: session.run(None, {"image": crops})


def _openvino(model: str, threads: int, batch: int, precision: str = "f32") -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    read = core.read_model(model)
    crops = _crops(
        batch, [None, *(axis.get_length() for axis in list(read.input(0).partial_shape)[1:])]
    )
    read.reshape({read.input(0): list(crops.shape)})
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # Or processors that have 16 bits would compute in those.
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(read, "CPU", options)
    return lambda: compiled({0: crops})


savedmodel_flip_test = partial(_savedmodel, flip_test=True)
litert_flip_test = partial(_litert, flip_test=True)
RUNTIMES = {
    "SavedModel": _savedmodel,
    "LiteRT": _litert,
    "ONNX Runtime": _onnx,
    "OpenVINO": _openvino,
}
# What each comes with.
PACKAGES = {
    "SavedModel": "tensorflow",
    "LiteRT": "ai-edge-litert",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
}


def _serve(runtime: str, model: str, threads: int, batch: int) -> None:
    bind(threads)
    prepare = RUNTIMES[runtime] if runtime in RUNTIMES else pkgutil.resolve_name(runtime)
    run = prepare(model, threads, batch)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        print(json.dumps({"seconds": times, "peak_mib": peak_memory_mib()}), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:3], *map(int, sys.argv[3:]))
