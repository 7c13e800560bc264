"""Several processes that find each other as launched ones do, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LIMIT = 200.0  # seconds for processes to end by themselves
STARTED: list[BaseProcess] = []  # all that tests have started: conftest.py ends what is left of them

ROOT = Path(__file__).parents[2]
# What a run imports at its first use: in each child, that takes longer than sixty steps of a tiny network.
_LATER = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("data", "models", "samplers")
    for path in sorted((ROOT / "dinit" / package).rglob("[a-z]*.py"))
    if "triton" not in path.name
]
_PRELOAD = [
    "dinit.pipelines.train",
    "dinit.pipelines.outputs.sets",
    "dinit.pipelines.weights.encode",
    "dinit.training.recipe.checks",
    "dinit.training.run.page",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "sklearn.datasets",
    *_LATER,
]


def start(processes: int, function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """Starts function(*arguments) in each of several ranks, as torchrun would, without its seconds of imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [(rank, processes, port, function, arguments) for rank in range(processes)]
    children = [context.Process(target=_rank, args=one) for one in given]
    for child in children:
        child.start()
    STARTED.extend(children)
    return children


def join(children: Iterable[BaseProcess], seconds: float = LIMIT) -> None:
    """Waits until all have ended. AssertionError, and they are killed, where one is still there after `seconds`."""
    children, latest = list(children), time.monotonic() + seconds
    for child in children:
        child.join(max(latest - time.monotonic(), 0.01))
    late = [child.pid for child in children if child.is_alive()]
    kill(children)
    assert not late, f"processes {late} had not ended after {seconds:.0f} s"


def wait_for(reached: Callable[[], bool], children: Iterable[BaseProcess] = (), seconds: float = LIMIT) -> None:
    """Waits until `reached`. AssertionError where a child has ended before that, or after `seconds`."""
    children, latest = list(children), time.monotonic() + seconds
    while not reached():
        ended = [child.exitcode for child in children if not child.is_alive()]
        assert not ended or reached(), f"processes ended with exit codes {ended} before what was waited for"
        assert time.monotonic() < latest, f"what was waited for had not come after {seconds:.0f} s"
        time.sleep(0.005)


def kill(children: list[BaseProcess]) -> None:
    """SIGKILL to all of them."""
    for child in children:
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
    for child in children:
        child.join(30)


def _rank(rank: int, processes: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    multiprocessing.set_start_method("fork", force=True)  # as launched processes have it, for readers of data
    os.environ["OMP_NUM_THREADS"] = "1"  # or Accelerate chooses another number for several processes than for one
    torch.set_num_threads(1)
    if processes > 1:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), **place})
    function(*arguments)
