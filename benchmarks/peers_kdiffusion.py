"""k-diffusion's deterministic samplers on a denoiser of dinit, each by its own loop, on its own lists of sigmas."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any
from unittest.mock import MagicMock

import torch
from peer_network import F64, Network, Run, Wanted, noise_levels, prepare
from torch import Tensor

import dinit.models  # noqa: F401  (makes torchvision, which it imports, importable where its operators do not load)
from dinit.diffusion import Denoiser

ENDS = (1e-2, 3e-2, 0.1)
TWO_A_STEP = ("heun", "dpm_2", "dpmpp_2s", "dpmpp_sde")


def sampling() -> Any:
    """The module k_diffusion.sampling; None where it or something that it imports is not installed.

    The package's own __init__ imports networks and their many dependencies, so it is not run.
    """
    spec = PathFinder.find_spec("k_diffusion")
    if spec is None:
        return None
    sys.modules.setdefault("k_diffusion", module_from_spec(spec))
    # Of its likelihood and its Brownian noise, which are not run here.
    missing = {name: MagicMock() for name in ("torchdiffeq", "torchsde") if find_spec(name) is None}
    sys.modules.update(missing)
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError:
        return None
    finally:
        for name in missing:
            del sys.modules[name]


K = sampling()
INSTALLED = K is not None


def _quiet(_: Any, __: Any) -> float:
    return 0.0


def samplers() -> dict[str, Callable[..., Tensor]]:
    """name -> sampler(network, x, sigmas): those that put no noise back, and the others at eta = 0."""
    still = {"eta": 0.0, "noise_sampler": _quiet}
    given: dict[str, tuple[Any, dict[str, Any]]] = {
        **{name: (getattr(K, f"sample_{name}"), {}) for name in ("euler", "heun", "dpm_2", "dpmpp_2m")},
        **{f"lms {k}": (K.sample_lms, {"order": k}) for k in (2, 3, 4)},
        "dpmpp_2s": (K.sample_dpmpp_2s_ancestral, still),
        "dpmpp_sde": (K.sample_dpmpp_sde, still),
        "dpmpp_2m_sde": (K.sample_dpmpp_2m_sde, still),
        "dpmpp_2m_sde heun": (K.sample_dpmpp_2m_sde, {**still, "solver_type": "heun"}),
        "dpmpp_3m_sde": (K.sample_dpmpp_3m_sde, still),
    }

    def bind(sample: Any, options: dict[str, Any]) -> Callable[..., Tensor]:
        return lambda network, x, sigmas: sample(network, x, sigmas, disable=True, **options)

    return {name: bind(sample, options) for name, (sample, options) in given.items()}


def sigma_lists(steps: int, first: float, last: float) -> Iterator[tuple[str, Tensor]]:
    """(name, steps decreasing sigmas and 0) of k-diffusion's lists from first to last."""
    for rho in (5.0, 7.0):
        yield f"karras {rho:g}", K.get_sigmas_karras(steps, last, first, rho)
    yield "exponential", K.get_sigmas_exponential(steps, last, first)
    for rho in (0.7, 1.5):
        yield f"polyexponential {rho:g}", K.get_sigmas_polyexponential(steps, last, first, rho)
    beta_d = 2 * (math.log1p(first**2) - 0.1)  # first is the sigma at t = 1
    t = (math.sqrt(0.01 + 2 * beta_d * math.log1p(last**2)) - 0.1) / beta_d  # last is the sigma at t
    yield "vp", K.get_sigmas_vp(steps, beta_d, 0.1, t)


@torch.no_grad()
def run(name: str, grid: str, sampler: Any, sigmas: Tensor, model: Denoiser, x: Tensor, nfe: int) -> Run | None:
    """A run of nfe evaluations from the state x at t = 1, scaled to the first sigma; None if it took others."""
    network = Network(model, len(x))
    prepare(model.process, sigmas)
    start = x * (float(sigmas[0]) / float(model.process.scales(1.0).sigma))
    end = sampler(lambda y, sigma: network(y, 1.0, float(sigma[0])), start, sigmas.to(F64))
    closed = float(sigmas[-1]) == 0 and "lms" not in name  # LMS extrapolates over the last step as well
    levels = tuple(sigmas.tolist()[:-1] if closed else sigmas.tolist())
    return Run("k-diffusion", name, grid, end, levels, closed) if network.calls == nfe else None


def peers(model: Denoiser, x: Tensor, nfe: int, wanted: Wanted) -> Iterator[Run]:
    """Runs of k-diffusion's samplers; none where it is not installed.

    A list of sigmas ends at 0, as k-diffusion makes it, or at the one before ('open') where a sampler of two
    evaluations a step would otherwise not take this number of them.
    """
    if not INSTALLED:
        return
    firsts, lasts = noise_levels(model.process, ENDS if nfe < 50 else ())
    for first, last in itertools.product(firsts, lasts):
        for name, sampler in samplers().items():
            two, span = name in TWO_A_STEP, f"{first:.4g} to {last:.4g}"
            opened = two and nfe % 2 == 0
            steps = nfe // 2 + 1 if two else nfe
            for spacing, sigmas in sigma_lists(steps, first, last):
                grid = f"{spacing} {span}{' open' if opened else ''}"
                if wanted(f"k-diffusion {name}", grid):
                    done = run(name, grid, sampler, sigmas[:-1] if opened else sigmas, model, x, nfe)
                    assert done, f"{name} did not take {nfe} evaluations"
                    yield done
        if wanted("k-diffusion dpm_fast", f"{first:.4g} to {last:.4g}"):
            yield from _fast(model, x, nfe, first, last)


def _fast(model: Denoiser, x: Tensor, nfe: int, first: float, last: float) -> Iterator[Run]:
    """dpm_fast, which plans its own sigmas and stops at the last; with a posterior mean there, or without."""
    for denoised in (False, True):

        def fast(network: Any, y: Tensor, sigmas: Tensor, denoised: bool = denoised) -> Tensor:
            end = K.sample_dpm_fast(network, y, last, first, nfe - denoised, disable=True, noise_sampler=_quiet)
            return network(end, end.new_full((len(end),), last)) if denoised else end

        grid = f"{first:.4g} to {last:.4g}{' denoised' if denoised else ''}"
        if done := run("dpm_fast", grid, fast, torch.tensor([first], dtype=F64), model, x, nfe):
            yield replace(done, levels=())
