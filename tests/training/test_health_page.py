"""A run's health page: its numbers, its charts by their points, its states, and when it is written."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dinit.training.run import page as module
from dinit.training.run.charts import MOST, Line, chart, smoothed, thinned
from dinit.training.run.health import BINS, append_line
from dinit.training.run.page import HealthPage, write_page

pytestmark = pytest.mark.usefixtures("own_charts")
EVIL = '<script>alert("1")</script>&'
OUTSIDE = re.compile(r"(?:src|href|url\()\s*=?\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)


class Parsed(HTMLParser):
    """Tags that are open, text by tag, and the attributes of every tag."""

    EMPTY = ("meta", "link", "img", "path", "use", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.tiles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)
        if self.open and self.open[-1] in ("dt", "dd"):
            self.tiles.append(data)


def report(step: int, **more: Any) -> dict[str, Any]:
    by_noise = [None, *(0.1 * k + 1 / step for k in range(1, BINS))]
    entry = {"step": step, "loss": 1 / step, "lr": 1e-3, "images_per_second": 80.0, "gradient_norm": 2.0 + step % 3}
    return {**entry, "skipped_steps": 0, "seconds": 0.4 * step, "loss_by_noise": by_noise, **more}


SESSION = {
    "began": 0.0,
    "steps": 2000,
    "batch_size": 32,
    "data": "folder",
    "images": 640,
    "shape": [3, 28, 32],
    "classes": 10,
    "backbone": "dit",
    "parameters": 1_234_567,
    "device": "cpu, 2 threads",
    "processes": 1,
    "precision": "fp32",
}


def run(folder: Path, reports: list[dict[str, Any]], events: list[dict[str, Any]], previews: int = 2) -> Path:
    """A run's folder."""
    (folder / "samples").mkdir()
    for k in range(previews):
        Image.new("L", (8, 8), 40 * k).save(folder / "samples" / f"step-{100 * k:08d}-ema.png")
        both = {"mean": -0.1 * k, "std": 1 - 0.1 * k}
        append_line(folder / "health.jsonl", {"step": 100 * k, "samples": both, "data": {"mean": 0.0, "std": 0.5}})
    for entry in reports:
        append_line(folder / "health.jsonl", entry)
    for event in events:
        append_line(folder / "events.jsonl", event)
    return folder


def drawn(folder: Path, name: str = "mine") -> tuple[str, Parsed]:
    write_page(folder, name)
    text = (folder / "health.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert parsed.open == []
    assert not OUTSIDE.search(text)
    assert text.count("<svg") == text.count("</svg>")
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)  # well-formed
    identities = [tag["id"] for _, tag in parsed.tags if "id" in tag]
    assert len(identities) == len(set(identities))
    return text, parsed


def test_figures_of_the_page_are_those_of_the_files(tmp_path: Path) -> None:
    reports = [report(step) for step in range(100, 1001, 100)]
    text, parsed = drawn(run(tmp_path, reports, [{"step": 0, "session": SESSION}]))
    assert "step 1,000 of 2,000 (50 %)" in text
    tiles = dict(zip(parsed.tiles[::2], parsed.tiles[1::2], strict=True))
    loss = np.mean([1 / step for step in (800, 900, 1000)])
    assert tiles == {
        "time left": "7 min",  # 1,000 steps of 0.4 s
        "elapsed": "7 min",
        "images/s": "80",
        "loss, smoothed": f"{loss:.4g}",
        "epochs": "50.0",
        "skipped steps": "0",
    }
    assert (
        "640 images of folder, 32×28×3 · 10 classes · dit, 1.23 million parameters · cpu, 2 threads, fp32" in text
    )
    rows = [parsed.cells[k : k + 6] for k in range(0, len(parsed.cells), 6)]
    assert [row[0] for row in rows] == [f"{step:,}" for step in range(1000, 99, -100)]
    lines = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    for row, line in zip(rows, [line for line in reversed(lines) if "loss" in line], strict=True):
        keys = ("loss", "gradient_norm", "lr", "images_per_second")
        assert [float(value) for value in row[1:5]] == pytest.approx([line[key] for key in keys], rel=1e-3)


