"""TensorFlow Serving's REST API: what a client sends and sees."""

import json
import math

import numpy as np
import pytest
from tensorflow.core.protobuf import meta_graph_pb2


def test_one_input_and_one_output_go_without_names(predict):
    rows = predict(signature_name="half", instances=[1.0, 2, 5])
    assert rows.json() == {"predictions": [0.5, 1.0, 2.5]}
    assert rows.headers["content-type"] == "application/json"
    columns = predict(signature_name="half", inputs=[1.0, 2, 5])
    assert columns.json() == {"outputs": [0.5, 1.0, 2.5]}
    assert predict(signature_name="half", inputs={"x": [3]}).json() == {"outputs": [1.5]}
    named = predict(signature_name="half", instances=[{"x": 3}, {"x": 4}])
    assert named.json() == {"predictions": [1.5, 2.0]}
    # The digits that float32 has, not 0.10000000149011612.
    assert predict(signature_name="half", instances=[0.2]).json() == {"predictions": [0.1]}


def test_rows_and_columns_say_the_same(predict, photograph, encoded):
    instances = [photograph([[0, 0, 10, 20], [4, 4, 8, 8]]),
                 photograph([[1, 2, 3, 4], [0, 0, 0, 0]], encoded(51, kind="JPEG"))]  # fmt: skip
    rows = predict(signature_name="predict_image", instances=instances).json()["predictions"]
    columns = {key: [instance[key] for instance in instances] for key in instances[0]}
    outputs = predict(signature_name="predict_image", inputs=columns).json()["outputs"]
    assert {key: [row[key] for row in rows] for key in outputs} == outputs
    assert rows[0]["keypoints_px"][0] == [[2.5, 5], [5, 10], [7.5, 15]]
    assert rows[1]["present"] == [True, False]
    assert rows[1]["person_score"] == [pytest.approx(0.2), 0]


def test_the_default_signature_and_bare_nan(predict):
    answer = predict(instances=np.full((2, 8, 6, 3), 7).tolist())
    assert '"sigma_px": [[NaN, NaN]' in answer.text
    assert answer.json()["predictions"][1]["mu"] == [[7.0, 7.0]] * 3
    assert predict(signature_name="", instances=np.zeros((1, 8, 6, 3), int).tolist()).is_success


def test_numbers_that_are_none_are_read(client):
    body = '{"signature_name": "half", "instances": [NaN, Infinity, -Infinity, 1e-3]}'
    values = client.post("/v1/models/tiny:predict", content=body).json()["predictions"]
    assert math.isnan(values[0]) and values[1:] == [math.inf, -math.inf, 0.0005]


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_no_boxes_give_an_empty_answer(predict, photograph, form):
    instance = photograph([])
    body = {"instances": [instance]}
    if form == "columns":
        body = {"inputs": {key: [value] for key, value in instance.items()}}
    answer = predict(signature_name="predict_image", **body)
    assert answer.status_code == 200
    outputs = answer.json()["predictions"][0] if form == "rows" else answer.json()["outputs"]
    empty = [] if form == "rows" else [[]]
    assert outputs == dict.fromkeys(outputs, empty) and "keypoints_px" in outputs


def test_base64_may_have_line_ends_and_no_padding(predict, photograph):
    instance = photograph([[0, 0, 9, 9]])
    expected = predict(signature_name="predict_image", instances=[instance]).json()
    text = instance["image_bytes"]["b64"]
    instance["image_bytes"]["b64"] = "\r\n".join([text[:40], text[40:].rstrip("=")])
    assert predict(signature_name="predict_image", instances=[instance]).json() == expected


def test_a_version_may_be_named(client):
    body = {"signature_name": "half", "instances": [1]}
    assert client.post("/v1/models/tiny/versions/3:predict", json=body).status_code == 200
    status = {"version": "3", "state": "AVAILABLE"}
    status["status"] = {"error_code": "OK", "error_message": ""}
    for path in ("/v1/models/tiny", "/v1/models/tiny/versions/3"):
        assert client.get(path).json() == {"model_version_status": [status]}


def test_metadata_is_the_signatures_proto(client):
    answer = client.get("/v1/models/tiny/metadata").json()
    assert answer == client.get("/v1/models/tiny/versions/3/metadata").json()
    assert answer["model_spec"] == {"name": "tiny", "signature_name": "", "version": "3"}
    definitions = answer["metadata"]["signature_def"]["signature_def"]
    definition = definitions["predict_image"]
    assert definition["method_name"] == "tensorflow/serving/predict"
    boxes = definition["inputs"]["boxes_xyxy"]
    assert boxes["dtype"] == "DT_FLOAT"
    assert boxes["tensor_shape"] == {
        "dim": [{"size": size, "name": ""} for size in ("-1", "-1", "4")],
        "unknown_rank": False,
    }
    from google.protobuf.json_format import ParseDict

    ParseDict(definition, meta_graph_pb2.SignatureDef())  # and no key that it does not have


