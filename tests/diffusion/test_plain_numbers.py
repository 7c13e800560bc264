"""Scales as plain numbers, functions of all times of a run at once, and sums of a prediction's posterior means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import EDM, PARAMETERIZATIONS, PROCESSES, VP, BackboneDenoiser, Denoised, LinearFlow, Scales

F64 = torch.float64
TIMES = torch.tensor([0.9, 0.6, 0.35, 0.2], dtype=F64)


class Half:
    """Any output will do."""

    num_classes, in_channels, out_channels = 2, 1, 1

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        return 0.5 * x + 0.1


def predicted(process: Any, parameterization: str, t: Any) -> Denoised:
    denoiser = BackboneDenoiser(Half(), process, PARAMETERIZATIONS.create(parameterization), t_max=0.95)
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return denoiser(x, t, denoiser.condition(None, 3))


@pytest.mark.parametrize("process", [VP(), EDM(), LinearFlow()])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.names())
def test_a_prediction_is_the_same_however_it_is_computed(process: Any, parameterization: str) -> None:
    """Of the output, at one time; of the tensors, at a time a sample."""
    lazy, plain = (
        predicted(process, parameterization, 0.4),
        predicted(process, parameterization, torch.full((3,), 0.4, dtype=F64)),
    )
    total = lazy.combination(0.3, -0.7, 1.1)  # before x0 exists
    torch.testing.assert_close(total, 0.3 * plain.x_t - 0.7 * plain.x0 + 1.1 * plain.eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lazy.eps, plain.eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lazy.x0, plain.x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lazy.combination(0.3, -0.7, 1.1), total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lazy.velocity, plain.velocity, rtol=1e-9, atol=1e-9)
    assert torch.equal(replace(lazy, x0=plain.x_t).x0, plain.x_t)


def test_a_sum_has_the_eps_of_a_guidance_and_of_clean_data() -> None:
    d = predicted(VP(), "epsilon", 0.4)
    guided = replace(d, renoise_eps=torch.ones_like(d.x_t))
    torch.testing.assert_close(guided.combination(2.0, 3.0, 5.0), 2 * d.x_t + 3 * d.x0 + 5)
    clean = Denoised(d.x_t, d.x_t, LinearFlow().scales(0.0), clean_eps=torch.ones_like(d.x_t))
    torch.testing.assert_close(clean.combination(2.0, 0.0, 5.0), 2 * d.x_t + 5)
    without = replace(clean, clean_eps=None)
    torch.testing.assert_close(without.combination(2.0, 0.0, 5.0), 2 * d.x_t)  # eps is 0 there


def test_gradients_reach_a_prediction_that_is_used_outside() -> None:
    denoiser = BackboneDenoiser(Half(), VP(), PARAMETERIZATIONS.create("epsilon"))
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    with torch.enable_grad():
        d = denoiser(x, 0.4, denoiser.condition(None, 1))
    with torch.no_grad():
        assert d.x0.requires_grad


@pytest.mark.parametrize("name", PROCESSES.names())
def test_numbers_of_a_run_are_those_of_each_time(name: str) -> None:
    process = PROCESSES.create(name)
    together = process.scales(TIMES).unbind()
    alone = [process.scales(t) for t in TIMES]
    for one, other in zip(together, alone, strict=True):
        assert one.floats == other.floats
        assert one.floats.d_sigma == float(other.d_sigma)
        assert one.numbers("level", lambda k: (k.noise_level, k.time)) == (
            float(other.noise_level),
            float(other.time),
        )

    def rise(t: Scales, s: Scales) -> list[float]:
        return (s.log_snr - t.log_snr).tolist()

    for i, j in ((0, 1), (2, 3), (0, 2), (1, 3), (3, 1)):
        (found, place), (one, _) = (k[i].pairs(k[j], "rise", rise) for k in (together, alone))
        assert found[place] == one[0] == float(alone[j].log_snr - alone[i].log_snr)
    assert process.scales(TIMES.reshape(2, 2)).unbind()[1].sigma.tolist() == [k.floats.sigma for k in alone[2:]]
    for points in (together[1:3], together[::-1], [together[0], together[2]], alone):
        assert torch.equal(Scales.stack(points).sigma, torch.stack([k.sigma for k in points]))
