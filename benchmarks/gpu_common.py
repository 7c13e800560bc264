"""What the parts of gpu.py share: the setting of a run, its rows, networks of random weights, timing."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES

Run = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark.

    Attributes:
        device: What is measured.
        smoke: Sizes so small that every part ends in seconds on a CPU; the figures then mean nothing.
        rounds: Measurements of each figure.
        deadline: In the seconds of time.monotonic().
    """

    device: torch.device
    smoke: bool
    rounds: int
    deadline: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def batch(self) -> int:
        return 2 if self.smoke else 64

    def target(self, value: float | None) -> float | None:
        """A figure to reach; None in a smoke run, where figures mean nothing."""
        return None if self.smoke else value

    @property
    def compile_options(self) -> dict[str, Any]:
        """Of torch.compile: the tracing alone in a smoke run, which needs no compiler of C++."""
        return {"backend": "eager"} if self.smoke else {}

    @property
    def graph_options(self) -> dict[str, Any]:
        """Of torch.compile with CUDA graphs; in a smoke run no second tracing of what was traced as compiled."""
        if self.smoke:
            return {"disable": True}
        return {"mode": "reduce-overhead"} if self.cuda else self.compile_options


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured or checked.
        figure: What was found.
        met: Whether a check holds or a target is reached; None for a plain figure.
        target: What was aimed at, as it is shown.
    """

    what: str
    figure: str
    met: bool | None = None
    target: str = ""


@dataclass(frozen=True)
class Job:
    """A piece of a part.

    Attributes:
        what: Its name, for the rows about its failure or about the time that was over.
        run: Gives its rows, one by one.
        seconds: That it needs on a GPU, about: with less left it is not begun.
    """

    what: str
    run: Callable[[Setting], Iterator[Row]]
    seconds: float = 5.0


FIGURES: dict[str, float] = {}
"""Figures of earlier jobs that later ones are compared with, by name."""


def network(name: str, preset: str, setting: Setting, dtype: torch.dtype, **overrides: Any) -> Any:
    """A backbone of random weights, as the pipeline keeps it; its smallest preset in a smoke run.

    Args:
        name: Of the backbone.
        preset: Of its size.
        setting: Of the run.
        dtype: Of the weights.
        overrides: Arguments in place of the preset's.
    """
    family = BACKBONES[name]
    if setting.smoke:
        kept = {key: value for key, value in overrides.items() if key == "learn_sigma"}
        return prepared(lambda: family.preset("tiny", **kept), setting, dtype)
    return prepared(lambda: family.preset(preset, **overrides) if preset else family(**overrides), setting, dtype)


def prepared(make: Callable[[], nn.Module], setting: Setting, dtype: torch.dtype) -> Any:
    """A network with random weights everywhere (zeros could be faster), in the memory format of its kind.

    It is made on the device: a billion random numbers take the host half a minute.
    """
    try:
        with torch.device(setting.device):
            model = make()
    except RuntimeError:  # a constructor that mixes devices
        model = make()
    model.to(setting.device, dtype).eval()
    generator = torch.Generator(setting.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return model.to(memory_format=torch.channels_last) if getattr(model, "channels_last", False) else model  # pyright: ignore


def inputs(model: Any, batch: int, setting: Setting, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, C, H, W), one noise label, (B,) labels."""
    generator = torch.Generator().manual_seed(1)
    size = model.image_size
    x = torch.randn(batch, model.in_channels, size, size, generator=generator).to(setting.device, dtype)
    labels = torch.arange(batch) % max(1, model.num_classes)
    return x, torch.tensor([417.0], device=setting.device), labels.to(setting.device)


def forward(model: Any, batch: int, setting: Setting, dtype: torch.dtype, call: Any = None) -> Run:
    """One evaluation as in sampling: the condition is embedded before.

    Args:
        model: The backbone.
        batch: Images.
        setting: Of the run.
        dtype: Of x.
        call: What is called in place of the backbone: its compiled form.
    """
    x, t, labels = inputs(model, batch, setting, dtype)
    with torch.no_grad():
        cond = model.embed(labels)
    run = model if call is None else call
    return torch.no_grad()(lambda: run(x, t, cond))


def wait(setting: Setting) -> None:
    if setting.cuda:
        torch.cuda.synchronize(setting.device)


def milliseconds(run: Run, setting: Setting, warm_up: int = 3) -> list[float]:
    """Sorted times of `setting.rounds` calls, each waited for, after `warm_up` others (none in a smoke run)."""
    for _ in range(0 if setting.smoke else warm_up):
        run()
    found = []
    for _ in range(setting.rounds):
        wait(setting)
        start = time.perf_counter()
        run()
        wait(setting)
        found.append(1e3 * (time.perf_counter() - start))
    return sorted(found)


def shown(times: list[float]) -> str:
    """Median, and the range from the fastest to the slowest."""
    return f"{statistics.median(times):.4g} ms ({times[0]:.4g} to {times[-1]:.4g})"


def flops(run: Run) -> float:
    """Floating-point operations of a call (a multiply-add is two), in matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def peak_gigabytes(run: Run, setting: Setting) -> float | None:
    """Memory of the device at the most during a call; None on a CPU."""
    if not setting.cuda:
        return None
    wait(setting)
    torch.cuda.reset_peak_memory_stats(setting.device)
    run()
    wait(setting)
    return torch.cuda.max_memory_allocated(setting.device) / 2**30


def forget(setting: Setting) -> None:
    """Memory of the last job and compiled code are given back."""
    torch._dynamo.reset()
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()
