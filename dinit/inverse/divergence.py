"""Divergence of a restoration, which gives images without an error: seen at the end of a run, by one read-back."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dinit.inverse.measurement import Measurement

FAR = 10.0
"""Of x0 in the largest number of y or ones; of A(x0) - y in y's root mean square, noise_std or SPREAD."""

SPREAD = 0.5
"""Standard deviation of usual data."""


@torch.no_grad()
def warn_of_divergence(who: str, measurement: Measurement, x0: Tensor) -> None:
    """A warning where samples are not finite, are far from what was measured, or leave its range by far.

    Args:
        who: The name of the method.
        measurement: Of the samples.
        x0: (B, C, H, W), the end of a run; of the meta device nothing is known.
    """
    if x0.is_meta:
        return
    x0 = x0.detach()
    fitted = measurement.fitted(x0)
    distance = fitted.residual(x0).square().flatten(1).mean(1).sqrt()
    spread = fitted.y.square().mean().sqrt().clamp(min=max(SPREAD, measurement.noise_std))
    largest, known = x0.abs().flatten(1).amax(1), fitted.y.abs().max().clamp(min=1.0)
    near = (distance <= FAR * spread) & (largest <= FAR * known)  # not a number is not near
    count, value, apart = torch.stack([(~near).sum().to(largest), largest.max(), distance.max()]).tolist()
    if count:
        warnings.warn(
            f"method {who!r} diverged in {count:.0f} of {len(x0)} images: values up to {value:.3g}, A(x0) up to "
            f"{apart:.3g} from y. Take more steps, a smaller step size of the method, a larger noise_std, or "
            "another method",
            UserWarning,
            stacklevel=3,
        )
