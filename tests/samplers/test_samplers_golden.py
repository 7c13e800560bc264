"""Samplers, step by step, against recorded runs of their published implementations, in float64.

Every state of a trajectory is compared, not only the last. `--parity DIR` takes the files from DIR/samplers (or
DIR itself); the default is the subset in tests/golden. What a file holds is read from its metadata, never from its
name. A run that no case reads is skipped with what it is and why, and listed at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden import CASES, Golden, NotCoveredError, Pairs, case_of, compare, covers
from recorded import golden_files


@covers("formula", "closed-form Gaussian mixture posterior")
def oracle(golden: Golden) -> Pairs:
    raise NotCoveredError("no run: tested in test_analytic")


@covers("formula", "exact probability-flow end points*")
def accuracy_problem(golden: Golden) -> Pairs:
    raise NotCoveredError("no run, but a problem for measuring accuracy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        files = golden_files(metafunc.config.getoption("--parity"), "samplers")
        metafunc.parametrize("golden", [Golden(path) for path in files], ids=lambda golden: golden.name)


def test_golden(golden: Golden, record_property: Callable[[str, object], None]) -> None:
    try:
        record_property("error", compare(golden))
    except NotCoveredError as reason:
        pytest.skip(f"not covered: {golden.description}: {reason}")


def test_the_shipped_files_cover_every_case() -> None:
    files = [Golden(path) for path in golden_files(Path(__file__).parents[1] / "golden", "samplers")]
    shipped = {(golden.program, case_of(golden)[0].__module__) for golden in files}
    assert shipped >= {(program, case.__module__) for program, _, case, _ in CASES}
