"""`serve` as a process: signals, addresses, load."""

import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from rle_tf.errors import ConfigError
from rle_tf.server import Options, serve
from rle_tf.server.batching import load

LOAD = Path(__file__).parents[2] / "examples" / "load.py"


def refuses_connections(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", trust_env=False, timeout=10)
    except httpx.TransportError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_it_has_answered(
    gated, serving_process, photograph, wait_for, number
):
    model, gate = gated
    gate.touch()  # it warms up
    body = {"signature_name": "predict_image", "instances": [photograph([[0, 0, 4, 4]])]}
    with serving_process(model) as server, ThreadPoolExecutor(3) as threads:
        gate.unlink()
        try:
            path = f"{server.url}/v1/models/tiny:predict"
            waiting = [
                threads.submit(httpx.post, path, json=body, timeout=60, trust_env=False)
                for _ in range(3)
            ]
            metrics = f"{server.url}/monitoring/prometheus/metrics"
            wait_for(lambda: "queue_requests 3.0" in httpx.get(metrics, trust_env=False).text)
            server.process.send_signal(number)
            wait_for(lambda: refuses_connections(server.url))
            assert server.process.poll() is None
        finally:
            gate.touch()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
        assert server.process.wait(60) == 0
        assert "what had been accepted has been answered" in server.process.stdout.read()


def test_it_listens_on_the_loopback(exported, serving_process):
    with serving_process(exported) as server:
        assert server.url.startswith("http://127.0.0.1:")


def test_an_address_in_use_is_said_before_the_model_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot be listened on: Address"):
            serve(tmp_path / "no model", port=port)
    with pytest.raises(ConfigError, match="127.0.0.1:99999: cannot be listened on"):
        serve(tmp_path / "no model", port=99999)


def test_the_package_does_not_import_tensorflow():
    code = "import sys, rle_tf.server; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_absent_packages_are_named(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from rle_tf.errors import ModelError\nfrom rle_tf.server import serve\n"
        "try:\n serve('x')\nexcept ModelError as error:\n print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "found no package 'uvicorn'" in done.stdout and "rle-tf[serve]" in done.stdout


def test_an_exported_model_is_served(exported, serving, photograph, encoded):
    """The signatures of a real export, and what a photograph of theirs may have wrong."""
    model = load(exported, Options())
    model.warm_up()
    with serving(exported, Options()) as server, server.client as client:

        def predict(boxes, data=None, signature="predict_image"):
            body = {"signature_name": signature, "instances": [photograph(boxes, data)]}
            return client.post("/v1/models/resnet:predict", json=body)

        assert model.signatures.keys() == set(client.get("/model.json").json()["signatures"])
        for signature in ("predict_image", "predict_image_flip_test"):
            answer = predict([[0, 0, 20, 20], [5, 5, 30, 25], [1, 2, 9, 9]], signature=signature)
            (found,) = answer.json()["predictions"]
            assert found["present"] == [True] * 3
            assert [len(person) for person in found["keypoints_px"]] == [17] * 3
        assert predict([]).json()["predictions"][0]["keypoints_px"] == []

        huge = bytearray(encoded())
        huge[16:24] = (30_000).to_bytes(4, "big") * 2
        for boxes, data, words in (
            ([[0, 0, 9, 9]], b"no image", "image_bytes[0]: found no JPEG or PNG"),
            (
                [[0, 0, 9, 9]],
                bytes(huge),
                "found an image of 30000 x 30000 pixels; expected at",
            ),
            ([[500, 500, 600, 600]], None, "boxes_xyxy[0, 0]: found [500 500 600 600]"),
            ([[0, 0, 9, 9], [9, 9, 1, 1]], None, "boxes_xyxy[0, 1]: found [9 9 1 1]"),
            ([[0, 0, float("nan"), 9]], None, "boxes_xyxy[0, 0]: found [0 0 nan 9]"),
            ([[0, 0, 9, float("inf")]], None, "boxes_xyxy[0, 0]: found"),
            ([[0, 0, 9, 9]], encoded(kind="JPEG")[:200], "the model cannot take this"),
            ([[0, 0, 9, 9]], encoded()[:60], "the model cannot take this"),
        ):
            content = json.dumps(
                {"signature_name": "predict_image", "instances": [photograph(boxes, data)]}
            )
            answer = client.post("/v1/models/resnet:predict", content=content)
            assert answer.status_code == 400, answer.text
            assert words in answer.json()["error"], answer.text
            assert predict([[0, 0, 9, 9]]).status_code == 200


def resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
def test_a_minute_of_200_clients(exported, serving_process, encoded, tmp_path):
    """No error, and no growth: what it takes in the second half it took in the first."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to see the memory of a process")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(size=(320, 240), kind="JPEG"))
    with serving_process(exported) as server:
        command = [sys.executable, LOAD, photo, "--url", f"{server.url}/v1/models/resnet:predict"]
        command += ["--concurrency", "200", "--seconds", "60"]
        samples, done = [], threading.Event()

        def watch():
            while not done.wait(1):
                samples.append(resident_mib(server.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        finally:
            done.set()
            watcher.join()
        print(run.stdout, f"resident MiB: {samples[::10]}")
        assert run.returncode == 0, run.stdout + run.stderr
        report = json.loads(run.stdout)
        assert report["outcomes"].keys() == {"200"}
        # Not the start: threads and TensorFlow's pools come into being there.
        middle = len(samples) // 2
        first, second = samples[middle // 2 : middle], samples[middle:]
        assert max(second) < 1.05 * max(first) + 20
        assert server.process.poll() is None