def test_the_model_describes_itself(client):
    about = client.get("/model.json").json()
    assert about["joints"] == ["nose", "left_hand", "right_hand"]
    assert (about["name"], about["version"]) == ("tiny", 3)
    assert "predict_image" in about["signatures"]


def test_health(client, server):
    assert client.get("/healthz").status_code == 200
    server.app.state.draining = True
    try:
        assert client.get("/healthz").status_code == 503
        refused = client.post("/v1/models/tiny:predict", json={"instances": [1]})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    finally:
        server.app.state.draining = False


def test_metrics_count_requests_by_signature_and_code(client, predict):
    def count(signature, code):
        text = client.get("/monitoring/prometheus/metrics").text
        start = f'rle_tf_requests_total{{code="{code}",signature="{signature}"}} '
        lines = [line for line in text.splitlines() if line.startswith(start)]
        return float(lines[0].removeprefix(start)) if lines else 0.0

    kinds = [("half", "200"), ("half", "400"), ("none", "400")]
    before = [count(*kind) for kind in kinds]
    assert predict(signature_name="half", instances=[1]).status_code == 200
    assert predict(signature_name="half", instances=["1"]).status_code == 400
    assert predict(signature_name="x" * 100, instances=[1]).status_code == 400
    assert [count(*kind) for kind in kinds] == [number + 1 for number in before]
    text = client.get("/monitoring/prometheus/metrics").text
    assert "xxx" not in text and "rle_tf_batch_images_bucket" in text
    assert 'rle_tf_request_seconds_count{signature="half"}' in text


def test_the_page_may_do_nothing_but_ask_this_server(client):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text")):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "http" not in policy
    page = client.get("/").text
    assert "<script>" not in page and " style=" not in page and "://" not in page


@pytest.mark.parametrize(
    ("method", "path", "code", "words"),
    [
        ("GET", "/v2", 404, "found no path '/v2'"),
        ("GET", "/docs", 404, "found no path"),
        ("GET", "/openapi.json", 404, "found no path"),
        ("GET", "/../../etc/passwd", 404, "found no path"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, "found no path"),
        ("GET", "/v1/models/other", 404, "found no model 'other'; expected 'tiny', version 3"),
        ("GET", "/v1/models/tiny/versions/4", 404, "found no model 'tiny', version '4'"),
        ("GET", "/v1/models/tiny/versions/x/metadata", 404, "found no model"),
        ("POST", "/v1/models/other:predict", 404, "found no model 'other'"),
        ("POST", "/v1/models/tiny/versions/2:predict", 404, "version '2'"),
        ("GET", "/v1/models/tiny:predict", 405, "found the method 'GET'; expected POST"),
        ("PUT", "/v1/models/tiny:predict", 405, "found the method 'PUT'"),
        ("POST", "/", 405, "expected GET"),
        ("POST", "/v1/models/tiny:classify", 400, "found 'classify'; expected tiny:predict"),
    ],
)
def test_wrong_paths_and_methods(client, method, path, code, words):
    answer = client.request(method, path)
    assert answer.status_code == code
    assert words in answer.json()["error"]


