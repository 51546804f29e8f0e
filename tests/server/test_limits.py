"""What is too much, too slow or too large, and that the next request is answered."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from rle_tf.errors import ConfigError
from rle_tf.server import Options

PATH = "/v1/models/tiny:predict"
GOOD = {"signature_name": "half", "instances": [1]}


def answer_of(connection: socket.socket) -> tuple[int, dict]:
    """The status and the JSON that a server sends before it closes the connection."""
    connection.settimeout(30)
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)


def rejections(client: httpx.Client, limit: str) -> float:
    start = f'rle_tf_rejections_total{{limit="{limit}"}} '
    text = client.get("/monitoring/prometheus/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return float(lines[0].removeprefix(start)) if lines else 0.0


def metric(client: httpx.Client, name: str) -> float:
    text = client.get("/monitoring/prometheus/metrics").text
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


@pytest.fixture(scope="module")
def strict(tiny, serving):
    """A server of little patience and room."""
    options = Options(
        body_bytes=100_000, queue_bytes=150_000, client_seconds=0.4, images=3, boxes=2
    )
    with serving(tiny, options) as server:
        yield server


@pytest.fixture
def client(strict):
    with strict.client as client:
        yield client
        assert client.post(PATH, json=GOOD).json() == {"predictions": [0.5]}


@pytest.mark.parametrize("times", [2, 10], ids=["read to its end", "cut off"])
def test_a_large_body(client, times):
    before = rejections(client, "body_bytes")
    answer = client.post(PATH, content=b" " * 100_000 * times)
    assert answer.status_code == 413
    assert "found more than 100000 bytes" in answer.json()["error"]
    assert rejections(client, "body_bytes") == before + 1
    assert metric(client, "rle_tf_queue_bytes") == 0


def test_a_body_of_the_largest_size(client):
    text = json.dumps(GOOD)
    assert client.post(PATH, content=text + " " * (100_000 - len(text))).status_code == 200


def test_many_megapixels(tiny, serving, photograph, encoded):
    """Black images are small to send and large to decode."""
    with serving(tiny, Options(megapixels=2)) as server, server.client as client:
        black = encoded(0, (1000, 900), "PNG")
        for count, status in ((2, 200), (3, 400)):
            body = {"signature_name": "predict_image",
                    "instances": [photograph([[0, 0, 9, 9]], black)] * count}  # fmt: skip
            answer = client.post(PATH, json=body)
            assert answer.status_code == status, answer.text
        assert "found 3 megapixels or more in a request; expected at most 2" in answer.text


def test_many_images_and_boxes(client, photograph):
    for instances, words in (
        ([photograph([[0, 0, 1, 1]])] * 4, "found 4 images; expected 1 to 3"),
        ([photograph([[0, 0, 1, 1]] * 3)], "found 3 boxes in an image; expected at most 2"),
    ):
        body = {"signature_name": "predict_image", "instances": instances}
        answer = client.post(PATH, json=body)
        assert answer.status_code == 400 and words in answer.json()["error"]


def test_a_compressed_body(client):
    answer = client.post(PATH, content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "found no end of its headers"),
        (b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: here\r\nAccept", "its headers"),
        (
            b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: here\r\nContent-Length: 99\r\n\r\n{",
            "body: found no end of it in 0.4 s",
        ),
        (
            b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n",
            None,
        ),
    ],
    ids=["nothing", "half of the headers", "half of the body", "all"],
)
def test_a_slow_client(client, strict, sent, words):
    with socket.create_connection((strict.host, strict.port)) as connection:
        connection.sendall(sent)
        code, body = answer_of(connection)
    if words is None:
        assert (code, body) == (200, {"state": "ready"})
    else:
        assert code == 408 and words in body["error"]


def test_a_client_that_is_slow_the_second_time(client, strict):
    with socket.create_connection((strict.host, strict.port)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        answer = b""
        while b'"ready"' not in answer:
            answer += connection.recv(65536)
        connection.sendall(b"GET /heal")
        code, body = answer_of(connection)
    assert code == 408 and "headers" in body["error"]


def test_many_slow_clients_do_not_keep_others_out(client, strict):
    """A queue of slow clients is no queue: what has not arrived has not been accepted."""

    async def crowd():
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(stall())
            await asyncio.sleep(0.1)
            answer = await asyncio.to_thread(client.post, PATH, json=GOOD)
            assert answer.status_code == 200

    async def stall():
        reader, writer = await asyncio.open_connection(strict.host, strict.port)
        writer.write(
            b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"
        )
        assert b" 408 " in await reader.read()
        writer.close()
        await writer.wait_closed()

    asyncio.run(crowd())


def test_a_client_that_leaves(client, strict, wait_for):
    with socket.create_connection((strict.host, strict.port)) as connection:
        connection.sendall(
            b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 99"
        )
    with socket.create_connection((strict.host, strict.port)) as connection:
        connection.sendall(
            b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{"
        )
    wait_for(lambda: metric(client, "rle_tf_queue_bytes") == 0)


def test_a_client_that_does_not_take_its_answer(tiny, serving, wait_for):
    options = Options(images=1_000_000, client_seconds=0.4)
    body = json.dumps({"signature_name": "half", "inputs": [0.123456] * 1_000_000}).encode()
    with serving(tiny, options) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.host, server.port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_for(lambda: server.uvicorn.server_state.total_requests > 0)
        wait_for(lambda: not server.uvicorn.server_state.connections)
        with server.client as client:
            assert client.post(PATH, json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\n" + b"A: " + b"b" * 100_000,
    ],
    ids=["tls", "words", "length", "headers"],
)
def test_what_is_not_http(client, strict, sent):
    with socket.create_connection((strict.host, strict.port)) as connection:
        connection.sendall(sent)
        code, body = answer_of(connection)
    assert code == 400 and body == {"error": "request: is not HTTP"}


def test_what_stops_being_http_in_the_body(client, strict):
    with socket.create_connection((strict.host, strict.port)) as connection:
        connection.sendall(
            b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: here\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n"
        )
        assert answer_of(connection)[0] == 400


def test_a_full_queue(gated, serving, photograph, wait_for):
    model, gate = gated
    body = {"signature_name": "predict_image", "instances": [photograph([[0, 0, 4, 4]])]}
    with (
        serving(model, Options(queue=2)) as server,
        server.client as client,
        ThreadPoolExecutor(2) as threads,
    ):
        try:
            waiting = [threads.submit(client.post, PATH, json=body) for _ in range(2)]
            wait_for(lambda: metric(client, "rle_tf_queue_requests") == 2)
            refused = client.post(PATH, json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert "busy with 2 requests" in refused.json()["error"]
            assert rejections(client, "queue") == 1
        finally:
            gate.touch()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert client.post(PATH, json=body).status_code == 200
        assert metric(client, "rle_tf_queue_requests") == 0


def test_large_bodies_share_a_bound(gated, serving, photograph, wait_for):
    model, gate = gated
    body = {"signature_name": "predict_image", "instances": [photograph([[0, 0, 4, 4]])]}
    large = json.dumps(body) + " " * 60_000
    options = Options(body_bytes=100_000, queue_bytes=100_000)
    with (
        serving(model, options) as server,
        server.client as client,
        ThreadPoolExecutor(1) as threads,
    ):
        try:
            waiting = threads.submit(client.post, PATH, content=large)
            wait_for(lambda: metric(client, "rle_tf_queue_requests") == 1)
            refused = client.post(PATH, content=large)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
        finally:
            gate.touch()
        assert waiting.result().status_code == 200
        assert client.post(PATH, content=large).status_code == 200


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue": 0}, "queue: found 0; expected a number above 0"),
        ({"client_seconds": float("nan")}, "client_seconds: found nan"),
        ({"queue_bytes": 5}, "queue_bytes: found 5; expected at least body_bytes"),
    ],
)
def test_options_that_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words):
        Options(**values)
