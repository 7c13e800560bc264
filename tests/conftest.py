"""Options and fixtures for all tests."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before any test module imports diffusers or torchvision

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity",
        metavar="DIR",
        type=Path,
        default=GOLDEN,
        help="folder of golden tensors, or one with backbones/ and samplers/ inside (default: tests/golden)",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the golden files that no case reads, by what they hold."""
    reasons = {
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    missed = sorted(reason for reason in reasons if reason.startswith("not covered: "))
    if missed:
        terminalreporter.section("golden files that are not covered")
        for reason in missed:
            terminalreporter.write_line(reason.removeprefix("not covered: "))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first: the longest tests, which at the end would keep one process busy and the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collections of a run and of the interpreter need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def parity_folder(request: pytest.FixtureRequest) -> Path:
    """The folder given with --parity."""
    return request.config.getoption("--parity")


@pytest.fixture(scope="session", autouse=True)
def one_chart_of_a_kind() -> Iterator[None]:
    """Charts of runs' pages are drawn once for each kind of data: a third of a short run's time is drawing.

    Modules that look at charts use the fixture `own_charts`.
    """
    from dinit.training.run import page

    page.chart, honest = _drawn_once(page.chart), page.chart
    yield
    page.chart = honest


@pytest.fixture
def own_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chart is drawn, with its own data."""
    from dinit.training.run import charts, page

    monkeypatch.setattr(page, "chart", charts.chart)


def _drawn_once(chart: Callable[..., str]) -> Callable[..., str]:
    """The chart of the first data of a kind: as many lines and marks, few points or many, finite, positive."""
    drawn: dict[tuple[Any, ...], str] = {}

    def of_its_kind(
        name: str, lines: Sequence[Any], label: str, description: str, marks: Sequence[float], linear: bool
    ) -> str:
        values = [value for line in lines for _, value in line.points]
        few = tuple(min(len(line.points), 2) for line in lines)
        kind = (name, few, len(marks), linear, all(map(math.isfinite, values)), min(values, default=0.0) > 0)
        if kind not in drawn:
            drawn[kind] = chart(name, lines, label, description, marks, linear)
        return drawn[kind]

    return of_its_kind