def test_newest_previews_come_first_and_inside_the_page(tmp_path: Path) -> None:
    text, parsed = drawn(run(tmp_path, [], [], previews=20))
    links = [str(tag["href"]) for name, tag in parsed.tags if name == "a"]
    steps = [int(link.split("-")[1]) for link in links]
    assert steps == sorted(steps, reverse=True)
    assert (len(steps), steps[0], steps[-1]) == (12, 1900, 0)
    assert text.count('src="data:image/png;base64,') == 12
    assert "step 1,900, averaged weights" in text


def test_many_large_previews_are_shown_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EMBEDDED", 10)
    text, _ = drawn(run(tmp_path, [], []))
    assert 'src="samples/step-00000100-ema.png"' in text


def test_names_are_escaped(tmp_path: Path) -> None:
    session = {**SESSION, "data": EVIL, "device": EVIL, "backbone": EVIL}
    events = [
        {"step": 0, "session": session},
        {"step": 3, "warning": EVIL},
        {"step": 4, "state": "failed", "reason": EVIL},
    ]
    (tmp_path / "recipe.yaml").write_text("schedule: {kind: '<script>alert(1)', warmup_steps: 3}\n")
    text, parsed = drawn(run(tmp_path, [report(5)], events), EVIL)
    assert "<script>alert" not in text
    assert "script" not in [name for name, _ in parsed.tags]  # ended: not loaded again
    assert text.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;") == 7


@pytest.mark.parametrize(
    ("events", "word", "alive"),
    [
        ([], "end not recorded", False),
        ([{"step": 0, "session": SESSION}], "running", True),
        ([{"step": 0, "session": SESSION}, {"step": 9, "state": "finished", "reason": ""}], "finished", False),
        ([{"step": 0, "session": SESSION}, {"step": 9, "state": "stopped", "reason": "by"}], "stopped", False),
        ([{"step": 0, "session": SESSION}, {"step": 9, "state": "diverged", "reason": "inf!"}], "inf!", False),
        ([{"step": 9, "state": "stopped", "reason": ""}, {"step": 9, "session": SESSION}], "running", True),
    ],
)
def test_a_page_is_loaded_again_while_its_run_is_alive(
    tmp_path: Path, events: list[dict[str, Any]], word: str, alive: bool
) -> None:
    text, parsed = drawn(run(tmp_path, [report(9)], events))
    assert word in text
    assert ("script" in [name for name, _ in parsed.tags]) == alive
    assert ('http-equiv="refresh"' in text) == alive


def test_a_finished_run_of_an_earlier_version(tmp_path: Path) -> None:
    old = {key: value for key, value in report(10).items() if key != "seconds"}
    folder = run(tmp_path, [old], [])
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "training.json").write_text("{}")
    (folder / "recipe.yaml").write_text("training: {steps: 10, batch_size: 4}\ndata: {name: digits}\n")
    text, _ = drawn(folder)
    assert "finished" in text
    assert "step 10 of 10 (100 %)" in text or "step 100 of 10" in text
    assert "digits" in text


def test_an_empty_folder_has_a_page(tmp_path: Path) -> None:
    text, _ = drawn(tmp_path)
    assert "None has been drawn yet" in text
    (tmp_path / "recipe.yaml").write_text("training: {sample_every: 0}")
    assert "training.sample_every is 0" in drawn(tmp_path)[0]


def test_faults_are_on_the_page(tmp_path: Path) -> None:
    reports = [report(5, skipped_steps=2), report(6, loss=None, gradient_norm=None, skipped_steps=3)]
    warnings = [{"step": k, "warning": f"the loss of step {k} is high"} for k in range(1, 8)]
    text, _ = drawn(run(tmp_path, reports, [{"step": 0, "session": SESSION}, *warnings]))
    assert "3 steps were skipped" in text
    assert [k for k in range(1, 8) if f"step {k} is high" in text] == [3, 4, 5, 6, 7]
    assert "2 earlier warnings" in text
    assert "not finite" in text


