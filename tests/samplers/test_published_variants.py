"""Options that reproduce published variants: what they equal where their noise is off, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from golden import LearnedRange
from torch import Tensor

from dinit.conformance import check_distribution
from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import NoiseSource, Sampler
from dinit.samplers.ode.ddim import DDIM, ancestral_std
from dinit.samplers.ode.euler import Euler
from dinit.samplers.sde.ddpm import DDPM
from dinit.samplers.sde.dpmpp_sde import DPMpp2MSDE
from dinit.samplers.sde.euler_maruyama import EulerMaruyama
from dinit.samplers.sde.predictor_corrector import PredictorCorrector, renoised

TIMES = torch.linspace(0.9, 0.1, 6, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("process", [VP(), EDM(), LinearFlow()], ids=str)
@pytest.mark.parametrize(
    ("ours", "known"),
    [
        (EulerMaruyama("noise-level", 0.0), DDIM()),
        (EulerMaruyama("t", 0.0), Euler()),
        (DPMpp2MSDE(0.0, order=1, prediction="eps"), DDIM()),
    ],
    ids=repr,
)
def test_without_noise(ours: Sampler, known: Sampler, process) -> None:
    model, x = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2)), randn(3, 1, 2, 2)
    assert ours.claims().draws_per_step == 0
    runs = [s.sample(model, x, grid=TIMES, initial_state=x, end="state") for s in (ours, known)]
    assert torch.allclose(*runs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "sampler",
    [EulerMaruyama("noise-level"), DPMpp2MSDE(prediction="eps"), PredictorCorrector(corrector="renoising")],
    ids=repr,
)
def test_the_distribution(sampler: Sampler) -> None:
    right, figure = check_distribution(sampler, PROCESSES.create("vp"), True)
    assert right, figure


def test_renoising_keeps_a_gaussian_to_first_order() -> None:
    """From the exact marginal N(0, a² v + s²), the part that is off is of the order of snr to the fourth."""
    model = GaussianDenoiser(VP(), 0.0, 0.5, (1,))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    k, off = VP().scales(0.4), []
    total = k.alpha**2 * 0.25 + k.sigma**2
    for snr in (0.1, 0.05):
        gain = [
            renoised(model(torch.ones(1, 1, dtype=torch.float64), k, model.condition(None, 1)), z, k, snr)
            for z in (zero, zero + 1)
        ]
        kept, fresh = gain[0], gain[1] - gain[0]
        off.append(abs(float(kept**2 * total + fresh**2 - total)))
    assert off[1] < off[0] / 12
    assert off[0] < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: EulerMaruyama("u"), "'t' or 'noise-level'"),  # type: ignore[arg-type]
        (lambda m, x: EulerMaruyama("noise-level").sample(m, x, 5), "infinite at the run's first time"),
        (lambda m, x: DPMpp2MSDE(prediction="eps").sample(m, x, 5), "infinite from alpha = 0"),
        (lambda m, x: DPMpp2MSDE(variant="heun", prediction="eps"), "'midpoint' only"),
        (lambda m, x: PredictorCorrector(corrector="renoising", snr=0.6), "below 1/2"),
        (lambda m, x: DDPM("learned").sample(m, x, 5), "needs a network that learned its variance"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(GaussianDenoiser(LinearFlow(), 0.3, 0.5, (1, 2, 2)), randn(2, 1, 2, 2))


def test_a_variance_without_bounds_is_the_channels_own() -> None:
    """One step from a state: what is added to the mean is exp(v / 2) z."""
    model = LearnedRange(GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 2)), centre=-2.0, width=0.5)
    x, t = randn(2, 1, 2, 2), torch.tensor([0.6, 0.5], dtype=torch.float64)
    ends = [DDPM(v).sample(model, x, grid=t, initial_state=x, end="state") for v in ("learned", "fixed-small")]  # type: ignore[arg-type]
    v = -2.0 + 0.45 * torch.sin(2 * x + VP().noise_label(VP().scales(t[0])) / 100)
    z = NoiseSource.from_seed(0, 2).normal("step", 0, x)
    small = ancestral_std(VP().scales(t[0]), VP().scales(t[1]), 1.0)
    assert torch.allclose(ends[0] - ends[1], ((v / 2).exp() - small) * z, atol=1e-12)
