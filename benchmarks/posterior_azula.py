"""azula's posterior methods on a recorded problem, each by its own loop on its variance-preserving schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from posterior_problem import Case
from torch import Tensor

from dinit.diffusion import PROCESSES, Denoiser, Scales
from dinit.models import GaussianMixture

INSTALLED = find_spec("azula") is not None


def peers(case: Case, evaluations: int, seed: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, run) of every method; none where azula is not installed. Samples are in the order of the rows."""
    if not INSTALLED:
        return
    from azula import guidance, sample
    from azula.linalg.covariance import FullCovariance, IsotropicCovariance

    law = case.posteriors
    several = GaussianMixture(law.weights[case.rows], law.means[case.rows], law.covariances, case.prior.shape)
    prior, y, a, variance = _azula(case.prior), case.y[case.rows], case.a, case.noise_std**2

    def forward(x: Tensor) -> Tensor:
        return x @ a.T

    def run(sampler: Callable[..., Any], *wrapped: Any, **options: Any) -> Callable[[], Tensor]:
        def go() -> Tensor:
            torch.manual_seed(seed)
            made = sampler(*wrapped, **options, steps=evaluations, silent=True, dtype=torch.float64)
            return made(torch.randn(len(y), a.shape[1], dtype=torch.float64))

        return go

    ddim, ddpm = sample.DDIMSampler, sample.DDPMSampler
    for name, sampler in (("ddim", ddim), ("ddpm", ddpm)):
        yield f"oracle+{name}", run(sampler, _azula(several))
        for iterations in (5, 20) if name == "ddpm" else (5,):
            noise = IsotropicCovariance(variance)
            made = guidance.MMPSDenoiser(prior, y, forward, noise, iterations=iterations)
            yield f"mmps{iterations}+{name}", run(sampler, made)
    yield "tmpd+ddpm", run(ddpm, guidance.TMPDenoiser(prior, y, forward, variance))
    yield "diffpir+ddpm", run(ddpm, guidance.DiffPIRDenoiser(prior, y, forward, variance))
    values, vectors = torch.linalg.eigh(case.prior.covariance)
    full = guidance.JFPSDenoiser(
        prior, y, forward, IsotropicCovariance(variance), FullCovariance(vectors, values), iterations=20
    )
    yield "jfps-full20+ddpm", run(ddpm, full)
    inverse = torch.linalg.pinv(a)
    for eta in (0.0, 1.0):
        yield f"pgdm-eta{eta:g}", run(guidance.PGDMSampler, prior, y, forward, lambda v: v @ inverse.T, eta=eta)
    yield "dps-rows", run(_dps_of_rows(guidance.DPSSampler), prior, y, forward)
    yield "tds", lambda: _tds(case, prior, evaluations, seed)


def _tds(case: Case, prior: Any, evaluations: int, seed: int) -> Tensor:
    """A population of particles for each measurement."""
    from azula import guidance

    torch.manual_seed(seed)
    found = []
    for i, y in enumerate(case.y):

        def twist(x_hat: Tensor, ratio: Any = None, y: Tensor = y) -> Tensor:
            variance = case.noise_std**2 + ratio**2 / (1 + ratio**2)
            return -((y - x_hat @ case.a.T) ** 2) / (2 * variance)

        sampler = guidance.TDSSampler(prior, twist, steps=evaluations, silent=True, dtype=torch.float64)
        count = int((case.rows == i).sum())
        found.append(sampler(torch.randn(count, case.a.shape[1], dtype=torch.float64)))
    return torch.cat(found)


def _dps_of_rows(base: type) -> type:
    """azula's DPS with the distance of each row, where its own has one norm for the whole batch."""

    class Rows(base):
        def step(self, x_t: Tensor, t: Tensor, s: Tensor, **options: Any) -> Tensor:
            # The gradient of the sum of rows' norms: one row at a time would give the same.
            whole = torch.linalg.vector_norm
            try:
                torch.linalg.vector_norm = lambda error: whole(error, dim=-1).sum()
                return super().step(x_t, t, s, **options)
            finally:
                torch.linalg.vector_norm = whole

    return Rows


def _azula(law: GaussianMixture) -> Any:
    from azula.denoise import DiracPosterior
    from azula.noise import VPSchedule

    exact: Denoiser = law.denoiser(PROCESSES.create("vp"))

    class Exact(torch.nn.Module):
        schedule = VPSchedule()

        def forward(self, x: Tensor, t: Tensor) -> Any:
            alpha, sigma = self.schedule(t.double())
            blank = torch.zeros((), dtype=torch.float64)
            scales = Scales(blank, alpha.reshape(()), sigma.reshape(()), blank, blank)
            return DiracPosterior(exact(x, scales, exact.condition(None, len(x))).x0)

    return Exact()
