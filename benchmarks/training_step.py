"""A training step: against PyTorch's, RLE against l1, and in 16 bits; and a share of the peak.

    pip install -e ".[benchmark]"
    python -m benchmarks.training_step

ResNet-50 at 256x192, forward, loss, backward and Adam on a batch that stays in memory, each side's
steps in turns with the others'. `--batch`, `--size HEIGHT WIDTH` and `--threads` change that;
`--profile` shows instead in what operations a step spends its time: ours in both precisions, and
PyTorch's.
"""

import argparse

import rle_tf  # isort: skip  # before TensorFlow, for oneDNN's kernels
import keras
import numpy as np
import tensorflow as tf

from benchmarks.measure import CONSOLE, profile, show, show_operations
from rle_tf.estimator import PoseEstimator
from rle_tf.flow import RealNVP
from rle_tf.losses import L1Loss, PoseLoss, RLELoss
from rle_tf.models.cost import multiply_adds
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17
from rle_tf.timing import bind, in_turns, machine

TURNS, WARM_UP = 7, 2


def batch(size: tuple[int, int], count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    target = rng.uniform(-0.5, 0.5, (count, 17, 2)).astype("float32")
    image = rng.normal(size=(count, *size, 3)).astype("float32")
    return image, {"keypoints": target, "weight": np.ones_like(target)}


def ours(size: tuple[int, int], count: int, loss: PoseLoss, policy: str = "float32"):
    """A call that is one step of `fit`."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    estimator = PoseEstimator(build_regressor("resnet50", COCO17, 2, size), loss)
    keras.config.set_dtype_policy("float32")
    estimator.compile("adam")
    image, target = batch(size, count)
    image = tf.constant(image)
    target = {key: tf.constant(value) for key, value in target.items()}
    return lambda: estimator.train_on_batch(image, target)


def theirs(size: tuple[int, int], count: int, compiled: bool):
    import torch  # of the extra

    from benchmarks.torch_rle import RealNVP as TorchFlow
    from benchmarks.torch_rle import Regressor, rle_loss

    torch.manual_seed(0)
    regressor, flow = Regressor().to(memory_format=torch.channels_last), TorchFlow()
    optimizer = torch.optim.Adam([*regressor.parameters(), *flow.parameters()], 1e-3)
    image, target = batch(size, count)
    image = torch.from_numpy(image).permute(0, 3, 1, 2)  # channels last, as it lies in memory
    target = {key: torch.from_numpy(value) for key, value in target.items()}

    def loss_of(image, keypoints, weight):
        return rle_loss(flow, *regressor(image), keypoints, weight)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(image, target["keypoints"], target["weight"])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def profile_theirs(title: str, step, calls: int) -> None:
    import torch  # of the extra

    step()
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            step()
    operations = {
        each.key: (each.self_cpu_time_total / 1e3 / calls, each.count / calls)
        for each in found.key_averages()
    }
    show_operations(title, operations, 15, ("torch",))


def peak_multiply_adds() -> float:
    """Multiply-adds a second of a float32 matrix product that the caches like."""
    a = tf.random.normal((2048, 2048))
    product = tf.function(lambda: tf.matmul(a, a))
    times = in_turns({"matmul": lambda: product().numpy()}, TURNS, WARM_UP)["matmul"]
    return 2048**3 / times.median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 192))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    bind(options.threads)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    CONSOLE.print(f"rle_tf {rle_tf.__version__}")
    size, count = tuple(options.size), options.batch
    title = f"ResNet-50, {size[0]}x{size[1]}, batch {count}, {options.threads} threads"
    import torch  # of the extra

    torch.set_num_threads(options.threads)
    if options.profile:
        step = theirs(size, count, compiled=False)
        profile_theirs(f"{title}: a step, PyTorch, eager", step, calls=3)
        for policy, calls in (("float32", 3), ("mixed_bfloat16", 1)):
            step = ours(size, count, RLELoss(RealNVP(2)), policy)
            profile(f"{title}: a step, {policy}", step, calls=calls)
        return

    eager, compiled = "PyTorch, eager", "PyTorch, torch.compile"
    sides = {
        "rle_tf": ours(size, count, RLELoss(RealNVP(2))),
        eager: theirs(size, count, compiled=False),
        compiled: theirs(size, count, compiled=True),
    }
    steps = in_turns(sides, TURNS, WARM_UP)
    show(f"{title}: RLE", steps, eager, ("ms", 1e3))
    pair = {name: steps[name] for name in ("rle_tf", compiled)}
    show(f"{title}: RLE", pair, compiled, ("ms", 1e3))
    CONSOLE.print(machine(("torch",)))
    sides = {"RLE": sides["rle_tf"], "l1": ours(size, count, L1Loss())}
    show(f"{title}: losses", in_turns(sides, 2 * TURNS, WARM_UP), "l1", ("ms", 1e3))

    regressor = build_regressor("resnet50", COCO17, 2, size)
    forward = tf.function(lambda image: regressor(image, training=False))
    image = tf.constant(batch(size, count)[0])
    times = in_turns({"forward": lambda: forward(image)["mu"].numpy()}, TURNS, WARM_UP)
    speed = count * multiply_adds(regressor) / times["forward"].median
    peak = peak_multiply_adds()
    # Backwards there are two products of a layer's size where forwards there is one.
    step = 3 * count * multiply_adds(regressor) / steps["rle_tf"].median
    for name, rate in (("forward", speed), ("a step, at three times the forward pass's", step)):
        CONSOLE.print(
            f"{name}: {rate / 1e9:.0f} G multiply-adds a second, {rate / peak:.0%} of the "
            f"{peak / 1e9:.0f} G of a matrix product"
        )
    # The last, and few turns: where the processor has no such numbers a step takes half a minute.
    sides = {
        "float32": sides["RLE"],
        "bfloat16": ours(size, count, RLELoss(RealNVP(2)), "mixed_bfloat16"),
    }
    show(f"{title}: precision", in_turns(sides, 2), "float32", ("ms", 1e3))


if __name__ == "__main__":
    main()
