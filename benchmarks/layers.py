"""At what rate a runtime computes each kind of layer: what bounds int8, and models with heatmaps.

    pip install -e ".[benchmark]"
    python -m benchmarks.layers

The kinds of ResNet-50 at 256x192 and of SimpleBaseline's head, several of a kind in a row, one
crop. LiteRT and OpenVINO, in float32 and in int8, in turns in one process. In what kernels LiteRT
spends it, and with what instructions, Linux's perf says:

    perf record -e cpu-clock -F 2000 -o layers.data python -m benchmarks.layers
    perf report -i layers.data --stdio --sort symbol
    perf annotate -i layers.data --stdio -s KERNEL
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import rle_tf  # isort: skip  # noqa: F401  # before TensorFlow, for oneDNN's kernels
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from rich.table import Table

from benchmarks.measure import CONSOLE
from rle_tf.export.twin import float32_twin
from rle_tf.models.cost import multiply_adds
from rle_tf.timing import Times, bind, in_turns, machine

TURNS, CROPS = 15, 16

# Map of a crop, and the layers in a row.
KINDS = {
    "1x1, 64 -> 256 -> 64": (
        (64, 48, 64),
        lambda: [layers.Conv2D(n, 1, activation="relu") for n in (256, 64, 256, 64)],
    ),
    "1x1, 1024 -> 256 -> 1024": (
        (16, 12, 1024),
        lambda: [layers.Conv2D(n, 1, activation="relu") for n in (256, 1024, 256, 1024)],
    ),
    "3x3, 64": (
        (64, 48, 64),
        lambda: [layers.Conv2D(64, 3, padding="same", activation="relu") for _ in range(4)],
    ),
    "3x3, 256": (
        (16, 12, 256),
        lambda: [layers.Conv2D(256, 3, padding="same", activation="relu") for _ in range(4)],
    ),
    (TRANSPOSED := "transposed 4x4, 2048 -> 256 -> 256"): (
        (8, 6, 2048),
        lambda: [layers.Conv2DTranspose(256, 4, 2, "same", activation="relu") for _ in range(3)],
    ),
}
# As rle-tf exports them.
KINDS[EXPORTED := "the same, exported"] = KINDS[TRANSPOSED]


def litert(saved: Path, crops: np.ndarray, threads: int, int8: bool) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([crop[None]] for crop in crops)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    interpreter = Interpreter(model_content=converter.convert(), num_threads=threads)
    interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    interpreter.set_tensor(entry["index"], crops[:1].astype(entry["dtype"]))
    return interpreter.invoke


def openvino(saved: Path, crops: np.ndarray, threads: int, int8: bool) -> Callable[[], object]:
    import nncf
    import openvino

    model = openvino.convert_model(saved, input=[[1, *crops.shape[1:]]])
    if int8:
        model = nncf.quantize(model, nncf.Dataset([crop[None] for crop in crops]))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    settings |= {"INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(crops[:1].copy()))
    return request.infer


def rate(count: int, times: Times) -> str:
    """The median's, and that of the slowest and the fastest quarter of the turns."""
    fast, _, slow = statistics.quantiles(times.seconds)
    middle, least, most = (count / s / 1e9 for s in (times.median, slow, fast))
    return f"{middle:.0f} ({least:.0f} to {most:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    bind(threads)
    runtimes = {"LiteRT": litert, "OpenVINO": openvino}
    names = [f"{name} {kind}" for name in runtimes for kind in ("float32", "int8")]
    title = (
        f"G multiply-adds a second, one crop, {threads} threads: median and middle half of turns\n"
    )
    title += machine(("ai-edge-litert", "openvino", "nncf"))
    table = Table("layers", "G", *names, title=title, box=None)
    for kind, (shape, make) in KINDS.items():
        keras.utils.set_random_seed(0)
        image = keras.Input(shape)
        model = keras.Model(image, reduce(lambda x, layer: layer(x), make(), image))
        count = multiply_adds(model)
        model = float32_twin(model) if kind == EXPORTED else model
        crops = np.random.default_rng(0).normal(size=(CROPS, *shape)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            model.export(folder, verbose=False)
            calls = {
                f"{name} {precision}": make_call(Path(folder), crops, threads, precision == "int8")
                for name, make_call in runtimes.items()
                for precision in ("float32", "int8")
            }
            times = in_turns(calls, TURNS, warm_up=5)
        table.add_row(kind, f"{count / 1e9:.2f}", *(rate(count, times[name]) for name in names))
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
