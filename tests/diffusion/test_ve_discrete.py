"""The chain of VE levels against VE itself and against the levels written out."""

from __future__ import annotations

import pytest
import torch

from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import VE
from dinit.diffusion.discrete import VEDiscrete

F64 = torch.float64


def test_path_is_that_of_ve() -> None:
    chain, path = VEDiscrete(0.02, 90.0, num_steps=50), VE(0.02, 90.0)
    t = torch.linspace(0, 1, 301, dtype=F64)
    ours, theirs = chain.scales(t), path.scales(t)
    for name in ("time", "alpha", "sigma", "d_alpha", "d_sigma"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(chain.time_of(theirs.log_snr), path.time_of(theirs.log_snr))
    assert chain.t_min == path.t_min == 0


@pytest.mark.parametrize("num_steps", [2, 40, 1000])
def test_labels_count_the_levels_down_from_sigma_max(num_steps: int) -> None:
    chain = VEDiscrete(0.01, 50.0, num_steps)
    sigmas = [50.0 * (0.01 / 50.0) ** (i / (num_steps - 1)) for i in range(num_steps)]
    levels = chain.scales(chain.time_of_noise_level(torch.tensor(sigmas, dtype=F64)))
    index = torch.arange(num_steps, dtype=F64)
    torch.testing.assert_close(chain.noise_label(levels), index, rtol=0, atol=1e-9)
    torch.testing.assert_close(levels.sigma, torch.tensor(sigmas, dtype=F64), rtol=1e-12, atol=0)
    assert float(chain.noise_label(chain.scales(1.0))) == 0
    assert float(chain.noise_label(chain.scales(0.0))) == num_steps - 1


def test_config_keeps_the_levels() -> None:
    chain = VEDiscrete(0.01, 90.0, 40)
    config = chain.to_config()
    assert config == {"name": "ve-discrete", "sigma_min": 0.01, "sigma_max": 90.0, "num_steps": 40}
    assert PROCESSES.create(config) == chain
    assert chain != VE(0.01, 90.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 1}, "num_steps must be at least 2, got 1"),
        ({"sigma_min": 0.0}, "sigma_min must be positive"),
        ({"sigma_min": 60.0}, "sigma_max must be above sigma_min = 60.0, got 50.0"),
    ],
)
def test_wrong_levels_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VEDiscrete(**options)
