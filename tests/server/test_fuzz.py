"""Ten thousand malformed bodies: each gets a 4xx and a sentence, and the server stays up."""

import base64
import copy
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rle_tf.server import Options

SIGNATURES = ["serving_default", "half", "predict_image", "predict_image_flip_test", ""]
LIMIT = 2_000  # characters: what is wrong with a body hardly depends on its length

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([{"b64": "eA=="}, {"b64": "*"}, {"b64": 1}, {}, [], [[]], [[[[]]]], "\x00"]),
    st.binary(max_size=40).map(lambda data: {"b64": base64.b64encode(data).decode()}),
)
KEYS = st.one_of(
    st.sampled_from(["x", "image", "image_bytes", "boxes_xyxy", "b64", "instances", "inputs"]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            "signature_name": st.sampled_from(SIGNATURES) | VALUES,
            "instances": VALUES,
            "inputs": VALUES,
        },
    ),
)


def places(value, path=()):
    """The paths to everything inside a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


@st.composite
def damaged(draw, documents):
    """A good request with something in it exchanged, left out or put in twice."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(document) if path] or [()]))
        if not path:
            return draw(VALUES)
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        match draw(st.sampled_from(["exchange", "leave out", "twice", "wrap", "rename"])):
            case "exchange":
                holder[path[-1]] = copy.deepcopy(draw(VALUES))  # what it draws from is shared
            case "leave out":
                del holder[path[-1]]
            case "twice" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[path[-1]]))
            case "rename" if isinstance(holder, dict):
                holder[draw(KEYS)] = holder.pop(path[-1])
            case _:
                holder[path[-1]] = [holder[path[-1]]]
    return document


@st.composite
def torn(draw, documents):
    """The bytes of a good request, cut, or with some of them exchanged."""
    data = bytearray(json.dumps(draw(st.sampled_from(documents))).encode()[:LIMIT])
    if draw(st.booleans()):
        return bytes(data[: draw(st.integers(0, len(data) - 1))])
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@pytest.fixture(scope="module")
def post(server, photograph, encoded):
    with server.client as client:
        yield lambda body: client.post("/v1/models/tiny:predict", content=body)


@pytest.fixture(scope="module")
def documents(photograph, encoded):
    instances = [photograph([[0, 0, 9, 9], [1, 2, 3, 4]]), photograph([[0, 0, 0, 0]] * 2)]
    columns = {key: [instance[key] for instance in instances] for key in instances[0]}
    crop = [[[1, 2, 3]] * 6] * 8
    return [
        {"signature_name": "half", "instances": [1, 2.5]},
        {"signature_name": "half", "inputs": {"x": [1]}},
        {"instances": [crop]},
        {"inputs": {"image": [crop]}},
        {"signature_name": "predict_image", "instances": instances},
        {"signature_name": "predict_image_flip_test", "inputs": columns},
        {"signature_name": "predict_image", "instances": [photograph([], encoded(kind="JPEG"))]},
    ]


def fuzz(post, documents, examples: int) -> None:
    bodies = st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        DOCUMENTS.map(lambda document: json.dumps(document).encode()),
        damaged(documents).map(lambda document: json.dumps(document).encode()),
        torn(documents),
        st.builds(lambda opening, depth: opening * depth, st.sampled_from([b"[", b'{"x":']),
                  st.integers(1, 5000)),
    )  # fmt: skip
    codes = {}

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(bodies)
    def check(body):
        answer = post(body)
        codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
        # A change may leave a request good.
        assert answer.status_code in (200, 400), (body, answer.text)
        if answer.status_code == 400:
            assert answer.json().keys() == {"error"} and len(answer.json()["error"]) < 600
        else:
            assert answer.json().keys() <= {"predictions", "outputs"}

    check()
    print(codes)
    assert codes[400] > 0.8 * examples
    assert post(json.dumps(documents[0])).json() == {"predictions": [0.5, 1.25]}


def test_some_malformed_bodies(post, documents):
    fuzz(post, documents, 300)


@pytest.mark.slow
def test_ten_thousand_malformed_bodies(post, documents):
    fuzz(post, documents, 12_500)


@st.composite
def damaged_images(draw, images):
    """An image file with some bytes exchanged, most of them in its headers, or cut."""
    data = bytearray(draw(st.sampled_from(images)))
    for _ in range(draw(st.integers(1, 6))):
        end = draw(st.sampled_from([40, 200, len(data)]))
        data[draw(st.integers(0, min(end, len(data)) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


ODD_BOXES = st.lists(
    st.lists(
        st.floats(width=32) | st.sampled_from([0, 39, 1e38, -1e38, 1e-38]), min_size=4, max_size=4
    ),
    max_size=3,
)


def fuzz_images(exported, serving, photograph, examples: int) -> None:
    """The decoder of a real export, which sees what its sender likes."""
    figure = Image.effect_noise((40, 30), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    images = []
    for kind, extra in (("JPEG", {}), ("JPEG", {"exif": exif, "progressive": True}),
                        ("PNG", {}), ("PNG", {"exif": exif})):  # fmt: skip
        file = io.BytesIO()
        figure.save(file, kind, **extra)
        images.append(file.getvalue())
    codes = {}

    with serving(exported, Options()) as server, server.client as client:

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.just(images[0]) | damaged_images(images), st.just([[0, 0, 20, 20]]) | ODD_BOXES)
        def check(data, boxes):
            instances = [photograph(boxes, data)]
            body = json.dumps({"signature_name": "predict_image", "instances": instances})
            answer = client.post("/v1/models/resnet:predict", content=body)
            codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
            assert answer.status_code in (200, 400), (data, boxes, answer.text)
            if answer.status_code == 200:
                assert "NaN" not in answer.text and "Infinity" not in answer.text

        check()
        print(codes)
        assert codes[400] > 0.2 * examples
        instances = [photograph([[0, 0, 20, 20]], images[0])]
        body = {"signature_name": "predict_image", "instances": instances}
        assert client.post("/v1/models/resnet:predict", json=body).status_code == 200


def test_some_damaged_images(exported, serving, photograph):
    fuzz_images(exported, serving, photograph, 100)


@pytest.mark.slow
def test_many_damaged_images(exported, serving, photograph):
    fuzz_images(exported, serving, photograph, 2_000)
