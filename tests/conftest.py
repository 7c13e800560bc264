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
        help="folder of golden tensors with backbones/ and samplers/ inside (default: tests/golden)",
    )


@pytest.fixture
def parity_folder(request: pytest.FixtureRequest) -> Path:
    """The folder given with --parity."""
    return request.config.getoption("--parity")
