"""`rle_tf.timing`, and the benchmarks that are made of it."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from rle_tf.models.heatmap import peaks
from rle_tf.timing import Times, in_turns, machine

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Of the extra.
COMPARATORS = {"torch_rle": ["torch"], "opencv_pipeline": ["cv2", "torch"]}


def test_sides_take_turns_and_the_first_do_not_count():
    order = []
    calls = {name: lambda n=name: order.append(n) for name in "ab"}
    times = in_turns(calls, turns=3, warm_up=2)
    assert "".join(order) == "ab" * 5
    assert all(len(each.seconds) == 3 and min(each.seconds) > 0 for each in times.values())


def test_a_ratio_is_that_of_turns_and_not_of_medians():
    # A machine that is slow in the second turn and then fast.
    ours, theirs = Times((1.0, 30.0, 0.5)), Times((2.0, 40.0, 0.25))
    assert ours.ratio(theirs) == (0.75, 0.5, 2.0)
    assert ours.median == 1.0


def test_what_it_ran_on_is_told():
    import tensorflow as tf

    assert f"tensorflow {tf.__version__}" in machine(("tensorflow",))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_each_benchmark_is_there(name):
    for package in COMPARATORS.get(name, []):
        pytest.importorskip(package)
    assert import_module(f"benchmarks.{name}").__doc__


def test_the_comparator_takes_the_same_peaks_from_heatmaps():
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).random((3, 6, 5, 40)).astype("float32")
    mu, log_sigma = map(np.asarray, peaks(maps))
    theirs = import_module("benchmarks.torch_rle").peaks(torch.from_numpy(maps).movedim(3, 1))
    cells, scores = (tensor.numpy() for tensor in theirs)
    np.testing.assert_allclose(cells, (mu + 0.5) * [5, 6] - 0.5, atol=1e-5)
    np.testing.assert_allclose(scores, 1 - np.exp(log_sigma[..., 0]), atol=1e-5)
