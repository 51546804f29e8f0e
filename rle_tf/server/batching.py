"""A loaded model: its signatures, each of which answers many requests with one call."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Lock

import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf import saved_model_pb2

from rle_tf.errors import ModelError
from rle_tf.export.savedmodel import check_model_name, load_savedmodel, read_metadata
from rle_tf.server import Options
from rle_tf.server.tensors import Specs, is_free

# TensorFlow finds a queue by its name, of which there may be one in a process.
_QUEUES = count()


class Signature:
    """A function of the model, to be called from many threads at once.

    Calls that come together are run as one, by `tf.nondifferentiable_batch_function`: their rows
    are put beneath each other. Where the number of boxes is free, it is filled up to a power of two
    with zeros, which are no box, and each such number has a queue of its own.

    Attributes:
        inputs: By the name of each input its shape, (B, ...), and dtype.
    """

    def __init__(self, name: str, model: tf.Module, options: Options) -> None:
        # Not the signature alone, which would not keep the model's weights.
        self._model, self._name, self._options = model, name, options
        specs = self._function.structured_input_signature[1]
        self.inputs: Specs = {key: specs[key] for key in sorted(specs)}
        self._has_boxes = any(map(is_free, self.inputs.values()))
        self._queues: dict[int, tf.types.experimental.ConcreteFunction] = {}
        self._building, self._alone = Lock(), Lock()

    @property
    def _function(self) -> tf.types.experimental.ConcreteFunction:
        return self._model.signatures[self._name]

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
        """Runs a request, together with those that wait.

        Args:
            arrays: The inputs, which fit `inputs`.

        Returns:
            The outputs by name, and the rows of the batch that they come from.

        Raises:
            tf.errors.InvalidArgumentError: The model refuses these inputs.
        """
        boxes = bucket = 0
        if self._has_boxes:
            boxes = max(arrays[key].shape[1] for key, spec in self.inputs.items() if is_free(spec))
            bucket = 1 << max(boxes - 1, 0).bit_length()
        tensors = [
            tf.constant(_filled(arrays[key], bucket) if is_free(spec) else arrays[key], spec.dtype)
            for key, spec in self.inputs.items()
        ]
        try:
            outputs = self._queue(bucket)(*tensors)
            rows = int(outputs.pop("")[0])
        except tf.errors.OpError:
            # Another in the batch may be at fault. Alone each request gets what is its own.
            with self._alone:
                outputs = self._function(**dict(zip(self.inputs, tensors, strict=True)))
            rows = len(tensors[0])
        return {
            key: tensor.numpy()[:, :boxes] if self._has_boxes else tensor.numpy()
            for key, tensor in sorted(outputs.items())
        }, rows

    def _queue(self, bucket: int) -> tf.types.experimental.ConcreteFunction:
        with self._building:
            if bucket not in self._queues:
                self._queues[bucket] = self._build(bucket)
            return self._queues[bucket]

    def _build(self, bucket: int) -> tf.types.experimental.ConcreteFunction:
        """The function that puts its arguments into a queue and waits. Its output "" is (B,), the
        rows of the batch."""
        rows = max(1, self._options.batch // max(bucket, 1))

        @tf.nondifferentiable_batch_function(
            num_batch_threads=1,  # a call uses all processors
            # What may be put in at once; the sizes are those of a call, and larger puts are split.
            max_batch_size=max(rows, self._options.images),
            allowed_batch_sizes=list(range(1, rows + 1)),
            batch_timeout_micros=round(1000 * self._options.batch_wait_ms),
            max_enqueued_batches=self._options.queue * self._options.images,
        )
        def run(*tensors):
            outputs = self._function(**dict(zip(self.inputs, tensors, strict=True)))
            size = tf.shape(tensors[0])[:1]
            return {**outputs, "": tf.broadcast_to(size, size)}

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, bucket, *spec.shape[2:]] if is_free(spec) else spec.shape,
                              spec.dtype)
                for spec in self.inputs.values()
            ],
            autograph=False,
        )  # fmt: skip
        def put(*tensors):
            with tf.name_scope(f"{self._name}_{next(_QUEUES)}"):
                return run(*tensors)

        return put.get_concrete_function()

    def warm_up(self, image_size: tuple[int, int] | None) -> None:
        """Calls it with a black image and a box about it."""
        height, width = image_size or (1, 1)
        arrays = {}
        for key, spec in self.inputs.items():
            if spec.dtype == tf.string:
                black = tf.io.encode_png(tf.zeros((height, width, 3), tf.uint8)).numpy()
                arrays[key] = np.array([black], object)
            elif is_free(spec):
                arrays[key] = np.array([[[0, 0, width, height]]], np.float32)
            else:
                shape = [1, *spec.shape[1:]]
                arrays[key] = np.ones(shape, spec.dtype.as_numpy_dtype)
        self(arrays)


def _filled(array: np.ndarray, boxes: int) -> np.ndarray:
    widths = [(0, 0), (0, boxes - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
    return np.pad(array, widths)


@dataclass(frozen=True)
class ServedModel:
    """What the server serves.

    Attributes:
        name, version: As requests call it.
        metadata: `read_metadata` of it.
        signature_defs: Its signatures as TensorFlow Serving prints them.
        signatures: By name.
    """

    name: str
    version: int
    metadata: dict
    signature_defs: dict
    signatures: dict[str, Signature] = field(repr=False)

    def warm_up(self) -> None:
        """Calls each signature, which builds and compiles what the first call would wait for."""
        for signature in self.signatures.values():
            signature.warm_up(self.metadata["image_size"])


def load(model: Path, options: Options, name: str | None = None) -> ServedModel:
    """Loads an exported model.

    Args:
        model: The folder of its versions, or of a version.
        options: How requests are batched.
        name: By default the name of the folder of versions.

    Raises:
        ModelError: It is neither, it cannot be loaded, or its name cannot stand in an address.
    """
    model = model.resolve()
    if model.is_dir() and not (model / "saved_model.pb").is_file():
        versions = [entry for entry in model.iterdir() if entry.name.isdecimal()]
        model = max(versions, key=lambda entry: int(entry.name), default=model)
    if not (model / "saved_model.pb").is_file():
        raise ModelError(
            f"{model}: found no saved_model.pb; expected saved_models/NAME or"
            " saved_models/NAME/VERSION of an exported model"
        )
    name = name or model.parent.name
    check_model_name(name)
    metadata = read_metadata(model)
    loaded = load_savedmodel(model)
    proto = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
    signature_defs = {
        key: MessageToDict(
            definition,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for key, definition in sorted(proto.meta_graphs[0].signature_def.items())
    }
    return ServedModel(
        name=name,
        version=int(model.name) if model.name.isdecimal() else 1,
        metadata=metadata,
        signature_defs=signature_defs,
        signatures={key: Signature(key, loaded, options) for key in sorted(loaded.signatures)},
    )