PHOTO = {"image_bytes": "x", "boxes_xyxy": [[0, 0, 1, 1]]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: is not JSON: EOF"),
        (b"\xff\xfe", "body: is not JSON"),
        (b'{"instances": "\xc3"}', "body: is not JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"a":' * 100_000, "recursion limit"),
        (b"[1]", "found a list; expected an object"),
        (b"null", "found null; expected an object"),
        ({}, "expected one of 'instances' (rows) and 'inputs'"),
        ({"instances": [1], "inputs": [1]}, "expected one of"),
        ({"instances": [1], "signature": "half"}, "found the key 'signature'"),
        ({"instances": [1], "signature_name": 3}, "signature_name: found 3; expected a string"),
        ({"instances": [1], "signature_name": "none"}, "found 'none'; expected one of half"),
        ({"instances": [], "signature_name": "half"}, "instances: found an empty list"),
        ({"instances": {"x": [1]}, "signature_name": "half"}, "instances: found an object"),
        ({"instances": [{"y": 1}], "signature_name": "half"}, "found 'y'; expected 'x'"),
        ({"inputs": {"x": [1], "y": [1]}, "signature_name": "half"}, "found 'x', 'y'; expected"),
        ({"inputs": {}, "signature_name": "half"}, "inputs: found no input; expected 'x'"),
        ({"inputs": [], "signature_name": "half"}, "found 0 images"),
        ({"inputs": 1, "signature_name": "half"}, "inputs.x: found a single value; expected shape"),
        ({"inputs": [[1], [2]], "signature_name": "half"}, "found more than 1 levels of lists"),
        ({"inputs": [True], "signature_name": "half"}, "found true; expected float32 numbers"),
        ({"inputs": [1, None], "signature_name": "half"}, "found null; expected float32"),
        ({"inputs": ["1"], "signature_name": "half"}, 'found the string "1"; expected float32'),
        ({"inputs": [10**400], "signature_name": "half"}, "does not fit float32"),
        ({"inputs": [1e300], "signature_name": "half"}, "does not fit float32"),
        ({"inputs": [1.0] * 65, "signature_name": "half"}, "found 65 images; expected 1 to 64"),
        ({"instances": [[[[256] * 3] * 6] * 8]}, "does not fit uint8"),
        ({"instances": [[[[-1] * 3] * 6] * 8]}, "does not fit uint8"),
        ({"instances": [[[[2**70] * 3] * 6] * 8]}, "does not fit uint8"),
        ({"instances": [[[[1.0] * 3] * 6] * 8]}, "found 1.0; expected uint8"),
        ({"instances": [[[[1] * 3] * 6] * 7]}, "found shape (7, 6, 3); expected shape (8, 6, 3)"),
        ({"instances": [[[[1] * 3] * 5 + [[1]]] * 8]}, "lists of unequal lengths"),
        ({"instances": [[[[1] * 3] * 5 + [1]] * 8]}, "lists of unequal lengths"),
        ({"instances": [PHOTO, 1]}, "instances[1]: found 1; expected an object with 'boxes_xyxy'"),
        ({"instances": [{**PHOTO, "more": 1}]}, "'boxes_xyxy', 'image_bytes', 'more'; expected"),
        ({"instances": [PHOTO, {**PHOTO, "boxes_xyxy": []}]}, "expected (1, 4) as in instances[0]"),
        ({"inputs": {"image_bytes": ["x"], "boxes_xyxy": []}}, "expected as many in each input"),
        ({"inputs": {"image_bytes": [], "boxes_xyxy": []}}, "found 0 images; expected 1 to 64"),
        ({"inputs": {"b64": "eA=="}}, "inputs: found an object; expected an object with"),
        ({"instances": [{**PHOTO, "image_bytes": {"b64": "?"}}]}, "b64 that is not base64"),
        ({"instances": [{**PHOTO, "image_bytes": {"b64": "é"}}]}, "b64 that is not base64"),
        ({"instances": [{**PHOTO, "image_bytes": {"b64": 1}}]}, "found an object; expected"),
        ({"instances": [{**PHOTO, "image_bytes": 1}]}, 'found 1; expected {"b64": "..."}'),
        ({"instances": [{**PHOTO, "boxes_xyxy": [0, 0, 1, 1]}]}, "found shape (4); expected shape"),
        ({"instances": [{**PHOTO, "boxes_xyxy": [[0, 0, 1, 1]] * 65}]}, "found 65 boxes in an"),
        ({"instances": [PHOTO]}, "image_bytes[0]: found no JPEG or PNG; expected one"),
    ],
)  # fmt: skip
def test_a_bad_body_gets_a_sentence(client, body, words):
    if isinstance(body, dict):
        text = json.dumps(body)
        if "image_bytes" in text or "b64" in text:
            body = {"signature_name": "predict_image", **body}
        body = json.dumps(body).encode()
    answer = client.post("/v1/models/tiny:predict", content=body)
    assert answer.status_code == 400, answer.text
    sentence = answer.json()["error"]
    assert words in sentence
    assert len(sentence) < 400 and "node" not in sentence and "\n" not in sentence
    good = {"signature_name": "half", "instances": [1]}
    assert client.post("/v1/models/tiny:predict", json=good).json() == {"predictions": [0.5]}


def test_tensorflows_own_words_are_cleaned(predict, photograph, encoded):
    cut = encoded(kind="JPEG")[:40]
    answer = predict(signature_name="predict_image", instances=[photograph([], cut)])
    assert answer.status_code == 400
    sentence = answer.json()["error"]
    assert sentence.startswith("the model cannot take this: ")
    assert "JPEG" in sentence and "{{" not in sentence and "[" not in sentence


def test_a_fault_of_the_server_is_logged_and_is_its_own(client, predict, monkeypatch, caplog):
    from rle_tf.server import app

    def fail(*_):
        raise RuntimeError("a secret")

    with monkeypatch.context() as patch:
        patch.setattr(app, "write_tensors", fail)
        answer = predict(signature_name="half", instances=[1])
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed at this request; see its log"}
    assert "a secret" in caplog.text
    assert predict(signature_name="half", instances=[1]).status_code == 200
