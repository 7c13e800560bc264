"""The page of `dinit app` in a browser: generate, compare, copy the command and run it, replay, stop, mistakes."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinit.cli.app import app
from dinit.pipelines.outputs.replay import replay

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + ["chromium"] * (not CHROMIUM)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
FLAGS = ("no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that is served by a process of its own, which ends with the tests."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "dinit.cli", "app", "--no-browser", "--port", "7931"]
    environment = {**os.environ, "PYTHONPATH": root, "COLUMNS": "200"}
    files = tmp_path_factory.mktemp("files")
    environment["TMPDIR"] = str(files)
    served = subprocess.Popen(
        command,
        cwd=tmp_path_factory.mktemp("served"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert served.stdout is not None
        lines = []
        for line in served.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
        else:
            pytest.fail(f"the page was not served: {''.join(lines)}")
    finally:
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 128 + signal.SIGTERM
        assert list(files.glob("dinit-app-*")) == []  # it has removed its files


class Visitor:
    """One visitor: a window of its own, whose requests are kept."""

    def __init__(self, browser: Any, address: str, width: int = 1440) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda line: self.faults.extend([line.text] * (line.type == "error")))
        self.page.goto(address)
        self.page.wait_for_function("document.querySelector('.facts')?.innerText.includes('classes')")

    def choose(self, label: str, option: str, index: int = 0) -> None:
        """Choose an option of the dropdown of this label."""
        self.page.get_by_label(label, exact=True).nth(index).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def fill(self, label: str, value: str) -> None:
        field = self.page.get_by_label(label, exact=True).first
        field.fill(value)
        field.press("Tab")

    def events(self) -> int:
        """How many events the page has sent to the server."""
        return sum("queue/join" in url for url in self.requests)

    def generate(self) -> list[str]:
        """Click, wait for the end, and return the pictures on the page."""
        before = self.run()
        self.page.locator("#generate").click()
        return self.pictures(before)

    def run(self) -> str:
        """The number of the run whose pictures are shown; "0" for none."""
        board = self.page.locator("#board .board")
        return board.get_attribute("data-run") or "0" if board.count() else "0"

    def pictures(self, before: str) -> list[str]:
        """The pictures at the end of the run after that of this number."""
        self.page.wait_for_selector(f'#board .board[data-over="1"]:not([data-run="{before}"])')
        self.page.wait_for_selector("#generate:not([disabled])")
        return self.shown()

    def shown(self) -> list[str]:
        return [one.get_attribute("src") for one in self.page.locator("#board img").all()]

    def save(self, number: int, folder: Path) -> Path:
        with self.page.expect_download() as download:
            self.page.locator(f"#save-{number}").click()
        path = folder / f"saved-{number}-{download.value.suggested_filename}"
        download.value.save_as(path)
        return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS])
        yield opened
        opened.close()


def test_a_visit(browser: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    visitor = Visitor(browser, address)
    page = visitor.page

    before = visitor.events()
    visitor.choose("Pipeline", "digits-dico")
    page.wait_for_function("document.querySelector('.facts').innerText.includes('vp-discrete')")
    assert visitor.events() == before + 1  # a second answer would undo what is chosen now
    page.locator("#no-classes").click()
    page.wait_for_function("document.querySelector('#controls .token') === null")
    visitor.choose("Classes (none: unconditional)", "3")
    page.keyboard.press("Escape")
    visitor.fill("Images per class", "3")
    visitor.fill("Steps", "6")
    first = visitor.generate()
    assert len(first) == 6  # two samplers
    assert page.locator(".card footer").first.inner_text().startswith("step 6")

    page.locator("#scrubber input[type=range]").first.fill("1")
    page.wait_for_function("document.querySelector('.card footer').innerText.startsWith('step 1')")
    noisy = visitor.shown()
    assert not set(noisy) & set(first)

    visitor.choose("Sampler", "ancestral")
    page.get_by_label("Sampler", exact=True).first.press("Tab")
    second = visitor.generate()
    assert page.locator(".card header b").all_inner_texts() == ["ancestral", "dpmpp-2m"]
    assert not set(second[:3]) & set(first)
    assert second[3:] == first[3:]  # the other sampler's pictures are the same

    page.locator("#command button[title*=opy], #command button[aria-label*=opy]").first.click()
    lines = page.evaluate("navigator.clipboard.readText()").strip().splitlines()
    assert len(lines) == 2
    saved = visitor.save(1, tmp_path)
    words = shlex.split(lines[0])
    assert words[:3] == ["dinit", "generate", "digits-dico"]
    app(args=words[1:], standalone_mode=False)
    assert replay(saved).same
    with Image.open(words[-1]) as one, Image.open(saved) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))

    visitor.fill("Steps", "0")
    page.locator("#generate").click()
    page.wait_for_selector("#status .error")
    assert page.locator("#status").inner_text() == "ancestral: steps must be at least 1, got 0"
    assert page.locator("#generate").is_enabled()

    page.locator("#controls input[type=number]").first.fill("1")
    page.get_by_role("tab", name="Replay a PNG").click()
    page.locator("#drop input[type=file]").set_input_files(str(saved))
    page.wait_for_selector("#status .same")
    assert page.locator("#status").inner_text().endswith("the same picture, every pixel.")
    assert page.get_by_label("Images per class").input_value() == "3"
    assert page.get_by_label("Steps", exact=True).first.input_value() == "6"
    assert visitor.shown() == second[:3]

    other = tmp_path / "other.png"
    Image.new("L", (8, 8)).save(other)
    page.locator("#drop input[type=file]").set_input_files(str(other))
    page.wait_for_selector("#status .error")
    assert "has no dinit manifest" in page.locator("#status").inner_text()

    assert visitor.faults == []
    foreign = [one for one in visitor.requests if not one.startswith((address, "data:", "blob:"))]
    assert foreign == []
    visitor.context.close()


def test_a_run_is_stopped_and_another_visitor_is_not_disturbed(browser: Any, address: str) -> None:
    one, two = Visitor(browser, address), Visitor(browser, address)
    for visitor in (one, two):
        visitor.fill("Images per class", "1")
    alone = two.generate()
    steps = one.page.get_by_label("Steps", exact=True).first.input_value()
    one.fill("Steps", "900")
    one.page.locator("#generate").click()
    # no wait for a visible element: every frame puts a new one in its place
    one.page.wait_for_function("document.querySelector('.card footer span')?.innerText.startsWith('step')")
    assert two.generate() == alone  # while the other runs
    assert one.page.locator("#stop").is_enabled()
    one.page.locator("#stop").click()
    one.page.wait_for_selector("#status .note")
    assert one.page.locator("#status").inner_text() == "Stopped. No further step was taken."
    one.fill("Steps", steps)
    assert one.generate() == alone
    assert one.faults == two.faults == []


def test_the_page_is_whole_at_the_width_of_a_phone(browser: Any, address: str) -> None:
    visitor = Visitor(browser, f"{address}?__theme=dark", width=390)
    page = visitor.page
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    assert page.evaluate(widths) == [390, 390]
    bar = page.locator("#generate").bounding_box()
    assert 800 < bar["y"] < bar["y"] + bar["height"] <= 900  # within reach while the controls are filled in
    visitor.fill("Images per class", "1")
    assert len(visitor.generate()) == 20
    assert page.evaluate(widths) == [390, 390]
    assert page.locator(".board img").first.bounding_box()["width"] >= 30
    top = page.locator("#result").bounding_box()["y"]
    assert -60 < top < 300  # scrolled to the pictures
    shade = page.locator("#go").evaluate("bar => getComputedStyle(bar).backgroundColor")
    assert max(map(int, re.findall(r"\d+", shade)[:3])) < 60, shade
    assert visitor.faults == []
    visitor.context.close()


def test_what_is_served_names_no_other_machine(address: str) -> None:
    import urllib.request

    with urllib.request.urlopen(address, timeout=30) as answer:
        text = io.TextIOWrapper(answer, encoding="utf-8").read()
    loaded = re.findall(r"""(?:src|href|url\()\s*=?\s*["'](https?:)?//[^"']+""", text)
    assert loaded == []
    assert "fonts.googleapis" not in text
