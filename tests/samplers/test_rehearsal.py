"""Standard deviation of Gaussian data by every sampler on every process: right, or a warning whose advice works."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from dinit import Pipeline
from dinit.diffusion import PROCESSES
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import EDICT, SAMPLERS, rehearsal
from dinit.samplers.base import Run
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.noise import NoiseSource
from dinit.samplers.points import sampling_points
from dinit.samplers.rehearsal import spread

MEAN, STD = 0.2, 0.3
ADAPTIVE = ("rk45", "dpm-adaptive")


def sampled_std(process: str, sampler: str, steps: int) -> tuple[float, list[str]]:
    """Of 512 pixels by the usual grid, over the exact one; and what was warned of."""
    denoiser = GaussianDenoiser(PROCESSES.create(process), MEAN, STD, (1, 8, 8))
    even = torch.special.ndtri((torch.arange(512, dtype=torch.float64) + 0.5) / 512)
    start = even[torch.randperm(512, generator=torch.Generator().manual_seed(1))].reshape(8, 1, 8, 8)
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        *_, last = SAMPLERS.create(sampler).iterate(denoiser, start, steps, seed=5)
    k = denoiser.process.scales(last.t)
    exact = k.alpha * STD**2 / (k.alpha**2 * STD**2 + k.sigma**2).sqrt()  # of the posterior mean at the last time
    return float(last.x_s.std() / exact), [str(one.message) for one in caught]


@pytest.mark.parametrize("process", ["flow", "vp", "vp-discrete:schedule=cosine", "sub-vp", "ve", "edm"])
def test_every_sampler_is_right_or_warned_of(process: str) -> None:
    """20 steps; a margin stands for the error of 512 pixels and the start's own."""
    for sampler in [name for name in SAMPLERS if name not in ADAPTIVE]:
        found, said = sampled_std(process, sampler, 20)
        if abs(found - 1) > 0.22:
            assert any("inexact" in line for line in said), (sampler, found)
        if abs(found - 1) < 0.08:
            assert said == [], (sampler, found, said)


@pytest.mark.parametrize(
    ("process", "sampler", "steps", "warned"),
    [
        ("ve", "euler", 50, True),
        ("ve", "edict", 50, True),
        ("edm", "edict", 50, True),
        ("ve-discrete", "euler", 50, True),
        ("edm", "reverse-diffusion", 20, True),
        ("ve", "edm-euler", 50, False),
        ("ve", "heun", 50, False),
        ("edm", "euler", 50, False),  # t is sigma there
        ("edm", "bdia-edm", 20, False),
        ("flow", "euler", 20, False),
        ("vp", "ddim", 20, False),
    ],
)
def test_a_warning_names_the_sampler_and_its_advice_works(
    process: str, sampler: str, steps: int, warned: bool
) -> None:
    found, said = sampled_std(process, sampler, steps)
    assert bool(said) == warned == (abs(found - 1) > 0.15)
    if warned:
        assert type(SAMPLERS.create(sampler)).__name__ in said[0]
        assert abs(sampled_std(process, sampler, 16 * steps)[0] - 1) < 0.15  # more steps
        instead = re.search(r"sampler '([a-z0-9-]+)'", said[0])
        assert instead is not None
        better, quiet = sampled_std(process, instead[1], steps)
        assert abs(better - 1) < 0.15
        assert quiet == []


@pytest.mark.parametrize("process", ["ve", "edm"])
def test_edict_errs_less_on_its_grid(process: str) -> None:
    assert EDICT().grid_for(PROCESSES.create(process)) == Shifted()
    errors = {}
    for grid in ("karras", "shifted"):
        denoiser = GaussianDenoiser(PROCESSES.create(process), 0.0, STD, (1, 1, 1))
        pair = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        errors[grid] = 1 - float(EDICT().sample(denoiser, pair, 50, grid=grid).std(unbiased=False)) / STD
    assert errors["shifted"] < 0.85 * errors["karras"]


def test_a_pipeline_warns_too_and_given_times_do_not() -> None:
    pipe = Pipeline.from_pretrained("digits-dit")
    ve = Pipeline(pipe.backbone, process="ve", parameterization="v")
    with pytest.warns(UserWarning, match=r"Euler\(\) with 20 times"):
        ve(1, sampler="euler", steps=20, guidance=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ve(1, sampler="euler", grid=torch.linspace(1, 0, 20), guidance=None)
        ve(1, sampler="ddim", steps=5, guidance=None)  # inexact, as all solvers are there


def test_the_rehearsal_is_exact_where_the_solver_is() -> None:
    """Straight paths of one Gaussian: the finer, the nearer to 1; and no process is named by mistake."""
    flow = PROCESSES.create("flow")
    errors = [
        abs(spread(SAMPLERS.create("heun"), flow, tuple(1 - i / n for i in range(n)), "posterior-mean") - 1)
        for n in (10, 20, 40)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3


@pytest.mark.parametrize(
    ("process", "sampler", "steps", "warned"),
    [
        ("vp-discrete:schedule=cosine", "pndm", 2, True),
        ("vp-discrete:schedule=cosine", "edm-heun", 2, True),
        ("vp", "pndm", 2, True),
        ("ve", "ab", 5, True),
        ("ve", "euler-maruyama", 3, True),
        ("vp-discrete:schedule=cosine", "ddim", 2, False),
        ("vp-discrete:schedule=cosine", "dpmpp-2m", 5, False),
        ("ve", "euler", 5, True),
        ("flow", "heun", 2, False),
        ("edm", "edm-heun", 5, False),
        ("edm", "ddim", 1, False),
    ],
)
def test_few_steps_are_warned_of_where_they_diverge(process: str, sampler: str, steps: int, warned: bool) -> None:
    found, said = sampled_std(process, sampler, steps)
    assert any("inexact" in line for line in said) == warned
    assert (found > 5) == warned
    if warned:
        assert sampled_std(process, sampler, 40)[0] < 1.6  # more steps
        instead = re.search(r"sampler '([a-z0-9-]+)'", said[0])
        assert instead is None or sampled_std(process, instead[1], steps)[0] < 1.6


@pytest.mark.parametrize("name", ["ddim", "dpmpp-3m", "heun", "deis", "ddpm", "sa-solver", "predictor-corrector"])
def test_a_rehearsal_on_plain_numbers_is_that_on_samples(name: str) -> None:
    sampler, process = SAMPLERS.create(name), PROCESSES.create("vp")
    denoiser = rehearsal._Gaussian(process)
    points = sampling_points(denoiser, 20, None)
    start = rehearsal._marginal_std(points[0])
    source = NoiseSource.from_seed(0, 1)
    run = Run.prepare(sampler, denoiser, points, len(points), denoiser.condition(None, 1), source, None)
    plain = rehearsal._of_coefficients(run, denoiser, start)
    times = tuple(k.floats.time for k in points)
    sampled = rehearsal._of_samples(sampler, denoiser, times, "posterior-mean", start)
    assert plain == pytest.approx(sampled, rel=0.06 if sampler.stochastic else 1e-9)


def test_a_rehearsal_that_is_not_linear_takes_samples() -> None:
    sampler = SAMPLERS.create({"name": "predictor-corrector", "corrector": "langevin"})
    process = PROCESSES.create("vp")
    denoiser = rehearsal._Gaussian(process)
    points = sampling_points(denoiser, 5, None)
    source = NoiseSource.from_seed(0, 1)
    run = Run.prepare(sampler, denoiser, points, len(points), denoiser.condition(None, 1), source, None)
    assert rehearsal._of_coefficients(run, denoiser, 1.0) is None
