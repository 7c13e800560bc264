"""DPM-Solver++(2M), the multistep solver of second order in half the log-SNR. Lu et al. 2022 (DPM-Solver++)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dinit.diffusion import Process, Scales
from dinit.diffusion.denoised import weighted
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import multistep_grid

History = tuple[Tensor, float]


@SAMPLERS.register("dpmpp-2m", aliases=("dpm-solver++", "dpm-solver++(2m)", "k-dpmpp-2m"))
@dataclass(frozen=True)
class DPMpp2M(Sampler):
    r"""DPM-Solver++(2M): exact in the linear part, the posterior mean extrapolated in half the log-SNR.

    Formula: $x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s (1 - e^{-h})\left(x_0 + \frac{h}{2h'}(x_0 -
        x_0')\right)$

    h is the rise of lambda = log(alpha / sigma) over the step, h' and x0' those of the step before. Lu et al.
    2022 (DPM-Solver++), Algorithm 2, arXiv:2211.01095, for any path. The first step is of first order, and so is a
    step that starts at or follows alpha = 0 or ends at sigma = 0, where the log-SNR is infinite: that is the limit
    of the formula.

    Args:
        variant: Weight of the slope (x0 - x0') / h': alpha_s (1 - e^-h) h / 2 for 'midpoint' (the paper's),
            alpha_s (h - 1 + e^-h) for 'heun' (the exact integral of the line). Both are of order 2.
        order: 2, or 1 for DPM-Solver++(1), which is DDIM.

    Raises:
        ValueError: Another variant or order.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    variant: Literal["midpoint", "heun"] = "midpoint"
    order: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.variant not in ("midpoint", "heun"):
            raise ValueError(f"variant must be 'midpoint' or 'heun', got {self.variant!r}")
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}")

    def grid_for(self, process: Process) -> TimeGrid:
        return multistep_grid(process, 0.6)

    def claims(self) -> Claims:
        return Claims(self.order)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: History | None, noise: StepNoise
    ) -> tuple[Tensor, History]:
        x0 = denoise(x_t, t).x0
        a, b = t.floats, s.floats
        half_log_snr = a.log_snr / 2
        # alpha_s (1 - exp(-h)) of the paper, free of h: it stays exact where h is infinite.
        gain = b.alpha - a.alpha / a.sigma * b.sigma
        x_s = weighted(b.sigma / a.sigma, x_t, gain, x0)
        h = b.log_snr / 2 - half_log_snr
        if self.order == 2 and state is not None and a.alpha > 0 and b.sigma > 0:
            x0_before, half_log_snr_before = state
            weight = gain * h / 2 if self.variant == "midpoint" else b.alpha * h - gain
            rise = half_log_snr - half_log_snr_before  # infinite after alpha = 0
            x_s = weighted(1.0, x_s, weight / rise, x0 - x0_before)
        return x_s, (x0, half_log_snr)
