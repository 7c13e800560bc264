"""Posterior guidance against azula 0.11.1 on a mixture at single times (benchmarks/guidance_golden.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dinit.diffusion.continuous import VP
from dinit.inverse import Matrix, Measurement
from dinit.models.gaussian_mixture import GaussianMixture
from dinit.samplers.guidance.base import GUIDANCES

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "posterior" / "guidance_azula.safetensors")
LAW = GaussianMixture(GOLDEN["weights"], GOLDEN["means"], GOLDEN["covariances"], (1, 3, 4))
TIMES = range(4)


def change(spec: dict[str, Any], time: int, noise_std: float = 0.1, whole: bool = False) -> Tensor:
    """What the guidance adds to E[x0 | x_t], or the prediction itself, (B, n)."""
    seen = Measurement(Matrix(GOLDEN["A"]), GOLDEN["y"], noise_std=noise_std)
    denoiser, x_t = LAW.denoiser(VP()), GOLDEN[f"{time}/x_t"].reshape(-1, 1, 3, 4)
    t, cond = float(GOLDEN[f"{time}/time"]), denoiser.condition(None, len(x_t))
    found = GUIDANCES.create({**spec, "measurement": seen}).wrap(denoiser)(x_t, t, cond).x0
    return (found if whole else found - denoiser(x_t, t, cond).x0).flatten(1)


@pytest.mark.parametrize("time", TIMES)
def test_predictions(time: int) -> None:
    """MMPS by as many GMRES iterations, TMPD, and DiffPIR at lambda = 2."""
    specs: dict[str, dict[str, Any]] = {
        **{f"mmps{i}": {"name": "mmps", "iterations": i} for i in (1, 3, 5)},
        "tmpd": {"name": "tmpd"},
        "diffpir": {"name": "diffpir", "lam": 2.0},
    }
    for name, spec in specs.items():
        found = change(spec, time, whole=True)
        assert torch.allclose(found, GOLDEN[f"{time}/{name}"], rtol=1e-7, atol=1e-7), name


@pytest.mark.parametrize("time", TIMES)
def test_steps(time: int) -> None:
    """DPS: -zeta times the gradient of each row's distance. PiGDM: alpha_s alpha J^T A+ (y - A x0), sigma_y = 0."""
    t = float(GOLDEN[f"{time}/time"])
    k, s = VP().scales(t), VP().scales(0.9 * t)
    moved = torch.cat([GOLDEN[f"{time}/dps/{row}"] for row in range(2)])
    gain = 50 * k.sigma**2 / (k.alpha * VP().diffusion_squared(t))
    assert torch.allclose(change({"name": "dps", "steps": 50}, time), gain * moved, rtol=1e-7, atol=1e-9)
    found = change({"name": "pigdm"}, time, noise_std=0.0)
    assert torch.allclose(found * k.alpha**2 * s.alpha, GOLDEN[f"{time}/pigdm"], rtol=1e-7, atol=1e-9)