def test_scores_of_evaluations_during_training_are_a_table(tmp_path: Path) -> None:
    line = {"step": 7000, "samples": 512, "metrics": {"fid": 12.345, "class_accuracy": 0.9}}
    append_line(tmp_path / "evaluations.jsonl", line)
    assert drawn(tmp_path)[1].cells == ["7,000", "512", "12.35", "0.9"] or drawn(tmp_path)[1].cells[2] == "12.34"


def points_of(svg: str, identity: str) -> list[tuple[float, float]]:
    """Places of a line's points in the SVG."""
    (group,) = [one for one in ElementTree.fromstring(svg).iter() if one.get("id") == identity]
    (path,) = [one.get("d") for one in group.iter() if one.get("d")]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path or "")]


@pytest.mark.parametrize(
    ("values", "scale", "linear"),
    [
        ([1.0, 0.1, 0.5, 0.01], math.log, False),
        ([1.0, 0.9, 0.5, 0.6], float, False),
        ([1.0, 0.1, 0.5, 0.01], float, True),
        ([1.0, -0.1, 0.5, 0.01], float, False),
        ([3.0, 3.0, 3.0, 3.0], float, False),
    ],
)
def test_points_are_drawn_at_their_values(values: list[float], scale: Any, linear: bool) -> None:
    steps = [10.0, 20.0, 40.0, 90.0]
    svg = chart("a", [Line(list(zip(steps, values, strict=True)), "x")], "loss", "the loss", linear=linear)
    found = points_of(svg, "a-line-0")
    x, y = np.array(found).T
    assert np.corrcoef(x, steps)[0, 1] == pytest.approx(1)
    if len(set(values)) > 1:
        slope, start = np.polyfit([scale(value) for value in values], y, 1)
        assert slope < 0  # up is more
        assert y == pytest.approx([slope * scale(value) + start for value in values], abs=1e-3)
    assert all(0 < place < 360 for place in x)
    assert all(0 < place < 209 for place in y)
    texts = [one.text for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]
    assert {"loss", "optimiser steps"} <= set(texts)
    ticks = [text for text in texts if text and re.fullmatch(r"−?[\d.,e-]+", text)]
    assert len(ticks) >= 6  # both axes have numbers


@pytest.mark.parametrize("values", [(0.2, 0.9), (1e-3, 3e5), (2.1, 8.9), (1e-9, 1e9), (0.5, 0.51)])
def test_axes_have_three_to_seven_numbers(values: tuple[float, float]) -> None:
    svg = chart("a", [Line([(0, values[0]), (9, values[1])], "x")], "y", "d")
    texts = [(one.text or "", one) for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]
    vertical = [text for text, one in texts if "text-anchor: end" in one.get("style", "")]
    assert 3 <= len(vertical) <= 8


def test_long_runs_are_thinned_and_keep_their_last_point() -> None:
    points = [(float(k), 1.0) for k in range(12_345)]
    kept = thinned(points)
    assert MOST / 2 < len(kept) <= MOST
    assert kept[-1] == points[-1]
    assert thinned([]) == []


def test_smoothing_is_a_mean_of_neighbours_on_both_sides() -> None:
    points = [(k, float(k)) for k in range(300)]
    made = smoothed(points)
    assert [step for step, _ in made] == list(range(300))
    assert [value for _, value in made[:290]] == pytest.approx(list(range(290)))  # a straight line stays
    rng = np.random.default_rng(0)
    noisy = smoothed([(k, float(value)) for k, value in enumerate(rng.normal(size=300))])
    assert np.std([value for _, value in noisy[20:]]) == pytest.approx(1 / math.sqrt(21), rel=0.5)


def test_pages_take_a_hundredth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked every second for 1,000 s, a page that takes 2 s is drawn at 30 s and then every 200 s."""
    now, times = [0.0], []

    def draw(folder: Path, name: str) -> None:
        times.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(module, "write_page", draw)
    page = HealthPage(tmp_path, "a", clock=lambda: now[0])
    page.write(now=True)
    while now[0] < 1000:
        page.write()
        now[0] += 1.0
    assert times[0] == 0
    gaps = np.diff(times)
    assert min(gaps) >= 200
    assert max(gaps) <= 205
