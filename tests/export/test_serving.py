"""TensorFlow Serving: real requests against the exported model, and the files it is started with.

Requests go to the SavedModel through stand-ins that speak the same protocols, and through
`tensorflow_model_server` itself where there is one: on the PATH or named by TF_MODEL_SERVER.
"""

import base64
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from ruamel.yaml import YAML
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from rle_tf import build_regressor, load
from rle_tf.errors import ModelError
from rle_tf.export.savedmodel import export_savedmodel
from rle_tf.export.serving import WARM_UP, write_serving
from rle_tf.skeletons import COCO17, H36M18

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVER = os.environ.get("TF_MODEL_SERVER") or shutil.which("tensorflow_model_server")
BOXES = [[20.0, 30, 120, 180], [40, 10, 90, 239]]
NAME = "people.v2-model"


def export(folder: Path, skeleton=COCO17, dims: int = 2) -> Path:
    keras.utils.set_random_seed(0)
    regressor = build_regressor("resnet18", skeleton, dims, (64, 32), output_layer="layer2_1_out")
    return export_savedmodel(
        regressor, folder, skeleton=skeleton, mean=(0.5,) * 3, std=(0.2,) * 3, box_margin=1.25,
        warm_up=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return export(tmp_path_factory.mktemp("models") / NAME)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "a.jpg"
    coarse = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((200, 260)).save(path, quality=95)
    return path


@pytest.fixture(scope="module")
def poses(version, photograph):
    return load(version)(np.asarray(Image.open(photograph)), np.array(BOXES))


class LoadedModel(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The prediction service, as far as a request meets only the model."""

    def __init__(self, version: Path):
        self.model = tf.saved_model.load(str(version))

    def Predict(self, request: PredictRequest, context=None) -> PredictResponse:
        signature = self.model.signatures[request.model_spec.signature_name]
        inputs = {name: tf.constant(tf.make_ndarray(x)) for name, x in request.inputs.items()}
        response = PredictResponse()
        try:
            outputs = signature(**inputs)
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module", params=["loaded", "tensorflow_model_server"])
def addresses(request, version, tmp_path_factory):
    """(gRPC, REST) addresses that serve the model."""
    if request.param == "loaded":
        server = grpc.server(
            ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)]
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            LoadedModel(version), server
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        rest = free_port()
        with subprocess.Popen(
            [sys.executable, "-m", "rle_tf", "serve", str(version.parent), "--port", str(rest)],
        ) as process:
            try:
                yield f"127.0.0.1:{port}", wait_for(f"http://127.0.0.1:{rest}", process)
            finally:
                process.terminate()
                server.stop(None).wait()
        assert process.returncode == 0
        return
    if not SERVER:
        pytest.skip("needs tensorflow_model_server on the PATH, or named by TF_MODEL_SERVER")
    write_serving(version.parent)
    config = tmp_path_factory.mktemp("serving") / "models.config"
    text = (version.parent / "serving" / "models.config").read_text()
    config.write_text(text.replace("/models/model", str(version.parent)))
    port, rest = free_port(), free_port()
    folder = version.parent / "serving"
    with subprocess.Popen(
        [
            SERVER, f"--port={port}", f"--rest_api_port={rest}", f"--model_config_file={config}",
            "--enable_batching=true", f"--batching_parameters_file={folder / 'batching.config'}",
            f"--monitoring_config_file={folder / 'monitoring.config'}",
        ]
    ) as process:  # fmt: skip
        try:
            yield f"127.0.0.1:{port}", wait_for(f"http://127.0.0.1:{rest}", process)
        finally:
            process.terminate()


def model_url(base: str) -> str:
    return f"{base}/v1/models/{urllib.request.quote(NAME)}"


def wait_for(base: str, process: subprocess.Popen) -> str:
    while process.poll() is None:
        try:
            status = json.load(urllib.request.urlopen(model_url(base), timeout=5))
            if status["model_version_status"][0]["state"] == "AVAILABLE":
                return base
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server ended with status {process.returncode}")


def assert_poses(found: dict, poses) -> None:
    """`found`: the outputs of one image, of as many boxes as `BOXES` has."""
    assert np.all(found["present"])
    np.testing.assert_allclose(found["keypoints_px"], poses.keypoints, atol=0.05)
    np.testing.assert_allclose(found["sigma_px"], poses.sigmas, rtol=1e-3)
    np.testing.assert_allclose(found["score"], poses.joint_scores, atol=1e-4)
    np.testing.assert_allclose(found["person_score"], poses.person_scores, atol=1e-4)


def example(name: str) -> dict:
    code = (EXAMPLES / f"{name}.py").read_text()
    module = {"__name__": name, "__doc__": code.split('"""')[1]}
    exec(compile(code, name, "exec"), module)
    return module


def test_grpc(addresses, photograph, poses):
    predict = example("grpc_client")["predict"]
    data = photograph.read_bytes()
    assert_poses(predict(addresses[0], NAME, data, BOXES, False), poses)
    assert not predict(addresses[0], NAME, data, [], False)["present"].any()
    with pytest.raises(grpc.RpcError, match="found no JPEG or PNG") as caught:
        predict(addresses[0], NAME, b"nothing", BOXES, False)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_rest(addresses, photograph, poses):
    predict = example("rest_client")["predict"]
    data, name = photograph.read_bytes(), urllib.request.quote(NAME)
    assert_poses(predict(addresses[1], name, data, BOXES, False), poses)
    assert not any(predict(addresses[1], name, data, [], False)["present"])
    with pytest.raises(urllib.error.HTTPError) as caught:
        predict(addresses[1], name, b"nothing", BOXES, False)
    assert caught.value.code == 400
    assert "found no JPEG or PNG" in json.load(caught.value)["error"]


def test_rest_in_columns(addresses, photograph, poses):
    request = {
        "signature_name": "predict_image",
        "inputs": {
            "image_bytes": [{"b64": base64.b64encode(photograph.read_bytes()).decode()}] * 2,
            "boxes_xyxy": [BOXES] * 2,
        },
    }
    url = f"{model_url(addresses[1])}:predict"
    answer = json.load(urllib.request.urlopen(url, json.dumps(request).encode(), timeout=60))
    for row in range(2):
        assert_poses({name: value[row] for name, value in answer["outputs"].items()}, poses)


def test_rest_metadata(addresses):
    answer = json.load(urllib.request.urlopen(f"{model_url(addresses[1])}/metadata", timeout=60))
    signature = answer["metadata"]["signature_def"]["signature_def"]["predict_image"]
    assert signature["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    sizes = [dim["size"] for dim in signature["inputs"]["boxes_xyxy"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "-1", "4"]


@pytest.mark.parametrize("client", ["rest_client", "grpc_client"])
def test_clients_as_programs(addresses, photograph, poses, client, tmp_path):
    place = {"rest_client": ["--url", addresses[1]], "grpc_client": ["--address", addresses[0]]}
    model = urllib.request.quote(NAME) if client == "rest_client" else NAME
    command = [sys.executable, str(EXAMPLES / f"{client}.py")]

    def run(path):
        box = [str(value) for value in BOXES[0]]
        return subprocess.run(
            [*command, str(path), "--box", *box, "--model", model, *place[client]],
            capture_output=True, text=True,
        )  # fmt: skip

    lines = run(photograph).stdout.splitlines()
    assert lines[0] == f"person 0: score {poses.person_scores[0]:.3f}"
    assert len(lines) == 18
    joint, x, _, sigma_x, y, *_ = lines[6].split()
    assert joint == "5"
    assert (float(x), float(y)) == pytest.approx(poses.keypoints[0, 5], abs=0.11)
    assert float(sigma_x) == pytest.approx(poses.sigmas[0, 5, 0], abs=0.11)

    (tmp_path / "a.txt").write_text("no image")
    failed = run(tmp_path / "a.txt")
    assert failed.returncode == 1
    assert "found no JPEG or PNG" in failed.stderr and "Traceback" not in failed.stderr
    failed = run(tmp_path / "absent.jpg")
    assert "absent.jpg" in failed.stderr and "Traceback" not in failed.stderr


def test_crops_over_grpc(addresses, version):
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    request = PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = NAME, "serving_default"
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(crops))
    with grpc.insecure_channel(addresses[0]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request, timeout=60).outputs
    loaded = tf.saved_model.load(str(version))
    wanted = loaded.signatures["serving_default"](image=tf.constant(crops))
    assert set(outputs) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(tf.make_ndarray(outputs[name]), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_warm_up_requests_run_every_signature(version, tmp_path, dims):
    if dims == 3:
        version = export(tmp_path / "m", H36M18, 3)
    records = list(tf.data.TFRecordDataset(str(version / WARM_UP)).as_numpy_iterator())
    requests = [PredictionLog.FromString(record).predict_log.request for record in records]
    loaded = LoadedModel(version)
    assert {r.model_spec.signature_name for r in requests} == set(loaded.model.signatures)
    assert {r.model_spec.name for r in requests} == {version.parent.name}
    for request in requests:
        outputs = loaded.Predict(request).outputs
        for name, value in outputs.items():
            assert np.isfinite(tf.make_ndarray(value)).all(), name
        # The network itself has run: a request without people would warm up nothing.
        assert "present" not in outputs or tf.make_ndarray(outputs["present"]).all()


def test_warm_up_without_its_package(monkeypatch, tmp_path):
    find, absent = importlib.util.find_spec, "tensorflow_serving"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == absent else find(name)
    )
    with pytest.raises(ModelError, match=r"pip install 'rle-tf\[serving\]'"):
        export(tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_configuration(version):
    folder = version.parent / "serving"
    shutil.rmtree(folder, ignore_errors=True)
    written = write_serving(version.parent)
    assert sorted(path.name for path in written) == [
        "batching.config", "compose.yaml", "models.config", "monitoring.config"
    ]  # fmt: skip
    models = text_format.Parse((folder / "models.config").read_text(), ModelServerConfig())
    (model,) = models.model_config_list.config
    assert (model.name, model.model_platform) == (NAME, "tensorflow")
    (service,) = YAML(typ="safe").load(folder / "compose.yaml")["services"].values()
    (volume,) = service["volumes"]
    inside, mounted = volume.split(":")[1], (folder / volume.split(":")[0]).resolve()
    assert (inside, mounted) == (model.base_path, version.parent.resolve())
    # The files that the command names exist where the volume puts them.
    named = [option.split("=")[1] for option in service["command"] if "_file=" in option]
    assert len(named) == 3
    for path in named:
        assert (mounted / Path(path).relative_to(inside)).is_file()
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_an_edited_configuration_is_kept(version):
    write_serving(version.parent)
    path = version.parent / "serving" / "models.config"
    path.write_text("# mine")
    (version.parent / "serving" / "compose.yaml").unlink()
    assert [file.name for file in write_serving(version.parent)] == ["compose.yaml"]
    assert path.read_text() == "# mine"
    path.unlink()
