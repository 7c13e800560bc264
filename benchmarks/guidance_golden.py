"""Golden values of posterior guidance: azula's guesses of E[x0 | x_t, y] at single times, on an exact mixture.

pip install azula==0.11.1
python benchmarks/guidance_golden.py tests/golden/posterior/guidance_azula.safetensors
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.diffpir import DiffPIRDenoiser
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from azula.guidance.tmpd import TMPDenoiser
from azula.linalg.covariance import IsotropicCovariance
from azula.sample import DDIMSampler, DDPMSampler
from safetensors.torch import save_file
from torch import Tensor

from dinit.diffusion.continuous import VP
from dinit.models.gaussian_mixture import GaussianMixture

TIMES = (0.05, 0.3, 0.6, 0.9)
NOISE_STD, LAM, S_OVER_T = 0.1, 2.0, 0.9


class Exact(Denoiser):
    """The mixture's E[x0 | x_t] on dinit's VP, as azula takes it."""

    def __init__(self, law: GaussianMixture) -> None:
        super().__init__()
        self.exact = law.denoiser(VP())

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k = VP().scales(t)
        return k.alpha, k.sigma

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
        return DiracPosterior(self.exact(x_t, float(t), self.exact.condition(None, len(x_t))).x0)


def moved(guided: Any, plain: Any, x_t: Tensor, t: Tensor) -> Tensor:
    """What the guidance adds to a step from t to S_OVER_T t."""
    ends = []
    for sampler in (guided, plain):
        torch.manual_seed(0)
        ends.append(sampler.step(x_t, t, S_OVER_T * t))
    return ends[0] - ends[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    out = parser.parse_args().out
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(0)
    n, m, rows = 12, 5, 2
    factors = 0.4 * torch.randn(3, n, 4, generator=generator)
    covariances = factors @ factors.mT + 0.05 * torch.eye(n)
    means = 0.8 * torch.randn(3, n, generator=generator)
    matrix = torch.randn(m, n, generator=generator).abs()  # so that no row sum of TMPD is negative
    y = torch.randn(rows, m, generator=generator)
    kept = {
        "weights": torch.tensor([0.5, 0.3, 0.2]),
        "means": means,
        "covariances": covariances,
        "A": matrix,
        "y": y,
    }
    denoiser = Exact(GaussianMixture(kept["weights"], means, covariances))
    inverse = torch.linalg.pinv(matrix)

    def apply(x: Tensor) -> Tensor:
        return x @ matrix.T

    for i, time in enumerate(TIMES):
        t = torch.tensor(time)
        k = VP().scales(time)
        x_t = torch.randn(rows, n, generator=generator) * (k.alpha**2 + k.sigma**2).sqrt()
        variance = NOISE_STD**2
        methods: dict[str, Any] = {
            f"mmps{count}": MMPSDenoiser(
                denoiser, y, apply, IsotropicCovariance(torch.tensor(variance)), "gmres", count
            )
            for count in (1, 3, 5)
        }
        methods["tmpd"] = TMPDenoiser(denoiser, y, apply, variance)
        methods["diffpir"] = DiffPIRDenoiser(denoiser, y, apply, variance, LAM, "gmres", m)
        kept |= {f"{i}/{name}": method(x_t, t).mean for name, method in methods.items()}
        for row in range(rows):  # azula's DPS takes one norm of the whole batch
            one, seen = x_t[row : row + 1], y[row : row + 1]
            kept[f"{i}/dps/{row}"] = moved(
                DPSSampler(denoiser, seen, apply, steps=10), DDPMSampler(denoiser, steps=10), one, t
            )
        kept[f"{i}/pigdm"] = moved(
            PGDMSampler(denoiser, y, apply, lambda v: v @ inverse.T, steps=10),
            DDIMSampler(denoiser, steps=10),
            x_t,
            t,
        )
        kept |= {f"{i}/x_t": x_t, f"{i}/time": t}
    save_file({name: value.contiguous() for name, value in kept.items()}, out)


if __name__ == "__main__":
    main()
