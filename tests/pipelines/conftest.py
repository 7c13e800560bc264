"""Processes that a test started and did not end, because it failed, are ended after it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest
import ranks


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    yield
    ranks.kill([*ranks.STARTED, *multiprocessing.active_children()])
    ranks.STARTED.clear()
