"""A run's health page in a browser: no errors, nothing loaded from elsewhere, whole at the width of a phone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinit.training.run.health import append_line
from dinit.training.run.page import html_page
from dinit.training.run.record import RunRecord

pytestmark = pytest.mark.usefixtures("own_charts")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package chromium)")
def test_the_page_of_a_run_opens_and_a_dead_run_is_named(tmp_path: Path) -> None:
    playwright: Any = pytest.importorskip("playwright.sync_api")
    (tmp_path / "samples").mkdir()
    Image.new("L", (64, 64), 90).save(tmp_path / "samples" / "step-00000010-ema.png")
    session = {"steps": 20, "batch_size": 4, "data": "d", "images": 8, "shape": [1, 8, 8], "classes": 0}
    session |= {"backbone": "dit", "parameters": 9, "device": "cpu", "precision": "fp32"}
    append_line(tmp_path / "events.jsonl", {"step": 0, "session": session})
    for step in range(1, 11):
        append_line(tmp_path / "health.jsonl", {"step": step, "loss": 1 / step, "gradient_norm": 1.0, "lr": 0.1})
    (tmp_path / "fresh.html").write_text(html_page(RunRecord(tmp_path, "x" * 200)), encoding="utf-8")
    dead = html_page(RunRecord(tmp_path, "a", now=time.time() - 1200))
    (tmp_path / "dead.html").write_text(dead, encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else wrong.append(one.url))
        page.goto((tmp_path / "fresh.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("svg").count() == 3
        assert page.locator("svg").first.bounding_box()["width"] > 340
        assert page.locator(".newest img").evaluate("image => image.naturalWidth") == 64
        assert not page.locator("#late").is_visible()
        page.goto((tmp_path / "dead.html").as_uri())
        assert "Nothing was written for 20 minutes" in page.locator("#late").inner_text()
        browser.close()
    assert wrong == []
