"""A model of a few operations with the signatures of an exported one, and servers about it."""

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf
import uvicorn
from fastapi import FastAPI
from PIL import Image

from rle_tf.server import Options
from rle_tf.server.app import create_app
from rle_tf.server.batching import load
from rle_tf.server.connections import create_server

JOINTS = ("nose", "left_hand", "right_hand")
METADATA = {
    "input": "image", "skeleton": "hands", "joints": JOINTS, "bones": [[0, 1], [0, 2]],
    "flip_pairs": [[1, 2]], "root": None, "image_size": [8, 6], "dims": 2,
    "mean": [0, 0, 0], "std": [1, 1, 1], "box_margin": 1.25, "spread": [1, 1], "versions": {},
}  # fmt: skip


class TinyModel(tf.Module):
    """Its joints lie on the diagonal of each box; its scores are the mean of the whole image.

    Where there is a `gate`, a call of `predict_image` ends only once that file exists.
    """

    def __init__(self, gate: Path | None = None):
        super().__init__()
        self.along = tf.Variable([0.25, 0.5, 0.75])
        # A variable: what it says of a constant's file TensorFlow would look up once for all.
        self.gate = tf.Variable(str(gate)) if gate else None

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 6, 3), tf.uint8, "image")])
    def crops(self, image):
        mean = tf.reduce_mean(tf.cast(image, tf.float32), [1, 2, 3])
        return {
            "mu": tf.broadcast_to(mean[:, None, None], (tf.shape(image)[0], 3, 2)),
            "sigma_px": tf.fill((tf.shape(image)[0], 3, 2), float("nan")),
        }

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, "x")])
    def half(self, x):
        return {"y": x / 2}

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string, "image_bytes"),
            tf.TensorSpec((None, None, 4), tf.float32, "boxes_xyxy"),
        ]
    )
    def photographs(self, image_bytes, boxes_xyxy):
        def look(encoded):
            head = tf.strings.substr(encoded, 0, 2)
            known = (head == b"\xff\xd8") | (head == b"\x89P")
            with tf.control_dependencies(
                [tf.Assert(known, ["rle_tf: image_bytes[0]: found no JPEG or PNG; expected one"])]
            ):
                image = tf.io.decode_image(encoded, 3, expand_animations=False)
            return tf.reduce_mean(tf.cast(image, tf.float32)) / 255

        with tf.control_dependencies(
            [
                tf.Assert(
                    tf.reduce_all(boxes_xyxy[..., :2] <= boxes_xyxy[..., 2:]),
                    ["rle_tf: boxes_xyxy: expected left <= right and top <= bottom"],
                )
            ]
        ):
            mean = tf.map_fn(look, image_bytes, fn_output_signature=tf.TensorSpec((), tf.float32))
        if self.gate is not None:
            (opened,) = tf.while_loop(
                lambda files: tf.size(files) == 0,
                lambda _: (tf.io.matching_files(self.gate),),
                [tf.zeros(0, tf.string)],
                shape_invariants=[tf.TensorShape(None)],
            )
            with tf.control_dependencies([opened]):
                mean = tf.identity(mean)
        low, high = boxes_xyxy[:, :, None, :2], boxes_xyxy[:, :, None, 2:]
        present = tf.reduce_any(boxes_xyxy != boxes_xyxy[..., :1], -1)
        score = tf.cast(present, tf.float32) * mean[:, None]
        return {
            "keypoints_px": low + self.along[:, None] * (high - low),
            "sigma_px": tf.broadcast_to((high - low) / 10, tf.shape(low + self.along[:, None])),
            "score": tf.repeat(score[..., None], 3, -1),
            "person_score": score,
            "present": present,
        }


def export(folder: Path, model: TinyModel) -> Path:
    signatures = {
        "serving_default": model.crops,
        "half": model.half,
        "predict_image": model.photographs,
        "predict_image_flip_test": model.photographs,
    }
    version = folder / "3"
    tf.saved_model.save(model, str(version), signatures)
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "rle_tf.json").write_text(json.dumps(METADATA))
    return version


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a model's version 3, whose name is `tiny`."""
    return export(tmp_path_factory.mktemp("models") / "tiny", TinyModel())


@pytest.fixture
def gated(tmp_path) -> tuple[Path, Path]:
    """Such a model, and the file that has to be made for it to answer."""
    gate = tmp_path / "gate"
    return export(tmp_path / "tiny", TinyModel(gate)), gate


@pytest.fixture(scope="session")
def exported(exported_resnet) -> Path:
    return exported_resnet


@dataclass(frozen=True)
class Running:
    """A server on a thread of this process."""

    app: FastAPI
    uvicorn: uvicorn.Server
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)


@contextmanager
def running(model: Path, options: Options) -> Iterator[Running]:
    app = create_app(load(model, options), options)
    server = create_server(app, options)
    server.config.port = 0
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(app, server, *server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving() -> Callable:
    """`serving(model, options)`: a context with a server on a thread."""
    return running


@pytest.fixture(scope="session")
def server(tiny) -> Iterator[Running]:
    """A server of `tiny`."""
    with running(tiny.parent, Options()) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    with server.client as client:
        yield client


@pytest.fixture
def predict(client) -> Callable:
    """`predict(instances=..., signature_name=...)`: the answer of `tiny`."""
    return lambda **body: client.post("/v1/models/tiny:predict", json=body)


def encode(grey: int = 128, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """An image file of one shade."""
    file = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), grey, np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def encoded() -> Callable:
    """`encoded(grey, size, kind)`: the bytes of an image file of one shade."""
    return encode


@pytest.fixture(scope="session")
def photograph() -> Callable:
    """`photograph(boxes, data=None)`: an instance for `predict_image`."""

    def instance(boxes: list, data: bytes | None = None) -> dict:
        text = base64.b64encode(encode() if data is None else data).decode()
        return {"image_bytes": {"b64": text}, "boxes_xyxy": boxes}

    return instance


@dataclass(frozen=True)
class Process:
    """`rle-tf serve` in a process of its own."""

    process: subprocess.Popen
    url: str


@pytest.fixture(scope="session")
def serving_process() -> Callable:
    """`serving_process(model)`: a context with a `Process`, which is killed if it has not ended."""

    @contextmanager
    def start(model: Path) -> Iterator[Process]:
        command = [sys.executable, "-m", "rle_tf", "serve", str(model), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            lines = iter(process.stdout.readline, "")
            ready = next((line for line in lines if "http://" in line), "")
            assert ready, f"it ended with {process.wait()}"
            yield Process(process, ready.split(" at ")[1].split("/ ")[0])
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    return start


@pytest.fixture(scope="session")
def wait_for() -> Callable:
    """`wait_for(condition)`: returns when it has come true; it is given half a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            time.sleep(0.03)
        raise AssertionError("it has not come to that in half a minute")

    return wait
