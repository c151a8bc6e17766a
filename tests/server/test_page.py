"""The page in a browser: a trained checkpoint, served by the command, in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from detector import Detector
from detector.config.load import override, parse_config
from detector.tasks.start import start_run
from tests.conftest import PROJECT
from tests.tiny import TINY

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome"),
]
PHONE, DESKTOP = {"width": 375, "height": 740}, {"width": 1280, "height": 800}


class Served(NamedTuple):
    address: str
    checkpoint: Path
    photo: Path


@pytest.fixture(scope="module")
def served(tiny_root: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Train for a few seconds, and serve the checkpoint until the tests are over; Ctrl-C ends it."""
    folder = tmp_path_factory.mktemp("served")
    values = {**TINY, "data": {**TINY["data"], "root": str(tiny_root)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start_run(
            parse_config(override(values, ["train.steps=40"]), "tiny.yaml"), folder / "run", "cpu"
        ).run()
    checkpoint = folder / "run/checkpoints/best.pt"
    script = str(PROJECT / "tools/serve.py")
    command = [sys.executable, script, "--checkpoint", str(checkpoint), "--device", "cpu"]
    server = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    yield Served(server.stdout.readline().strip(), checkpoint, photo)
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=30)
    assert (server.returncode, "stopped" in errors) == (0, True), errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Page:
    """A page of the server, with the requests that it sends and the errors that the browser reports."""

    def __init__(self, browser: Any, served: Served, size: dict[str, int], **options: Any) -> None:
        self.page = browser.new_page(viewport=size, **options)
        self.posts: list[str] = []
        self.errors: list[str] = []
        self.page.on("console", lambda message: self.errors.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._requested)
        self._served = served
        self.page.goto(served.address)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self._served.address, "data:", "blob:")):
            self.errors.append(f"a request to {request.url}")
        if request.method == "POST":
            self.posts.append(request.url.rsplit("/", 1)[1])

    def until(self, condition: str) -> None:
        """Wait for a condition; Playwright's own wait needs eval, which the page's policy forbids."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            time.sleep(0.05)
        pytest.fail(f"never came true: {condition}; {self.errors}; {self.page.inner_text('body')[:500]}")

    def open(self) -> None:
        self.until("state.model !== null")
        self.page.set_input_files("#file", self._served.photo)
        self.until("state.answer !== null && state.running === 0")

    def tab_to(self, selector: str) -> None:
        for _ in range(60):
            if self.page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                return
            self.page.keyboard.press("Tab")
        pytest.fail(f"{selector} cannot be reached with Tab")


def shown(page: Page) -> int:
    return int(page.page.locator("#list li").count())


def test_with_the_mouse_on_a_desktop(browser: Any, served: Served, tmp_path: Path) -> None:
    page = Page(browser, served, DESKTOP, color_scheme="light")
    page.open()
    assert page.posts == ["detect"]
    expected = Detector.load(served.checkpoint, "cpu")(served.photo)
    threshold = float(np.median(expected.scores))

    page.page.fill("#threshold-number", str(threshold))
    assert shown(page) == int((expected.scores >= threshold).sum())
    page.page.fill("#threshold-number", "7")
    assert page.page.evaluate("state.threshold") == 1
    page.page.locator("#threshold").focus()
    assert page.page.input_value("#threshold-number") == "1"
    page.page.keyboard.press("Home")
    assert shown(page) == len(expected) > 0
    label = expected.names[0]
    page.page.uncheck(f"#classes li[data-name={label}] input")
    assert shown(page) == sum(name != label for name in expected.names)
    page.page.click("#all")
    assert page.posts == ["detect"]  # all of this without another request

    box = page.page.locator("#overlay").bounding_box()
    page.page.mouse.move(box["x"] + 40, box["y"] + 60)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 250, box["y"] + 300, steps=4)
    page.page.mouse.up()
    page.until("state.scores !== null && state.running === 0")
    assert page.posts == ["detect", "classify"]
    assert page.page.locator("#region-scores li").count() == len(expected.classes) + 1
    region = page.page.evaluate("state.regions.map(boxOf)")
    scores = Detector.load(served.checkpoint, "cpu").classify(served.photo, np.array(region)).scores
    assert page.page.evaluate("[...state.scores.values()][0].scores") == scores[0, 1:].tolist()

    page.page.select_option("#proposals", "boxes")
    page.until("state.answer !== null && state.answer.proposals.method === 'boxes'")
    page.page.select_option("#proposals", "checkpoint")
    page.until("state.answer !== null && state.answer.proposals.method === 'checkpoint'")
    with page.page.expect_download() as download:
        page.page.click("#download")
    assert download.value.suggested_filename == f"{served.photo.stem}.json"
    download.value.save_as(tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["detections"] == expected.to_dict()["detections"]
    assert found["regions"][0]["box"] == region[0]
    page.page.goto(f"{served.address}docs")
    page.page.wait_for_selector("h2 >> text=/classify")
    assert page.errors == []


def test_with_the_keyboard_only(browser: Any, served: Served) -> None:
    page = Page(browser, served, DESKTOP)
    page.until("state.model !== null")
    choosers: list[Any] = []
    page.page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # catching them begins here, and takes a moment
    page.tab_to("#file")
    with page.page.expect_file_chooser() as chooser:
        page.page.keyboard.press("Enter")
    chooser.value.set_files(served.photo)
    page.until("state.answer !== null && state.running === 0")

    page.tab_to("#add")
    page.page.keyboard.press("Enter")
    assert page.page.evaluate("document.activeElement.matches('.region')")
    before = page.page.evaluate("boxOf(state.regions[0])")
    for key in ("ArrowLeft", "ArrowDown", "Shift+ArrowRight", "Alt+ArrowUp"):
        page.page.keyboard.press(key)
    step = max(1, round(max(page.page.evaluate("[state.width, state.height]")) / 100))
    after = page.page.evaluate("boxOf(state.regions[0])")
    moved = [-step, step - 1, 0, step - 1]
    assert np.allclose(after, np.add(before, moved), atol=0.06)
    page.until("state.scores !== null && state.running === 0")
    assert re.fullmatch(r"Region 1: \w+ [01]\.\d\d\.", page.page.inner_text("#status"))
    assert page.page.get_attribute(".region", "aria-label").startswith("Region 1: left ")

    page.tab_to("#threshold")
    page.page.keyboard.press("Home")
    lowest = shown(page)
    page.tab_to("#list li:nth-child(2) button")
    page.page.evaluate("showAll()")  # as when an answer arrives
    assert page.page.evaluate("document.activeElement.matches('#list li:nth-child(2) button')")
    page.page.keyboard.press("Enter")
    assert page.page.evaluate("document.activeElement === nodeOf(state.regions[1])")
    page.page.keyboard.press("Delete")
    assert page.page.evaluate("document.activeElement === nodeOf(state.regions[0])")
    page.until("state.scores !== null && state.running === 0")
    page.tab_to("#threshold")
    page.page.keyboard.press("End")
    assert shown(page) <= lowest
    told = "/^\\d+ detections? with a score of at least 1\\./"
    page.until(f"{told}.test(document.querySelector('#status').textContent)")
    page.tab_to("#proposals")
    page.page.keyboard.press("End")  # only the regions that were drawn
    page.until("state.answer !== null && state.answer.proposals.method === 'boxes'")
    page.tab_to("#remove")
    page.page.keyboard.press("Enter")
    page.until("state.regions.length === 0 && state.answer === null")
    assert page.page.evaluate("document.activeElement.id") == "add"
    assert "Draw or add a region first" in page.page.inner_text("#status")
    assert page.errors == []


def test_with_a_finger_on_a_phone(browser: Any, served: Served) -> None:
    page = Page(browser, served, PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    page.open()
    page.page.tap("#draw")
    page.page.locator("#overlay").scroll_into_view_if_needed()
    box = page.page.locator("#overlay").bounding_box()
    touch = page.page.context.new_cdp_session(page.page)
    way = [("touchStart", [40]), ("touchMove", [100]), ("touchMove", [170]), ("touchEnd", [])]
    for kind, at in way:
        places = [{"x": box["x"] + place, "y": box["y"] + place} for place in at]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    page.until("state.regions.length === 1 && state.scores !== null && state.running === 0")
    wide = "document.documentElement.scrollWidth"
    assert page.page.evaluate(wide) == PHONE["width"]
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", background)[:3])) < 150  # dark
    page.page.goto(f"{served.address}docs")
    page.page.wait_for_selector("h2 >> text=/classify")
    assert page.page.evaluate(wide) == PHONE["width"]
    assert page.errors == []


def test_errors_are_told(browser: Any, served: Served, tmp_path: Path) -> None:
    page = Page(browser, served, DESKTOP)
    page.until("state.model !== null")
    (tmp_path / "broken.jpg").write_bytes(served.photo.read_bytes()[:-40])
    page.page.set_input_files("#file", tmp_path / "broken.jpg")
    page.until("!document.querySelector('#problem').hidden")
    assert "the image is truncated" in page.page.inner_text("#problem-text")
    (tmp_path / "large.jpg").write_bytes(bytes(30_000_000))
    posts = list(page.posts)
    page.page.set_input_files("#file", tmp_path / "large.jpg")
    page.until("document.querySelector('#problem-text').textContent.includes('30.0 MB')")
    assert page.posts == posts  # refused before it is sent
    page.open()
    assert page.page.is_hidden("#problem")


def test_nothing_of_an_image_stays_when_another_one_is_opened(
    browser: Any, served: Served, tmp_path: Path
) -> None:
    """The first image is decoded, and the scores of its region arrive, after the second one was opened."""
    page = Page(browser, served, DESKTOP)
    page.open()
    for name in ("red", "green"):
        pixels = np.zeros((90, 110, 3), np.uint8)
        pixels[:, :, ("red", "green").index(name)] = 255
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    late = """() => {
        const decode = window.createImageBitmap, send = window.fetch.bind(window);
        const wait = () => new Promise((done) => setTimeout(done, 400));
        const later = (value) => wait().then(() => { window.late += 1; return value; });
        window.late = 0;
        window.createImageBitmap = (file) => decode(file).then(file.name === "red.png" ? later : (it) => it);
        window.fetch = (address, options) => address === "/classify"
            ? send(address, { ...options, signal: null }).then(later) : send(address, options);
    }"""
    page.page.evaluate(late)
    page.page.click("#add")
    page.until("aborts['/classify'] !== undefined")
    page.page.set_input_files("#file", tmp_path / "red.png")
    page.page.set_input_files("#file", tmp_path / "green.png")
    page.until("late === 2 && state.answer !== null && state.running === 0")
    centre = "[...$('picture').getContext('2d').getImageData(50, 50, 1, 1).data]"
    assert page.page.evaluate(centre) == [0, 255, 0, 255]
    assert page.page.evaluate("state.regions.length === 0 && state.scores === null")

    page.page.click("#add")
    page.until("state.scores !== null && state.running === 0")
    (tmp_path / "text.png").write_text("no image")
    page.page.set_input_files("#file", tmp_path / "text.png")
    page.until("!document.querySelector('#problem').hidden && state.running === 0")
    assert page.page.is_hidden("#view")
    assert page.page.is_visible("#empty")
    assert page.page.is_disabled("#draw")
    assert page.page.is_disabled("#add")
    assert page.page.evaluate("state.regions.length") == 0
    assert page.page.is_hidden("#region-panel")
    page.page.click("#again")
    assert page.page.evaluate("document.activeElement.id") == "file"
    page.until("!document.querySelector('#problem').hidden && state.running === 0")


def test_regions_that_cannot_be_scored_are_told(browser: Any, served: Served, tmp_path: Path) -> None:
    """An image that the browser decodes and the server refuses."""
    page = Page(browser, served, DESKTOP)
    page.until("state.model !== null")
    Image.open(served.photo).save(tmp_path / "icon.ico")
    page.page.set_input_files("#file", tmp_path / "icon.ico")
    page.until("!document.querySelector('#problem').hidden && !document.querySelector('#add').disabled")
    page.page.click("#add")
    page.until("document.querySelector('#region-scores').textContent === 'There are no scores.'")
