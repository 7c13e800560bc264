"""Speed of the state-space backbones on a CPU: scans by PyTorch's operators and by numba's loops, and two floors.

Every row times its sides in turns, A B A B …, so that what else the machine does falls on all alike; figures are
medians, and of the process's time on its cores where there is one thread (`pairs.py`). `products` is the network's
matrix products by themselves, on tensors of their shapes; `memory` is the
bytes of the inputs and outputs of products and scans over the rate of a large copy. Errors are those of the output
in float32, relative to its largest number in float64.
Run: python benchmarks/state_space.py [--before CHECKOUT] [--out benchmarks/results/state_space_cpu.md]
CHECKOUT: a folder with an older dinit, which another process times in the same turns.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from backbones import MATCHED, cpu_name, ours, randomized
from pairs import ratio
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dinit.models.base import BACKBONES
from dinit.models.layers import scan

CPU = torch.device("cpu")
NAMES = ("dis", "diffussm", "lamamba")
BATCH = 4
Run = Callable[[], Any]


def network(name: str) -> Any:
    """A network of about DiT-S/2's size, random weights everywhere."""
    preset, options = MATCHED[name]
    cls = BACKBONES[name]
    return randomized(cls.preset(preset, **options) if preset else cls(**options), CPU, torch.float32)


def call(model: nn.Module, train: bool) -> Run:
    """A forward pass as in sampling, or a training step without its optimiser."""
    return ours(model, BATCH, 4, CPU, torch.float32, train)


@contextmanager
def loops(numba: bool) -> Any:
    """Scans in numba's loops, or in PyTorch's operators."""
    before = scan._HAS_NUMBA
    scan._HAS_NUMBA = numba and before
    try:
        yield
    finally:
        scan._HAS_NUMBA = before


def within(numba: bool, run: Run) -> Run:
    def inside() -> Any:
        with loops(numba):
            return run()

    return inside


class Products(TorchDispatchMode):
    """Notes the matrix products of a call, and the bytes that go in and come out of them and of the scans."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any]]] = []
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.calls.append((function, [_like(x) for x in args]))
            self.count(*args, out)
        return out

    def count(self, *tensors: Any) -> None:
        """Adds the bytes of these."""
        self.bytes += sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def _like(x: Any) -> Any:
    """Random numbers in the layout of x."""
    if not isinstance(x, Tensor):
        return x
    elements = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return torch.randn(elements).as_strided(x.shape, x.stride())


def floors(run: Run) -> tuple[Run, int]:
    """The products of a call by themselves, and the bytes that it must move."""
    seen = Products()
    scans: Any = None
    if scan._HAS_NUMBA:
        from dinit.models.layers import scan_numba as scans
    original = scans.scan_paths if scans else None

    def counted(*tensors: Any, **options: Any) -> Tensor:
        y = original(*tensors, **options)
        seen.count(*tensors[:6], y)
        return y

    if scans:
        scans.scan_paths = counted
    try:
        with seen:
            run()
    finally:
        if scans:
            scans.scan_paths = original

    @torch.no_grad()
    def products() -> None:
        for function, args in seen.calls:
            function(*args)

    return products, seen.bytes


def copy_rate() -> float:
    """Bytes a second that a copy of 256 MB reads and writes."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / min(times)


class Before:
    """The same call of an older dinit, in a process of its own that runs it when it is timed."""

    def __init__(self, checkout: Path, name: str, train: bool) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
        arguments = [sys.executable, __file__, "--serve", name, "--threads", str(torch.get_num_threads())]
        self.process = subprocess.Popen(
            [*arguments, *(["--train"] if train else [])],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def milliseconds(self) -> float:
        """Of one call, by that process's clock."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process with the older dinit has ended")
        return float(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(name: str, train: bool) -> None:
    """Runs the call once for every line that arrives."""
    timed = clocked(call(network(name), train))
    for _ in sys.stdin:
        print(timed(), flush=True)


def clocked(run: Run) -> Callable[[], float]:
    """Milliseconds of a call: of the process with one thread, of the clock with several."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def timed() -> float:
        start = clock()
        run()
        return 1e3 * (clock() - start)

    return timed


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each in every round, after one call."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            found[name].append(runs[name]())
    return found


def errors(model: nn.Module) -> tuple[float, float]:
    """Of PyTorch's operators and of numba's loops, against float64."""
    single = [within(numba, call(model, False))() for numba in (False, True)]
    double = copy.deepcopy(model).double()
    exact = ours(double, BATCH, 4, CPU, torch.float64)()
    return tuple(((x.double() - exact).abs().max() / exact.abs().max()).item() for x in single)  # pyright: ignore


def rows(args: argparse.Namespace) -> Any:
    """One line of the table for every backbone, forward and training step."""
    dit, rate = network("dit"), copy_rate()
    for train in (False, True):
        for name in NAMES:
            model = network(name)
            run = call(model, train)
            runs = {"dit": call(dit, train), "torch": within(False, run), "numba": within(True, run)}
            moved = 0
            if not train:
                runs["products"], moved = floors(runs["numba"])
            timed = {key: clocked(one) for key, one in runs.items()}
            old = Before(args.before, name, train) if args.before else None
            timed |= {"before": old.milliseconds} if old else {}
            turns = in_turns(timed, 3 if train else args.rounds)
            measured = {key: statistics.median(values) for key, values in turns.items()}
            if old:
                old.close()
            wrong = ("", "") if train else tuple(f"{x:.1e}" for x in errors(model))
            memory = "" if train else f"{1e3 * moved / rate:.0f}"
            cells = [f"{measured[key]:.0f}" if key in measured else "" for key in ("before", "torch", "numba")]
            products = "" if train else f"{measured['products']:.0f}"
            times = str(ratio(turns["before"], turns["numba"])) if old else ""
            against_dit = f"{measured['dit'] / measured['numba']:.2f}"
            what = f"{type(model).__name__}, {'training step' if train else 'forward'}"
            yield [what, *cells, times, products, memory, against_dit, *wrong]


def report(table: list[list[str]], args: argparse.Namespace) -> str:
    """The table in Markdown."""
    head = [
        "what", "before, ms", "PyTorch, ms", "numba, ms", "before / numba", "products, ms", "memory, ms",
        "DiT-S/2's time / numba's", "error, PyTorch", "error, numba",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head), *table]
    return "\n".join(
        [
            f"# State-space backbones on {torch.get_num_threads()} threads of {cpu_name()}",
            "",
            f"`python benchmarks/state_space.py`, torch {torch.__version__}: batch {BATCH}, float32, eager,",
            f"about 33 million parameters each, 32x32x4. Medians of {args.rounds} rounds in turns (training: 3),",
            "with one thread of the process's time; ratios with their quartiles. `before`: the code before numba's",
            "loops. Errors: against float64.",
            "`products` and `memory` are floors: the matrix products alone, and bytes over the rate of a copy.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout of an older dinit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.serve:
        serve(args.serve, args.train)
        return
    table: list[list[str]] = []
    for row in rows(args):
        table.append(row)
        if args.out:
            args.out.write_text(report(table, args), encoding="utf-8")
    print(report(table, args))


if __name__ == "__main__":
    main()
