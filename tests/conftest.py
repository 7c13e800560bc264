"""Options and fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture
def parity_folder(request: pytest.FixtureRequest) -> Path:
    """The folder given with --parity."""
    return request.config.getoption("--parity")
