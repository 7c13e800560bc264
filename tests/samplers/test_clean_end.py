"""Evaluations at sigma = 0: the network's velocity is used there, or no evaluation is made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser, Denoised, Scales
from dinit.samplers import SAMPLERS
from dinit.samplers.base import StepDenoiser
from dinit.samplers.guidance import CFG, Autoguidance, CFGZeroStar, Guidance, Negative

SHAPE = (2, 4, 4)
X1 = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])


class Network(torch.nn.Module):
    """Answers with a function of its input, its time and its class; its calls are counted."""

    num_classes, in_channels, out_channels = 2, SHAPE[0], SHAPE[0]
    dtype = torch.float64
    calls = 0

    def embed(self, labels: Tensor) -> Tensor:
        return labels[:, None].double()

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        self.calls += 1
        shift = (1 + cond.reshape(-1, 1, 1, 1)) * (noise_label.double().reshape(-1, 1, 1, 1) / 700).cos()
        return torch.tanh(1.3 * x + shift)


def denoiser_of(process: str, parameterization: str, t_max: float = 1.0) -> BackboneDenoiser:
    return BackboneDenoiser(Network(), PROCESSES.create(process), PARAMETERIZATIONS.create(parameterization), t_max)


def at_zero(denoiser: BackboneDenoiser, x: Tensor) -> Denoised:
    return denoiser(x, denoiser.process.scales(0.0), denoiser.condition(LABELS, 3))


@pytest.mark.parametrize("process", ["flow", "flow:shift=3", "gvp"])
def test_the_velocity_at_zero_is_the_networks(process: str) -> None:
    denoiser = denoiser_of(process, "velocity")
    d = at_zero(denoiser, X1)
    label = denoiser.process.noise_label(d.scales).float().reshape(1)
    output = denoiser.backbone(X1, label, denoiser.embed(LABELS))
    torch.testing.assert_close(d.velocity, output, atol=1e-12, rtol=0)
    torch.testing.assert_close(d.x0, X1, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["velocity", "reversed-velocity", "difference", "v", "epsilon", "edm"])
@pytest.mark.parametrize("process", ["flow:shift=2", "gvp"])
def test_the_velocity_is_continuous_at_zero(process: str, name: str) -> None:
    denoiser = denoiser_of(process, name, t_max=0.999)
    near = denoiser(X1, denoiser.process.scales(1e-9), denoiser.condition(LABELS, 3))
    torch.testing.assert_close(at_zero(denoiser, X1).velocity, near.velocity, atol=1e-5, rtol=1e-5)


def heun_by_hand(network: Network, times: list[float], x: Tensor, label: float) -> Tensor:
    """Of the linear flow with dx/dt as the network's output, down to t = 0."""
    slope = lambda y, t: network(y, torch.tensor([label * t]), network.embed(LABELS))  # noqa: E731
    for t, s in zip(times, times[1:], strict=False):  # noqa: RUF007
        first = slope(x, t)
        x = x + (s - t) * (first + slope(x + (s - t) * first, s)) / 2
    return x


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("sampler", ["heun", "flow-heun"])
def test_heun_ends_with_the_networks_velocity(sampler: str, steps: int) -> None:
    denoiser = denoiser_of("flow", "velocity")
    found = SAMPLERS.create(sampler).sample(denoiser, X1, steps, labels=LABELS, end="clean")
    times = [1 - i / steps for i in range(steps + 1)]
    torch.testing.assert_close(found, heun_by_hand(Network(), times, X1, 1000.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("process", "parameterization", "sampler", "last"),
    [
        ("flow", "velocity", "heun", 2),
        ("flow", "velocity", "rk4", 4),
        ("gvp", "v", "rk4:rule=3/8", 4),
        ("flow", "x0", "heun", 1),
        ("edm", "edm", "heun", 1),
        ("edm", "edm", "rk4", 1),
        ("vp", "epsilon", "flow-heun", 1),
        ("vp-discrete", "v", "flow-heun", 1),
        ("vp-discrete", "v", "flowturbo", 1),
        ("flow", "velocity", "flowturbo", 1),
    ],
)
def test_every_evaluation_counts_and_is_used(process: str, parameterization: str, sampler: str, last: int) -> None:
    """Where the network has no velocity at 0 the last step is Euler's, the posterior mean, by one evaluation."""
    denoiser = denoiser_of(process, parameterization)
    steps = list(SAMPLERS.create(sampler).iterate(denoiser, X1, 4, labels=LABELS, end="clean"))
    assert denoiser.backbone.calls == steps[-1].nfe
    assert steps[-1].nfe - steps[-2].nfe == last
    assert bool(steps[-1].x_s.isfinite().all())
    if last == 1 and sampler != "flowturbo":
        torch.testing.assert_close(steps[-1].x_s, steps[-1].x0, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "guidance", [CFG(3.0), Negative(2.5, label=1), CFGZeroStar(2.0, zero_steps=0), "autoguidance"]
)
def test_guidance_acts_on_the_velocity_at_zero(guidance: Guidance | str) -> None:
    """As it does just above 0."""
    denoiser = denoiser_of("flow", "velocity")
    if isinstance(guidance, str):
        guidance = Autoguidance(2.0, weak=denoiser_of("flow", "velocity"))
    guided = guidance.wrap(denoiser)

    def velocity(t: float) -> Tensor:
        k: Scales = denoiser.process.scales(t)
        return guided(X1, k, guided.condition(LABELS, 3)).velocity

    torch.testing.assert_close(velocity(0.0), velocity(1e-9), atol=1e-5, rtol=1e-5)


def test_eps_without_a_network_is_zero_at_zero() -> None:
    """Whatever a guidance made of x0."""
    k = PROCESSES.create("flow").scales(0.0)
    assert Denoised(X1, X1 + 1, k).eps.abs().max() == 0


def test_a_step_makes_no_evaluation_that_it_could_not_use() -> None:
    """At sigma = 0 of EDM, whose label is infinite there; just above 0 the network is evaluated."""
    denoiser = denoiser_of("edm", "edm")
    step = StepDenoiser(denoiser, denoiser.condition(LABELS, 3))
    d = step(X1, denoiser.process.scales(0.0))
    assert (step.calls, denoiser.backbone.calls) == (0, 0)
    assert torch.equal(d.x0, X1)
    assert d.velocity.abs().max() == 0
    step(X1, denoiser.process.scales(1e-6))
    assert (step.calls, denoiser.backbone.calls) == (1, 1)
