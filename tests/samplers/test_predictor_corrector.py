"""Langevin corrections: exact marginals stay as they are, on every process and after any predictor."""

from __future__ import annotations

import math

import pytest
import torch
from test_solvers import Draws, mixture, randn

from dinit.diffusion import PROCESSES, Process
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import SAMPLERS
from dinit.samplers.sde.predictor_corrector import PredictorCorrector

F64 = torch.float64


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), LinearFlow(), GVP(), VPDiscrete()], ids=str)
def test_annealed_corrector_leaves_the_exact_marginal_as_it_is(process: Process) -> None:
    """On the mixture: exact samples of a marginal stay samples of it, through 20 moves."""
    count, exact = 10_000, mixture(process)
    k = process.scales(process.time_of(torch.tensor(1.0, dtype=F64)))
    x0 = exact.sample(torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(3))
    x = k.alpha * x0 + k.sigma * randn(*x0.shape, seed=4)
    corrector = PredictorCorrector("none", "annealed", snr=0.1, corrector_steps=20)
    times = torch.stack([k.time, k.time - 1e-9])
    after = corrector.sample(exact, x, grid=times, initial_state=x, end="state", noise_source=Draws(5))
    spread = x.std(0)
    assert (after - x).abs().mean() > 0.3 * spread.mean(), "it must move"
    assert ((after.mean(0) - x.mean(0)) / spread).abs().max() < 4.5 * math.sqrt(2 / count)
    assert (after.var(0) / x.var(0) - 1).abs().max() < 0.1**2 + 4.5 * math.sqrt(4 / count)
    sides = [(v[:, 0, 0, 0] > 0).double().mean() for v in (x, after)]
    assert abs(float(sides[1] - sides[0])) < 4.5 * math.sqrt(0.5 / count)


@pytest.mark.parametrize("process", [SubVP(), VP(), VE()], ids=str)
def test_langevin_corrector_with_norms_on_many_pixels(process: Process) -> None:
    """Fitted to each sample's score its bias is of order snr² and one over the number of pixels."""
    exact = GaussianDenoiser(process, 0.3, 0.5, (3, 16, 16))
    k = process.scales(0.3)
    x = k.alpha * (0.3 + 0.5 * randn(64, 3, 16, 16, seed=1)) + k.sigma * randn(64, 3, 16, 16, seed=2)
    corrector = PredictorCorrector("none", "langevin", snr=0.1, corrector_steps=10)
    times = torch.tensor([0.3, 0.3 - 1e-9], dtype=F64)
    after = corrector.sample(exact, x, grid=times, initial_state=x, end="state", noise_source=Draws(5))
    right = math.sqrt(float(k.alpha**2 * 0.25 + k.sigma**2))
    assert abs(float(after.mean() - 0.3 * k.alpha)) < 0.02 * right
    assert abs(float(after.std()) / right - 1) < 0.02


@pytest.mark.parametrize("corrector", ["none", "langevin", "annealed"])
@pytest.mark.parametrize("process", ["vp", "sub-vp", "ve"])
@pytest.mark.parametrize("predictor", ["reverse-diffusion", "ancestral", "euler-maruyama", "none"])
def test_every_predictor_with_every_corrector(predictor: str, process: str, corrector) -> None:
    if predictor == corrector == "none":
        return
    sampler = PredictorCorrector(predictor, corrector, snr=0.1, corrector_steps=2)
    exact = GaussianDenoiser(PROCESSES.create(process), 0.3, 0.5, (3, 8, 8))
    x = sampler.sample(exact, randn(32, 3, 8, 8), 150 if predictor != "none" else 60, seed=1)
    assert bool(x.isfinite().all())
    if predictor != "none":
        assert abs(float(x.mean()) - 0.3) < 0.05
        assert abs(float(x.std()) / 0.5 - 1) < 0.08


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_registered_sampler_can_be_a_predictor(name: str) -> None:
    alone = SAMPLERS.create(name)
    both = PredictorCorrector(name, "annealed", snr=0.05, corrector_steps=2)
    assert both.claims().draws_per_step == alone.claims().draws_per_step + 2
    assert both.claims().nfe_per_step == alone.claims().nfe_per_step + 2
    x = both.sample(mixture(LinearFlow()), randn(4, 1, 1, 2), 10)
    assert bool(x.isfinite().all())
