"""What TensorFlow Serving wants beside a SavedModel: warm-up requests and its configuration."""

import importlib.util
import io
import json
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from rle_tf.errors import ModelError

# Where TensorFlow Serving looks for it in a version's folder.
WARM_UP = Path("assets.extra", "tf_serving_warmup_requests")


def write_warm_up(
    version_dir: Path, name: str, signatures: dict[str, Sequence[tf.TensorSpec]]
) -> None:
    """Requests that TensorFlow Serving runs before it says that a version is available.

    The first call of a signature is slow: kernels are made, buffers grow. Each signature gets one
    request, of one image and, where it takes boxes, one box.

    Args:
        version_dir: The SavedModel; `assets.extra/tf_serving_warmup_requests` appears in it.
        name: Of the model.
        signatures: Their inputs.

    Raises:
        ModelError: if tensorflow-serving-api is not installed.
    """
    check_serving_installed()
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

    with tf.io.TFRecordWriter(str(version_dir / WARM_UP)) as writer:
        for signature, inputs in signatures.items():
            request = PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for spec in inputs:
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(_sample(spec)))
            log = PredictionLog(predict_log=PredictLog(request=request))
            writer.write(log.SerializeToString())


def check_serving_installed() -> None:
    """ModelError unless tensorflow-serving-api is there."""
    if importlib.util.find_spec("tensorflow_serving") is None:
        raise ModelError(
            "serving: found no package tensorflow_serving; expected tensorflow-serving-api:"
            " pip install 'rle-tf[serving]'"
        )


def _sample(spec: tf.TensorSpec) -> np.ndarray:
    if spec.dtype == tf.string:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), "grey").save(file, "JPEG")
        return np.array([file.getvalue()], object)
    shape = [size or 1 for size in spec.shape]
    if spec.name.endswith("_xyxy"):
        return np.broadcast_to(np.float32([0, 0, 63, 63]), shape)
    return np.ones(shape, spec.dtype.as_numpy_dtype)


def write_serving(model_dir: Path) -> list[Path]:
    """Configuration to serve a model's folder with: `serving/` in it, which Serving passes over.

    The files are a start, to be edited: one that exists is left as it is.

    Args:
        model_dir: `saved_models/NAME`.

    Returns:
        The files that were written: `models.config`, `batching.config`, `monitoring.config` and
        `compose.yaml`.
    """
    folder = model_dir / "serving"
    folder.mkdir(exist_ok=True)
    name = model_dir.resolve().name
    written = []
    for file, text in {
        "models.config": _MODELS,
        "batching.config": _BATCHING,
        "monitoring.config": _MONITORING,
        "compose.yaml": _COMPOSE,
    }.items():
        path = folder / file
        if not path.exists():
            # Served by the version whose API is installed.
            version = installed_version("tensorflow-serving-api")
            text = text.replace("@NAME@", json.dumps(name)).replace("@VERSION@", version)
            path.write_text(text)
            written.append(path)
    return written


_MODELS = """\
model_config_list {
  config {
    name: @NAME@
    base_path: "/models/model"
    model_platform: "tensorflow"
    # The newest version is served, and a newer one as soon as its folder appears.
    model_version_policy { latest { num_versions: 1 } }
  }
}
"""

_BATCHING = """\
# Requests that wait together run as one. An image is a row: so many at most.
max_batch_size { value: 16 }
# How long the first of a batch waits for others.
batch_timeout_micros { value: 2000 }
# Batches that run at the same time: as many as there are CPU cores, or 1 with a GPU.
num_batch_threads { value: 2 }
# Past so many waiting batches a request is refused at once (HTTP 503, gRPC UNAVAILABLE).
max_enqueued_batches { value: 64 }
# Images with different numbers of boxes fit into one batch: the missing ones are filled with four
# equal numbers, which is no box. `present` says which boxes of the answer are real.
pad_variable_length_inputs: true
"""

_MONITORING = """\
prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }
"""

_COMPOSE = """\
# In this folder: docker compose up
# REST on port 8501, gRPC on 8500, on this machine alone.
services:
  tf-serving:
    image: tensorflow/serving:@VERSION@
    ports:
      - "127.0.0.1:8500:8500"
      - "127.0.0.1:8501:8501"
    volumes:
      - "..:/models/model:ro"
    command:
      - --model_config_file=/models/model/serving/models.config
      - --enable_batching=true
      - --batching_parameters_file=/models/model/serving/batching.config
      - --monitoring_config_file=/models/model/serving/monitoring.config
    restart: unless-stopped
"""
