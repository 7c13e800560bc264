"""Time samplers have the distributions they claim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Process
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.training.losses.times import (
    TIME_SAMPLERS,
    LogitNormal,
    LogNormalNoise,
    SNRShift,
    Stratified,
    UniformTimes,
)

N = 40_000
CRITICAL = 1.95 / math.sqrt(N)  # Kolmogorov-Smirnov at a level of 0.1 %


def draw(sampler, process: Process, count: int = N, t_max: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sampler.times(count, process, process.t_min, t_max, generator)


def ks(u: Tensor) -> float:
    """Kolmogorov-Smirnov distance of a sample from the uniform distribution on [0, 1]."""
    n, u = len(u), u.sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum(steps[1:] - u, u - steps[:-1]).max())


def test_uniform() -> None:
    process = LinearFlow()
    t = draw(UniformTimes(), process, t_max=0.8)
    assert ks((t - process.t_min) / (0.8 - process.t_min)) < CRITICAL


def test_logit_normal() -> None:
    t = draw(LogitNormal(mean=0.5, std=1.3), LinearFlow())
    inside = (t > LinearFlow().t_min) & (t < 1)
    assert inside.double().mean() > 0.999
    assert ks(torch.special.ndtr((torch.logit(t[inside]) - 0.5) / 1.3)) < CRITICAL + 1e-3


def test_log_normal_noise_level_of_edm() -> None:
    process = EDM()
    t = draw(LogNormalNoise(), process)
    level = process.scales(t).noise_level
    assert ks(torch.special.ndtr((level.log() + 1.2) / 1.2)) < CRITICAL
    assert float(level.log().mean()) == pytest.approx(-1.2, abs=5 * 1.2 / math.sqrt(N))


@pytest.mark.parametrize("base", ["uniform", {"name": "log-normal", "mean": -0.5}, LogitNormal(std=0.7)])
def test_stratified_has_one_time_in_each_bin_and_the_same_distribution(base) -> None:
    process = EDM()
    sampler, inner = Stratified(base), TIME_SAMPLERS.create(base)
    u = sampler.uniforms(64, torch.Generator().manual_seed(3))
    assert sorted((u * 64).long().tolist()) == list(range(64))
    assert u.tolist() != sorted(u.tolist())
    pooled = torch.cat([sampler.uniforms(64, torch.Generator().manual_seed(i)) for i in range(N // 64)])
    assert ks(pooled) < CRITICAL
    assert ks(pooled * 64 % 1) < CRITICAL  # uniform within the bins too
    given = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    expected = inner.quantile(given, process, process.t_min, 1.0)
    torch.testing.assert_close(sampler.quantile(given, process, process.t_min, 1.0), expected)


@pytest.mark.parametrize("name", ["stratified", "snr-shift"])
def test_recipes_with_the_option_s_old_name_read_as_before(name: str) -> None:
    old, new = (TIME_SAMPLERS.create({"name": name, option: "log-normal"}) for option in ("of", "base"))
    assert old == new != TIME_SAMPLERS.create(name)


def test_stratified_mean_varies_less() -> None:
    means = [
        torch.stack([draw(sampler, LinearFlow(), 64, seed=s).mean() for s in range(100)]).std()
        for sampler in (UniformTimes(), Stratified())
    ]
    assert means[1] < means[0] / 20  # 1 / 64 of it by theory


def test_snr_shift_is_training_on_scaled_data() -> None:
    """On the straight path data c times as large at t are the data at t' with t' / (1 - t') = t / (1 - t) / c."""
    process, shifted = LinearFlow(), SNRShift(0.25)
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    t = process.t_min + u * (1 - process.t_min)
    found = shifted.quantile(u, process, process.t_min, 1.0)
    torch.testing.assert_close(found / (1 - found), t / (1 - t) / 0.25)
    inner = SNRShift(0.25, Stratified()).uniforms(32, torch.Generator().manual_seed(0))
    assert sorted((inner * 32).long().tolist()) == list(range(32))


@pytest.mark.parametrize("name", TIME_SAMPLERS.names())
@pytest.mark.parametrize("process_name", PROCESSES.names())
def test_times_stay_in_range_for_every_process(name: str, process_name: str) -> None:
    process = PROCESSES.create(process_name)
    t = draw(TIME_SAMPLERS.create(name), process, 500, t_max=0.9)
    assert t.dtype == torch.float64
    assert process.t_min <= float(t.min())
    assert float(t.max()) <= 0.9
    k = process.scales(t)
    assert k.alpha.isfinite().all()
    assert (k.sigma > 0).all()


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="std must be positive"):
        LogitNormal(std=0)
    with pytest.raises(ValueError, match="stratified"):
        Stratified("stratified")
    with pytest.raises(ValueError, match="did you mean 'logit-normal'"):
        Stratified("logit-norml")
