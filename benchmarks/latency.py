"""How long the exported regressor takes for a crop, in each runtime and against PyTorch.

    pip install -e ".[benchmark]"
    python -m benchmarks.latency

ResNet-50 at 256x192 with random weights: in float32, in int8, in bfloat16 (with a profile), for
many crops at once, and against the heatmap model of the same backbone (SimpleBaseline). Pixels in,
keypoints out. Each side is a process of its own, bound to as many cores as it has threads, and all
take turns.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measure import CONSOLE, profile, show
from rle_tf.export.latency import RUNTIMES, Runner, measure_latency
from rle_tf.timing import Times, bind, machine

ROUNDS, RUNS = 9, 5
NORMAL = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
QUESTIONS = ("float32", "int8", "bfloat16", "heatmaps", "throughput")


def torch_runtime(compiled: bool, model: str, threads: int, batch: int) -> Callable[[], object]:
    """As those of `rle_tf.export.latency.RUNTIMES`; a model's path is `HEIGHTxWIDTH/NAME`."""
    import torch  # of the extra

    from benchmarks import torch_rle

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    path = Path(model)
    module = getattr(torch_rle, path.name)().eval().to(memory_format=torch.channels_last)
    size = map(int, path.parent.name.split("x"))
    crops = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    mean, std = (torch.tensor(NORMAL[key])[:, None, None] for key in ("mean", "std"))

    def call(crops):
        return module((crops.permute(0, 3, 1, 2) / 255 - mean) / std)

    call = torch.compile(call) if compiled else call

    def run():
        with torch.inference_mode():
            return call(torch.from_numpy(crops))

    return run


eager, compiled = partial(torch_runtime, False), partial(torch_runtime, True)


def keras_runtime(policy: str, size: str, threads: int, batch: int) -> Callable[[], object]:
    """A regressor as it is trained; exports compute in float32, whatever that was. TensorFlow has a
    thread for each core that its process is bound to."""
    import keras
    import tensorflow as tf

    from rle_tf.models.regressor import build_regressor
    from rle_tf.skeletons import COCO17

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    regressor = build_regressor("resnet50", COCO17, 2, tuple(map(int, size.split("x"))))
    keras.config.set_dtype_policy("float32")
    forward = tf.function(lambda image: regressor(image, training=False))
    image = tf.random.normal((batch, *regressor.input_shape[1:]))
    return lambda: forward(image)["mu"].numpy()


keras_float32 = partial(keras_runtime, "float32")
keras_bfloat16 = partial(keras_runtime, "mixed_bfloat16")


openvino_bfloat16 = partial(RUNTIMES["OpenVINO"], precision="bf16")


def export(head: str, size: tuple[int, int], folder: Path, deconvolutions: int = 0) -> Path:
    """A SavedModel, with a .tflite, an .onnx and an OpenVINO .xml beside it."""
    from rle_tf.export.litert import export_litert
    from rle_tf.export.onnx import export_onnx
    from rle_tf.export.openvino import export_openvino
    from rle_tf.export.savedmodel import export_savedmodel
    from rle_tf.models.cost import multiply_adds, parameters
    from rle_tf.models.regressor import build_regressor
    from rle_tf.skeletons import COCO17

    regressor = build_regressor(
        "resnet50", COCO17, 2, size, head=head, deconvolutions=deconvolutions
    )
    CONSOLE.print(
        f"head {head}: {parameters(regressor) / 1e6:.1f} M parameters, "
        f"{multiply_adds(regressor) / 1e9:.2f} G multiply-adds a crop"
    )
    saved = export_savedmodel(
        regressor, folder / head, skeleton=COCO17, spread=np.ones(2), box_margin=1.25, **NORMAL
    )
    export_litert(saved, saved.with_name("1-float32.tflite"))
    export_onnx(saved, saved.with_suffix(".onnx"))
    export_openvino(saved, saved.with_suffix(".xml"))
    return saved


def int8(saved: Path, size: tuple[int, int]) -> dict[str, Runner]:
    """Quantised by LiteRT's converter and by OpenVINO's NNCF, with the same crops."""
    import nncf  # of the extra
    import openvino

    from rle_tf.export.litert import export_litert

    crops = np.random.default_rng(1).integers(0, 256, (64, *size, 3), dtype=np.uint8)
    ours = export_litert(saved, saved.with_name("1-int8.tflite"), "int8", crops)
    model = openvino.Core().read_model(saved.with_suffix(".xml"))
    quantised = nncf.quantize(model, nncf.Dataset([crop[None] for crop in crops]), subset_size=64)
    openvino.save_model(quantised, saved.with_name("1-int8.xml"), compress_to_fp16=False)
    return {
        "LiteRT int8": Runner("LiteRT", ours),
        "OpenVINO int8": Runner("OpenVINO", saved.with_name("1-int8.xml")),
    }


