"""What makes things fast and does not depend on the machine: operations, bytes, copies, traces."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rle_tf.data.augment import Augmentation
from rle_tf.data.crops import CropFormat
from rle_tf.data.pipeline import PhotographedPeople, evaluation_batches
from rle_tf.data.records import PackedPeople, write_records
from rle_tf.data.source import Records
from rle_tf.estimator import PoseEstimator
from rle_tf.evaluation import forward_function
from rle_tf.flow import RealNVP
from rle_tf.losses import RLELoss
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import LSP14

# What a graph holds but does not compute.
BOOKKEEPING = {"Const", "Identity", "NoOp", "Placeholder", "ReadVariableOp"}


def operations(graph: tf.Graph) -> Counter:
    """Of a graph and of the functions in it."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return Counter(node.op for node in nodes if node.op not in BOOKKEEPING)


@pytest.mark.parametrize(("dims", "most"), [(2, 331), (3, 331)])
def test_operations_of_the_flow(dims, most):
    flow = RealNVP(dims)
    points = tf.TensorSpec((None, 17, dims))
    graph = tf.function(flow.log_prob).get_concrete_function(points).graph
    found = operations(graph)
    # Six couplings, each with two networks of three layers.
    assert found["MatMul"] + found["BatchMatMulV2"] == 36
    assert found.total() <= most, found


def bytes_read() -> int:
    """By this process so far, also of what the system had in memory."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


linux = pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="needs Linux, which counts what is read"
)


@pytest.fixture
def source(tmp_path):
    """Twelve people, each in a photograph of noise, the largest that there are."""
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{number}.jpg") for number in range(12)]
    for path in paths:
        noise = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, quality=95)
    records = Records(
        image_paths=np.array(paths, object),
        image_wh=np.tile(np.int32([400, 300]), (12, 1)),
        boxes_xyxy=np.tile([100.0, 50.0, 250.0, 290.0], (12, 1)),
        keypoints=rng.uniform(100, 250, (12, 14, 2)).astype("float32"),
        labelled=np.ones((12, 14), bool),
        cameras=np.full((12, 5), np.nan),
        areas=np.ones(12),
        image_ids=np.arange(12),
        person_ids=np.arange(12),
        box_scores=np.zeros(12),
    )
    return SimpleNamespace(records=records, skeleton=LSP14, parts=(12,))


CROPS = CropFormat((64, 64), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def estimator():
    keras.utils.set_random_seed(0)
    image = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(8, 3, 8, "same", activation="relu")(image)
    regressor = build_regressor(keras.Model(image, x), LSP14, 2, (64, 64))
    estimator = PoseEstimator(regressor, RLELoss(RealNVP(2)))
    estimator.compile("adam")
    return estimator


def test_a_training_is_traced_once_and_brings_back_numbers_alone(monkeypatch, estimator, source):
    people = PhotographedPeople(source)
    batches = people.batches(CROPS, Augmentation(), batch_size=4, seed=0)
    graphs, step = [], estimator.train_step

    def traced(data):
        logs = step(data)
        # What goes to the device, images, keypoints and weights, and what comes back.
        assert len(tf.nest.flatten(data)) == 3
        assert all(value.shape.rank == 0 for value in logs.values()), logs
        graphs.append(tf.compat.v1.get_default_graph())
        return logs

    monkeypatch.setattr(estimator, "train_step", traced)
    estimator.fit(batches, steps_per_epoch=3, epochs=3, shuffle=False, verbose=0)
    estimator.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0)
    (graph,) = graphs
    found = operations(graph)
    assert not {"PyFunc", "EagerPyFunc", "PyFuncStateless", "PrintV2"} & found.keys()
    # Forwards and backwards, the flow's included, and Adam's update.
    assert found.total() <= 2495, found


def test_an_evaluation_is_traced_once(estimator, source):
    forward = forward_function(estimator.regressor, LSP14, CROPS, flip_test=True)
    batches = evaluation_batches(source.records, LSP14, CROPS, batch_size=5)
    # The last one is smaller.
    assert [len(forward(image)["mu"]) for image, _ in batches] == [5, 5, 2]
    assert forward.experimental_get_tracing_count() == 1


def sums_and_products(graph: tf.Graph) -> Iterator[tuple[str, tuple, list[tuple]]]:
    """Name and shapes, of the output and the inputs, also of those in the functions of a graph."""
    definition = graph.as_graph_def(add_shapes=True)
    functions = definition.library.function

    def shapes(attributes, key="_output_shapes"):
        return [tuple(axis.size for axis in s.dim) for s in attributes[key].list.shape]

    scopes = [({}, definition.node)]
    for function in functions:
        arguments = {
            argument.name: shapes(function.arg_attr[number].attr)
            for number, argument in enumerate(function.signature.input_arg)
        }
        scopes.append((arguments, function.node_def))
    for known, nodes in scopes:
        known |= {node.name: shapes(node.attr) for node in nodes}
        for node in nodes:
            if node.op in ("Mul", "Sub", "AddV2"):
                inputs = [
                    known[name.partition(":")[0]] for name in node.input if not name.startswith("^")
                ]
                (output,) = known[node.name]
                yield node.name, output, [each[0] for each in inputs if len(each) == 1]


def test_operations_of_a_sample(source):
    everything = Augmentation(
        colour=0.2, occlusion_area=0.5, joint_occlusion=0.5, whole_occlusion=0.1
    )
    columns = CROPS.columns(source.records)
    person = columns._make(column[0] for column in columns)
    sample = tf.function(lambda *chance: CROPS.example(person, LSP14, everything, *chance))
    chance = tf.TensorSpec((CROPS.draws,)), tf.TensorSpec((2,), tf.int64)
    graph = sample.get_concrete_function(*chance).graph
    found = operations(graph)
    # TensorFlow makes a matrix product of each point of a batch of them, of each pixel's place.
    assert not {"BatchMatMulV2", "PyFunc", "EagerPyFunc"} & found.keys()
    # And it is slow to spread three numbers over the pixels of a crop.
    spread = [
        name
        for name, output, inputs in sums_and_products(graph)
        if output == (64, 64, 3)
        and any(shape and set(shape[:-1]) <= {1} and shape[-1] == 3 for shape in inputs)
    ]
    assert not spread
    assert found.total() <= 544, found


@linux
def test_a_photograph_is_read_once_for_a_sample(source):
    size = sum(Path(path).stat().st_size for path in source.records.image_paths)
    assert size > 1e6
    batches = evaluation_batches(source.records, LSP14, CROPS, batch_size=4)
    before = bytes_read()
    assert sum(len(image) for image, _ in batches) == 12
    assert size <= bytes_read() - before < 1.05 * size


@linux
def test_a_record_is_read_once_for_a_sample(source, tmp_path):
    folder = tmp_path / "records"
    write_records(source, CROPS, Augmentation(), str(folder), shards=1)
    size = sum(path.stat().st_size for path in folder.glob("*.tfrecord*"))
    assert size > 5e5
    people, epochs = PackedPeople(str(folder)), 8
    batches = people.batches(CROPS, Augmentation(), batch_size=4, seed=0)
    before = bytes_read()
    assert sum(len(image) for image, _ in batches.take(3 * epochs)) == 12 * epochs
    # The next epoch is read ahead, and nothing more.
    assert epochs * size <= bytes_read() - before < 1.01 * (epochs + 1) * size
