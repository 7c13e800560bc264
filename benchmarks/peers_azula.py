"""azula's deterministic samplers on a denoiser of dinit, each by its own loop, on its own schedules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from peer_network import F64, Network, Run, Wanted, noise_levels, prepare
from torch import Tensor

from dinit.diffusion import Denoiser

INSTALLED = find_spec("azula") is not None
ENDS = (1e-2, 3e-2)
SAMPLERS = {
    "Euler": ("EulerSampler", {}),
    "Heun": ("HeunSampler", {}),
    **{f"{n} {k}": (f"{n}Sampler", {"order": k}) for n in ("zAB", "vAB", "zEAB", "xEAB") for k in (2, 3, 4)},
}


def schedules(first: float, last: float) -> Iterator[tuple[str, Any]]:
    """(name, schedule) of azula's schedules from sigma / alpha = first to last."""
    from azula import noise

    straight = {"alpha_min": 1 / first, "sigma_min": last}
    circle = {"alpha_min": math.sqrt((1 + last**2) / (1 + first**2)), "sigma_min": last}
    yield "rectified", noise.RectifiedSchedule(**straight)
    for gamma in (0.5, 0.1):
        yield f"decay {gamma:g}", noise.DecaySchedule(**straight, gamma=gamma)
    yield "cosine", noise.CosineSchedule(**circle)
    yield "vp", noise.VPSchedule(**circle)


class PosteriorOfNetwork(torch.nn.Module):
    """What azula calls a denoiser: schedule(t) -> (alpha, sigma), and the posterior's mean at (x, t)."""

    def __init__(self, network: Network, schedule: Any) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x: Tensor, t: Tensor) -> Any:
        from azula.denoise import DiracPosterior

        alpha, sigma = (float(v) for v in self.schedule(t))
        return DiracPosterior(self.network(x, alpha, sigma))


@torch.no_grad()
def run(name: str, grid: str, schedule: Any, model: Denoiser, x: Tensor, nfe: int, denoised: bool) -> Run | None:
    """A run of nfe evaluations; None where no number of steps takes as many.

    denoised: the last evaluation gives the posterior mean at the end of azula's own loop, which returns the state.
    """
    from azula import sample

    cls, options = SAMPLERS[name]
    each = 2 if name == "Heun" else 1
    if (nfe - denoised) % each:
        return None
    network = Network(model, len(x))
    posterior = PosteriorOfNetwork(network, schedule)
    one, zero = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    start = x * (float(schedule(one)[1]) / float(model.process.scales(1.0).sigma))
    sampler = getattr(sample, cls)(posterior, **options, steps=(nfe - denoised) // each, silent=True, dtype=F64)
    alpha, sigma = schedule(sampler.timesteps)
    prepare(model.process, sigma / alpha)
    end = sampler(start)
    if denoised:
        end = posterior(end, zero).mean
    assert network.calls == nfe, (name, network.calls, nfe)
    return Run("azula", name, grid, end, tuple((sigma / alpha).tolist()), denoised)


def peers(model: Denoiser, x: Tensor, nfe: int, wanted: Wanted) -> Iterator[Run]:
    """Runs of azula's samplers; none where azula is not installed."""
    if not INSTALLED:
        return
    firsts, lasts = noise_levels(model.process, ENDS if nfe < 50 else ())
    for first, last, denoised in itertools.product(firsts, lasts, (False, True)):
        for schedule, made in schedules(first, last):
            grid = f"{schedule} {first:.4g} to {last:.4g}{' denoised' if denoised else ''}"
            for name in SAMPLERS:
                if wanted(f"azula {name}", grid) and (done := run(name, grid, made, model, x, nfe, denoised)):
                    yield done
