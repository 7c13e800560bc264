"""What is float32 in half precision is float32: state and times, angles of times and positions, decays, norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.base import BACKBONES, Backbone

FORMS = {"autocast-bf16": torch.bfloat16, "autocast-fp16": torch.float16, "weights-bf16": torch.bfloat16}
# Angles of times and positions, noise levels, and decays of recurrences: half precision has neither 999 nor 0.1234.
EXACT = ("cos", "sin", "exp", "log", "cumsum", "softplus")
NORMS = ("layer_norm", "group_norm", "rms_norm")


class Calls(TorchFunctionMode):
    """Records the calls of some functions with their results."""

    def __init__(self) -> None:
        super().__init__()
        self.exact: list[tuple[str, torch.dtype]] = []
        self.norms: list[tuple[Callable[..., Tensor], Any, Any, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__.strip("_")
        if name in EXACT and isinstance(args[0], Tensor):
            self.exact.append((name, args[0].dtype))
        if name in NORMS:
            self.norms.append((func, args, kwargs or {}, result.clone()))  # which may be written over
        return result


def network(name: str) -> Backbone:
    """Random weights everywhere."""
    made = BACKBONES[name].preset("tiny").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return made


@contextmanager
def half(made: nn.Module, form: str) -> Iterator[None]:
    """The network in half precision, by its weights or by autocast."""
    if form.startswith("weights"):
        made.to(FORMS[form])
        yield
    else:
        with torch.autocast("cpu", FORMS[form]):
            yield


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_float32_stays(name: str, form: str) -> None:
    made = network(name)
    times: list[torch.dtype] = []
    made.register_forward_pre_hook(lambda module, given: times.append(given[1].dtype))
    denoiser = BackboneDenoiser(made, PROCESSES.create("vp-discrete"), PARAMETERIZATIONS.create("epsilon"))
    x = torch.randn(
        2, made.in_channels, made.image_size, made.image_size, generator=torch.Generator().manual_seed(1)
    )
    seen: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []
    for module in made.modules():
        if "Norm" in type(module).__name__:
            module.register_forward_hook(lambda module, given, out: seen.append((module, given, out)))
    with half(made, form):
        cond = denoiser.condition([0, 1], 2)
        with Calls() as calls:
            found = denoiser(x, 0.5, cond)
    assert (found.x0.dtype, found.eps.dtype) == (torch.float32, torch.float32)
    assert times == [torch.float32]
    assert {dtype for _, dtype in calls.exact} <= {torch.float32, torch.float64, torch.complex64}, set(calls.exact)
    assert calls.norms or seen
    for func, args, kwargs, result in calls.norms:
        check(func(*map(double, args), **{key: double(value) for key, value in kwargs.items()}), result)
    for module, given, out in list(seen):  # the copies call the hooks too
        check(copy.deepcopy(module).double()(*map(double, given)), out)


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def check(exact: Tensor, result: Tensor) -> None:
    """One rounding to the result's dtype, and float32's own: the statistics are not rounded to half precision."""
    step = torch.finfo(result.dtype).eps
    torch.testing.assert_close(result.double(), exact, rtol=0.51 * step + 1e-5, atol=1e-4 * float(exact.std()))
