"""The page in a real browser."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rle_tf.server import Options

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip
DESKTOP, PHONE = (1280, 900), (390, 844)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def resnet(exported, serving):
    with serving(exported, Options()) as server:
        yield server


@pytest.fixture
def open_page(browser: Browser):
    """`open_page(url, size=DESKTOP)`: a page that says what it serves. Whatever it writes to the
    console, such as what its own policy forbids, and each request to elsewhere fails the test."""
    pages, complaints = [], []

    def open_at(url: str, size: tuple[int, int] = DESKTOP) -> Page:
        width, height = size
        touch = size == PHONE
        context = browser.new_context(
            viewport={"width": width, "height": height}, is_mobile=touch, has_touch=touch,
            permissions=["camera"],
        )  # fmt: skip
        page = context.new_page()
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda sent: None if sent.url.startswith((url, "data:", "blob:"))
            else complaints.append(sent.url),
        )  # fmt: skip
        page.goto(url)
        expect(page.locator("#about")).to_contain_text("version")
        return page

    yield open_at
    for page in pages:
        page.context.close()
    # Chromium itself writes this line for each answer that is no 200.
    complaints = [text for text in complaints if "Failed to load resource" not in text]
    assert not complaints


def picture(kind: str = "JPEG", size: tuple[int, int] = (320, 240), **options) -> bytes:
    """A figure of sticks before a wall of changing colour."""
    across, down = np.meshgrid(np.linspace(60, 200, size[0]), np.linspace(60, 160, size[1]))
    image = Image.fromarray(np.stack([across, down, 250 - across], -1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y = size[0] * 0.3, size[1] * 0.2
    draw.ellipse((x - 14, y - 14, x + 14, y + 14), (230, 190, 160))
    for line in (((0, 14), (0, 80)), ((0, 26), (-34, 60)), ((0, 26), (34, 60)),
                 ((0, 80), (-22, 150)), ((0, 80), (22, 150))):  # fmt: skip
        draw.line([(x + dx, y + dy) for dx, dy in line], (40, 40, 60), 10)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def choose(page: Page, data: bytes, name: str = "photo.jpg") -> None:
    page.set_input_files(
        "#file", {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A box by the mouse, in shares of the photograph."""
    area = page.locator("#picture").bounding_box()
    points = [
        (area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()


def box_of(page: Page, row: int) -> list[float]:
    return [float(page.input_value(f"#box-{row}-{edge}"))
            for edge in ("left", "top", "right", "bottom")]  # fmt: skip


def joints_of(page: Page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]


def ask(url: str, data: bytes, boxes: list, signature: str = "predict_image") -> dict:
    instance = {"image_bytes": {"b64": base64.b64encode(data).decode()}, "boxes_xyxy": boxes}
    body = {"signature_name": signature, "instances": [instance]}
    answer = httpx.post(f"{url}/v1/models/resnet:predict", json=body, trust_env=False)
    return answer.json()["predictions"][0]


def expected_rows(answer: dict, person: int) -> list[list[str]]:
    rows = []
    for (x, y), sigma, score in zip(
        *(answer[key][person] for key in ("keypoints_px", "sigma_px", "score")), strict=True
    ):
        numbers = [f"{x:.1f}", f"{y:.1f}", f"{sigma[0]:.1f}", f"{sigma[1]:.1f}", f"{score:.3f}"]
        rows.append(numbers)
    return rows


def same_rows(found: list[list[str]], expected: list[list[str]]) -> None:
    """Equal but for a last digit, which JavaScript may round the other way."""
    for row, numbers in zip(found, expected, strict=True):
        for text, number in zip(row, numbers, strict=True):
            assert float(text) == pytest.approx(float(number), abs=1.01 * 10 ** -len(
                number.partition(".")[2]))  # fmt: skip


def colours(page: Page) -> set[tuple[int, int, int]]:
    """What is on the canvas."""
    png = page.locator("#picture").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    return set(map(tuple, np.unique(pixels, axis=0).tolist()))


def test_a_photograph_with_boxes(resnet, open_page, tmp_path):
    page, data = open_page(resnet.url), picture()
    expect(page.get_by_role("button", name="Add a box")).to_be_disabled()
    choose(page, data)
    expect(page.locator("#state")).to_contain_text("1 person, ")
    same_rows(joints_of(page), expected_rows(ask(resnet.url, data, [[0, 0, 320, 240]]), 0))

    drag(page, (0.1, 0.05), (0.5, 0.9))
    expect(page.locator("#boxes li")).to_have_count(1)
    drag(page, (0.95, 0.9), (0.6, 0.2))  # from any corner
    expect(page.locator("#state")).to_contain_text("2 people, ")
    boxes = [box_of(page, 0), box_of(page, 1)]
    assert boxes[0] == pytest.approx([32, 12, 160, 216], abs=2)
    assert boxes[1] == pytest.approx([192, 48, 304, 216], abs=2)
    answer = ask(resnet.url, data, boxes)
    same_rows(joints_of(page), expected_rows(answer, 1))  # the last one drawn
    page.get_by_role("button", name="Person 1").click()
    same_rows(joints_of(page), expected_rows(answer, 0))
    expect(page.locator("#score")).to_have_text(f"{answer['person_score'][0]:.3f}")
    assert {(255, 149, 0), (20, 120, 245)} <= colours(page)

    page.get_by_label("Flip test").check()
    flipped = ask(resnet.url, data, boxes, "predict_image_flip_test")
    expect(page.locator("#score")).to_have_text(f"{flipped['person_score'][0]:.3f}")
    same_rows(joints_of(page), expected_rows(flipped, 0))

    page.screenshot(path=tmp_path / "page.png", full_page=True)
    print(f"screenshot: {tmp_path / 'page.png'}")
    page.get_by_role("button", name="Whole image").click()
    expect(page.locator("#state")).to_contain_text("1 person, ")
    expect(page.locator("#boxes li")).to_have_count(0)


def test_boxes_by_the_keyboard(resnet, open_page):
    page, data = open_page(resnet.url), picture()
    choose(page, data)
    expect(page.locator("#state")).to_contain_text("1 person, ")
    page.get_by_role("button", name="Add a box").press("Enter")
    page.locator("#box-0-left").fill("10")
    page.locator("#box-0-left").press("Tab")
    expect(page.locator("#box-0-top")).to_be_focused()
    expect(page.locator("#state")).to_contain_text("1 person, ")
    assert box_of(page, 0) == [10, 30, 240, 210]
    same_rows(joints_of(page), expected_rows(ask(resnet.url, data, [[10, 30, 240, 210]]), 0))
    page.locator("#box-0-right").fill("5")
    page.locator("#box-0-right").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(
        "The server says: boxes_xyxy[0, 0]: found [10"
    )
    expect(page.locator("#result")).to_be_hidden()
    page.get_by_role("button", name="Remove box 1").press("Enter")
    expect(page.locator("#state")).to_contain_text("1 person, ")
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("kind", ["text", "cut", "huge"])
def test_a_bad_file_gets_a_sentence_and_the_next_one_a_pose(resnet, open_page, kind):
    page = open_page(resnet.url)
    bad, words = {
        "text": (b"These are words.", "cannot be read as an image"),
        "cut": (picture("GIF")[:30], "cannot be read as an image"),
        # The browser shows it, so the sentence is the server's.
        "huge": (
            picture("PNG", (9000, 7200), compress_level=1),
            "found 65 megapixels or more in a request",
        ),
    }[kind]
    choose(page, bad)
    expect(page.get_by_role("alert")).to_contain_text(words, timeout=30_000)
    choose(page, picture())
    expect(page.locator("#state")).to_contain_text("1 person, ")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_turned_photograph_has_its_boxes_as_it_is_shown(resnet, open_page):
    exif = Image.Exif()
    exif[0x0112] = 6
    page, data = open_page(resnet.url), picture(exif=exif)
    choose(page, data)
    expect(page.locator("#state")).to_contain_text("1 person, ")
    area = page.locator("#picture").bounding_box()
    assert area["width"] / area["height"] == pytest.approx(240 / 320, rel=0.02)
    drag(page, (0.1, 0.5), (0.9, 0.95))
    expect(page.locator("#boxes li")).to_have_count(1)
    expect(page.locator("#state")).to_contain_text("1 person, ")
    box = box_of(page, 0)
    assert box == pytest.approx([24, 160, 216, 304], abs=2)
    same_rows(joints_of(page), expected_rows(ask(resnet.url, data, [box]), 0))


def test_what_the_server_does_not_read_is_encoded_anew(resnet, open_page):
    page = open_page(resnet.url)
    choose(page, picture("WEBP", lossless=True), "photo.webp")
    expect(page.locator("#state")).to_contain_text("1 person, ")
    answer = ask(resnet.url, picture("PNG"), [[0, 0, 320, 240]])
    found = np.array(joints_of(page), float)[:, :2]
    np.testing.assert_allclose(found, answer["keypoints_px"][0], atol=2)


def test_a_dropped_file(resnet, open_page):
    page, data = open_page(resnet.url), picture()
    page.evaluate(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "photo.jpg"));
            const stage = document.getElementById("empty");
            for (const name of ["dragenter", "dragover", "drop"])
                stage.dispatchEvent(new DragEvent(name,
                    {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        list(data),
    )
    expect(page.locator("#state")).to_contain_text("1 person, ")
    same_rows(joints_of(page), expected_rows(ask(resnet.url, data, [[0, 0, 320, 240]]), 0))


def test_the_camera(resnet, open_page):
    page = open_page(resnet.url)
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#video")).to_be_visible()
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator("#state")).to_contain_text("1 person, ")
    expect(page.locator("#video")).to_be_hidden()
    expect(page.locator("#picture")).to_have_attribute("aria-label", re.compile("1 person drawn"))
    assert not page.evaluate("document.getElementById('video').srcObject")
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Stop the camera").click()
    expect(page.locator("#picture")).to_be_visible()


def test_a_finger_on_a_phone(resnet, open_page, tmp_path):
    page, data = open_page(resnet.url, PHONE), picture()
    choose(page, data)
    expect(page.locator("#state")).to_contain_text("1 person, ")
    touch = page.context.new_cdp_session(page)
    area = page.locator("#picture").bounding_box()

    def put(kind: str, *shares: tuple[float, float]) -> None:
        points = [{"x": area["x"] + x * area["width"], "y": area["y"] + y * area["height"]}
                  for x, y in shares]  # fmt: skip
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    put("touchStart", (0.1, 0.1))
    put("touchMove", (0.3, 0.5))
    put("touchMove", (0.5, 0.9))
    put("touchEnd")
    expect(page.locator("#boxes li")).to_have_count(1)
    expect(page.locator("#state")).to_contain_text("1 person, ")
    assert box_of(page, 0) == pytest.approx([32, 24, 160, 216], abs=4)
    same_rows(joints_of(page), expected_rows(ask(resnet.url, data, [box_of(page, 0)]), 0))
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    scroll = page.locator(".scroll")
    assert scroll.evaluate("(element) => element.scrollWidth - element.clientWidth") == 0
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    print(f"screenshot: {tmp_path / 'phone.png'}")


def test_every_control_has_a_name(resnet, open_page):
    page = open_page(resnet.url)
    choose(page, picture())
    expect(page.locator("#state")).to_contain_text("1 person, ")
    page.get_by_role("button", name="Add a box").click()
    expect(page.locator("#boxes li")).to_have_count(1)
    nameless = """() => [...document.querySelectorAll("button, input, a")].filter((control) =>
        !(control.ariaLabel || control.textContent.trim() ||
          control.closest("label")?.textContent.trim())).map((control) => control.outerHTML)"""
    assert page.evaluate(nameless) == []
    tree = page.locator("body").aria_snapshot()
    for words in ("heading", "table", "columnheader", "rowheader", "status"):
        assert words in tree


def test_sigmas_that_are_not_known(tiny, tmp_path, serving, open_page, monkeypatch):
    """A model without a flow says NaN, which JSON.parse would refuse."""
    from rle_tf.server import app

    write = app.write_tensors

    def without_sigma(arrays, rows):
        return write({**arrays, "sigma_px": np.full_like(arrays["sigma_px"], np.nan)}, rows)

    monkeypatch.setattr(app, "write_tensors", without_sigma)
    with serving(tiny, Options()) as server:
        page = open_page(server.url)
        choose(page, picture())
        expect(page.locator("#note")).to_contain_text("its sigmas are not known")
        assert {row[2] for row in joints_of(page)} == {"–"}


def test_a_lifter_says_what_the_page_needs(tiny, tmp_path, serving, open_page):
    lifter = tmp_path / "lifter" / "1"
    shutil.copytree(tiny, lifter)
    sidecar = lifter / "assets.extra" / "rle_tf.json"
    sidecar.write_text(json.dumps({**json.loads(Path(sidecar).read_text()), "input": "keypoints"}))
    with serving(lifter, Options()) as server:
        server_url = server.url
        page = open_page(server_url)
        expect(page.get_by_role("alert")).to_contain_text("needs a model that looks at images")
        expect(page.get_by_role("button", name="Use the camera")).to_be_disabled()


def test_a_server_that_is_gone(tiny, serving, open_page):
    with serving(tiny, Options()) as server:
        page = open_page(server.url)
    choose(page, picture())
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
