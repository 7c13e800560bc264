"""Runs in float32 against the same in float64: no solver loses the images to rounding, whatever the noise level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import SAMPLERS, Sampler
from dinit.samplers.multistep.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.multistep.rules import Corrector, Extrapolate
from dinit.samplers.multistep.unified import Unified

F64 = torch.float64
COSINE = VPDiscrete("cosine")  # sigma / alpha is 20,000 at t = 1


class Mixture(Denoiser):
    """A mixture evaluated in float64 at the state given, and its posterior mean rounded to the state's dtype."""

    num_classes = 0

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        means = 0.5 * torch.randn(3, 1, 2, 2, generator=generator, dtype=F64)
        self.exact = MixtureDenoiser(COSINE, means, torch.full_like(means, 0.05), torch.tensor([0.3, 0.3, 0.4]))
        self.process, self.t_min = COSINE, COSINE.t_min

    def embed(self, labels: Tensor) -> Tensor:
        return self.exact.embed(labels)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        found = self.exact(x_t.double(), t, cond)
        return Denoised(x_t, found.x0.to(x_t.dtype), found.scales)


SOLVERS = [
    *(SAMPLERS.create(name) for name in ("deis", "dpm-solver-1", "dpm-solver-2", "dpm-solver-3", "ipndm", "lms")),
    *(SAMPLERS.create(name) for name in ("pndm", "ddim", "heun", "dpmpp-3m", "unipc", "auto")),
    AdamsBashforth(3, "eps"),
    ExponentialAB(4, "eps", "single-step"),
    Unified((Extrapolate("eps", 3, corrector=Corrector()),)),
]


@pytest.mark.filterwarnings("ignore:.*is inexact")
@pytest.mark.parametrize("sampler", SOLVERS, ids=str)
def test_float32_ends_where_float64_does(sampler: Sampler) -> None:
    """With eps weighed in float32 the ends differed by 1e-3 to 1 where the chain's first noise level is huge."""
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for steps in (4, 9):
        single, double = (sampler.sample(Mixture(), noise.float().to(d), steps) for d in (torch.float32, F64))
        assert single.dtype == torch.float32
        assert float((single - double).abs().max()) < 1e-5 * max(1.0, float(double.abs().max()))


def test_a_run_that_is_taken_up_again_ends_the_same() -> None:
    sampler, noise = SAMPLERS.create("deis"), torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    steps = list(sampler.iterate(Mixture(), noise, 6))
    times = [step.t for step in steps]
    rest = sampler.sample(Mixture(), noise, grid=times[2:], initial_state=steps[1].x_s, state=steps[1].state)
    assert torch.equal(rest, steps[-1].x_s)