def runners(saved: Path, theirs: Path) -> dict[str, Runner]:
    return {
        "SavedModel": Runner("SavedModel", saved),
        "LiteRT": Runner("LiteRT", saved.with_name("1-float32.tflite")),
        "ONNX Runtime": Runner("ONNX Runtime", saved.with_suffix(".onnx")),
        "OpenVINO": Runner("OpenVINO", saved.with_suffix(".xml")),
        "PyTorch, eager": Runner("benchmarks.latency:eager", theirs),
        "PyTorch, torch.compile": Runner("benchmarks.latency:compiled", theirs),
    }


def timed(
    title: str, sides: dict[str, Runner], against: str, threads: int, batch: int = 1
) -> dict[str, Times]:
    rounds, runs = (ROUNDS, RUNS) if batch < 8 else (3, 1)
    found = measure_latency(list(sides.values()), threads, rounds, runs, batch)
    times = {name: each.times for name, each in zip(sides, found, strict=True)}
    show(title, times, against, ("ms", 1e3))
    if batch == 1:
        memory = (f"{name} {each.peak_mib:.0f}" for name, each in zip(sides, found, strict=True))
        CONSOLE.print(f"MiB of its process: {', '.join(memory)}")
    return times


def profile_savedmodel(title: str, saved: Path, size: tuple[int, int]) -> None:
    import tensorflow as tf

    from rle_tf.export.savedmodel import load_forward

    forward = load_forward(saved)
    crops = tf.zeros((1, *size, 3), tf.uint8)
    profile(title, lambda: forward(crops)["mu"].numpy(), rows=8, calls=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS, metavar="|".join(QUESTIONS))
    parser.add_argument("--size", type=int, nargs=2, default=(256, 192))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 16, 64))
    options = parser.parse_args()
    bind(options.threads)
    size = tuple(options.size)
    title = f"ResNet-50 with RLE, {size[0]}x{size[1]}, {options.threads} threads"
    place = Path(f"{size[0]}x{size[1]}")
    with tempfile.TemporaryDirectory() as name:
        saved = export("pooled", size, Path(name))
        sides = runners(saved, place / "Regressor")
        if "float32" in options.questions:
            timed(title, sides, "LiteRT", options.threads)
            profile_savedmodel(f"{title}: SavedModel", saved, size)
        if "int8" in options.questions:
            quantised = {"LiteRT float32": sides["LiteRT"], **int8(saved, size)}
            timed(f"{title}: int8", quantised, "LiteRT int8", options.threads)
        if "bfloat16" in options.questions:
            kinds = ("float32", "bfloat16")
            keras = {
                f"Keras, {kind}": Runner(f"benchmarks.latency:keras_{kind}", place)
                for kind in kinds
            }
            timed(f"{title}: 16 bits", keras, "Keras, float32", options.threads)
            half = replace(sides["OpenVINO"], runtime="benchmarks.latency:openvino_bfloat16")
            pair = {"OpenVINO": sides["OpenVINO"], "OpenVINO, bfloat16": half}
            timed(f"{title}: 16 bits", pair, "OpenVINO", options.threads)
            for kind, forward in zip(kinds, (keras_float32, keras_bfloat16), strict=True):
                call = forward(str(place), options.threads, 1)
                profile(f"{title}: Keras, {kind}", call, rows=8, calls=10)
        if "heatmaps" in options.questions:
            other = runners(export("heatmap", size, Path(name), 3), place / "Heatmaps")
            for runtime in ("LiteRT", "OpenVINO", "PyTorch, eager"):
                pair = {f"RLE, {runtime}": sides[runtime], f"heatmaps, {runtime}": other[runtime]}
                timed(f"{title}, and with heatmaps", pair, f"RLE, {runtime}", options.threads)
        for batch in options.batches if "throughput" in options.questions else ():
            times = timed(f"{title}, {batch} crops", sides, "LiteRT", options.threads, batch)
            rates = (f"{name} {batch / each.median:.1f}" for name, each in times.items())
            CONSOLE.print(f"crops/s: {', '.join(rates)}")
        CONSOLE.print(machine(("torch", "ai-edge-litert", "onnxruntime", "openvino", "nncf")))


if __name__ == "__main__":
    main()
