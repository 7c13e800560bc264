"""The registry's door: right samplers pass, and each planted fault is turned away."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from dinit.conformance import (
    Check,
    ConformanceReport,
    check_distribution,
    check_grids,
    check_order,
    check_pairs,
    mixture_moments,
    right_weight,
    two_component_mixture,
    verify,
)
from dinit.diffusion import PROCESSES
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import DDIM, GRIDS, SAMPLERS, Euler, Heun, Sampler

VP = PROCESSES.create("vp")


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(SAMPLERS)), ids=SAMPLERS.names())
def test_every_registered_sampler_passes(place: int) -> None:
    """On a third of the processes, the next sampler on the next third; `dinit verify` runs them on all."""
    processes = PROCESSES.names()[place % 3 :: 3]
    report = verify([SAMPLERS.names()[place]], quick=True, processes=processes)
    assert report.passed, [f"{c.process} {c.check}: {c.figure}" for c in report.checks if c.status == "FAIL"]
    assert len(report.checks) == 3 * len(processes)
    assert any(c.status == "pass" for c in report.checks)


def rendered(report: ConformanceReport) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table())
    return console.export_text()


def test_report_of_a_right_sampler() -> None:
    report = verify(["euler"], quick=True)
    assert report.passed
    assert report.table().row_count == len(PROCESSES)
    assert "FAIL" not in rendered(report)


def test_report_tells_a_failure() -> None:
    """One wrong check among right ones: the report fails, names it, and shows its figure."""
    wrong, figure = check_order(SlowVelocity(), VP)
    assert not wrong
    checks = (
        Check("euler", "vp", "order", "pass", "order 1.00/1"),
        Check("slow", "vp", "order", "FAIL", figure),
        Check("slow", "vp", "pairs", "refused", "singular at t = 1"),
    )
    report = ConformanceReport(checks)
    assert not report.passed
    shown = rendered(report)
    assert f"FAIL: {figure}" in shown
    assert "refused: singular at t = 1" in shown
    assert shown.count("FAIL") == 1
    assert not ConformanceReport(()).passed  # nothing was checked


def test_unknown_sampler_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'euler'"):
        verify(["euler", "eulr"])
    with pytest.raises(ValueError, match="unknown process 'vpp'; did you mean 'vp'"):
        verify(["euler"], processes=["vpp"])


def test_mixture_moments_are_those_of_samples() -> None:
    import torch

    mixture = two_component_mixture(VP)
    labels = torch.full((200_000,), mixture.num_classes)
    x = mixture.sample(labels, torch.Generator().manual_seed(0)).flatten(1)
    mean, cov = mixture_moments(mixture)
    assert (x.mean(0) - mean).abs().max() < 0.006
    assert (x.T.cov() - cov).abs().max() < 0.006
    assert abs(float((x[:, 0] > 0).double().mean()) - right_weight(mixture)) < 0.005


@dataclass(frozen=True)
class SlowVelocity(Euler):
    """A coefficient that is 1 % off."""

    def step(self, denoise, x_t, t, s, state, noise):
        return x_t + 0.99 * (s.time - t.time) * denoise(x_t, t).velocity, None


@dataclass(frozen=True)
class WrongLevel(DDIM):
    """sigma taken at t where it belongs to s."""

    def step(self, denoise, x_t, t, s, state, noise):
        d = denoise(x_t, t)
        return s.alpha * d.x0 + t.sigma * d.eps, None


@dataclass(frozen=True)
class HalfHeun(Heun):
    """Claims second order and takes Euler steps."""

    def step(self, denoise, x_t, t, s, state, noise):
        denoise(x_t, s)
        return x_t + (s.time - t.time) * denoise(x_t, t).velocity, None


@pytest.mark.parametrize("sampler", [SlowVelocity(), WrongLevel(), HalfHeun()], ids=lambda s: type(s).__name__)
def test_wrong_deterministic_sampler_is_turned_away(sampler: Sampler) -> None:
    ok, figure = check_order(sampler, VP)
    assert not ok, figure


@dataclass(frozen=True)
class LoudNoise(DDIM):
    """Ten per cent too much noise put back."""

    eta: float = 1.0

    def step(self, denoise, x_t, t, s, state, noise):
        return DDIM.step(self, denoise, x_t, t, s, state, lambda j, like: 1.1 * noise(j, like))


@dataclass(frozen=True)
class DriftedMean(DDIM):
    """The posterior mean pulled a tenth of a per cent towards zero at every step."""

    eta: float = 1.0

    def step(self, denoise, x_t, t, s, state, noise):
        x_s, _ = DDIM.step(self, denoise, x_t, t, s, state, noise)
        return 0.999 * x_s, None


@pytest.mark.parametrize("sampler", [DDIM(eta=1.0), LoudNoise(), DriftedMean()], ids=lambda s: type(s).__name__)
def test_wrong_stochastic_samplers_are_turned_away(sampler: Sampler) -> None:
    ok, figure = check_distribution(sampler, VP, quick=False)
    assert ok is (type(sampler) is DDIM), figure


def test_sampler_that_does_not_converge_fails_on_grids() -> None:
    assert check_grids(Euler(), VP)[0]
    assert not check_grids(WrongLevel(), VP)[0]


@dataclass(frozen=True)
class NotANumber(DDIM):
    """NaN from every step."""

    def step(self, denoise, x_t, t, s, state, noise):
        x_s, _ = DDIM.step(self, denoise, x_t, t, s, state, noise)
        return x_s * float("nan"), None


def test_nan_agrees_with_nothing() -> None:
    grids = [("uniform", GRIDS.create("uniform"))]
    assert check_pairs(DDIM(), VP, grids)[0]
    assert not check_pairs(NotANumber(), VP, grids)[0]


@dataclass(frozen=True)
class NarrowOnAGaussian(DDIM):
    """Right on every mixture, and nothing but the mean of a single Gaussian."""

    eta: float = 1.0

    def finish(self, denoise, x_t, t, state, noise):
        x_s, _ = DDIM.finish(self, denoise, x_t, t, state, noise)
        return (0.3 + 0.5 * (x_s - 0.3) if isinstance(denoise.denoiser, GaussianDenoiser) else x_s), None


def test_the_spread_within_one_component_decides_too() -> None:
    assert not check_distribution(NarrowOnAGaussian(), VP, quick=True)[0]
