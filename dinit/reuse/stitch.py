"""Stitching: one denoiser while there is much noise, another below. Pan et al. 2024 (T-Stitch)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dinit.diffusion import BackboneDenoiser, Condition, Denoised, Denoiser, Scales, WrappedDenoiser
from dinit.samplers.guidance.base import labels_of, where_rows


class Stitched(WrappedDenoiser):
    """The denoiser `early` below a log-SNR, where there is more noise, and `late` above it.

    A small network is as good as a large one for the first steps. Pan et al. 2024 (T-Stitch), arXiv:2402.14167.
    Both may be guided, each by its own guidance, and have caches; guidance around the stitched one applies to both.
    `late` embeds the labels itself. It may be of another noise process: at one noise level sigma / alpha the state
    of one is that of the other, scaled.

    Args:
        early: of the noisier part; process, classes and condition are its own.
        late: of the cleaner part.
        log_snr: where they meet, log (alpha^2 / sigma^2).
        classes: late is for these classes alone, the others stay with early; None is all.

    Raises:
        ValueError: denoisers of images of different shapes, of different classes, or with a null class in early
            alone; a process of late that does not reach the noise where they meet; a class that there is not.
    """

    def __init__(
        self, early: Denoiser, late: Denoiser, log_snr: float, classes: Sequence[int] | None = None
    ) -> None:
        super().__init__(early)
        if math.isnan(log_snr):
            raise ValueError("log_snr must be a number, got nan")
        _check_alike(early, late)
        self.late, self.log_snr = late, log_snr
        self.classes = None if classes is None else sorted({int(label) for label in classes})
        if self.classes and not 0 <= self.classes[0] <= self.classes[-1] < early.num_classes:
            raise ValueError(f"classes must be in 0 .. {early.num_classes - 1}, got {self.classes}")
        self.learns_variance = early.learns_variance and late.learns_variance
        self.required_outputs = early.required_outputs | late.required_outputs
        self._other_process = late.process != early.process
        self.t_min, self.t_max = self._ends()

    def _ends(self) -> tuple[float, float]:
        early, late = self.inner, self.late
        if not self._other_process:
            return late.t_min, early.t_max
        high, low = (float(late.process.scales(t).log_snr) for t in (late.t_min, late.t_max))
        if low > self.log_snr:
            raise ValueError(
                f"the late denoiser has been trained down to a log-SNR of {low:.3g} and cannot be read at "
                f"{self.log_snr:.3g}, where they meet: stitch at a higher one"
            )
        cleanest = float(early.process.time_of(torch.tensor(high, dtype=torch.float64))) if high < math.inf else 0.0
        return max(early.process.t_min, cleanest), early.t_max

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t)
        if k.time.ndim == 0:
            is_late = k.floats.log_snr >= self.log_snr
            if not is_late or (self.classes is not None and not self.classes):
                return self._plain(self.inner(x_t, k, cond))
            if self.classes is None:
                return self._plain(self._late(x_t, k, cond))
        late = self._rows(k, cond)
        one, other = self._plain(self._late(x_t, k, cond)), self._plain(self.inner(x_t, k, cond))
        return where_rows(late, one, other)

    def _rows(self, k: Scales, cond: Condition) -> Tensor:
        """(B,) bool, the rows that late is for."""
        rows = torch.ones(cond.batch, dtype=torch.bool, device=cond.is_null.device)
        if k.time.ndim:
            rows = rows & (k.log_snr >= self.log_snr).to(rows.device)
        if self.classes is None:
            return rows
        if cond.labels is None:
            raise ValueError("stitching by class needs labels: make the condition with denoiser.condition(labels)")
        known = torch.zeros(self.num_classes + 1, dtype=torch.bool)
        known[self.classes] = True
        return rows & known.to(rows.device)[cond.labels]

    def _late(self, x_t: Tensor, k: Scales, cond: Condition) -> Denoised:
        labels = labels_of(cond, self.late.num_classes, "a stitched denoiser")
        own = self.late.encode(labels).in_run(cond.run)
        own = replace(own, labels=cond.labels)
        if not self._other_process:
            return self.late(x_t, k, own)
        process = self.late.process
        there = process.scales(process.time_of_noise_level(k.noise_level))
        found = self.late(x_t * (there.like(x_t).alpha / k.like(x_t).alpha), there, own)
        return Denoised(x_t, found.x0, k.like(x_t))

    def _plain(self, found: Denoised) -> Denoised:
        """Without a learned variance, where one of the two has none."""
        drop = found.variance_fraction is not None and not self.learns_variance
        return replace(found, variance_fraction=None) if drop else found

    def known_at(self, k: Scales) -> bool:
        return self.inner.known_at(k) and self.late.known_at(k)


def _check_alike(early: Denoiser, late: Denoiser) -> None:
    """ValueError for denoisers of different images or classes."""
    if late.num_classes != early.num_classes or (early.null_class and not late.null_class):
        raise ValueError(
            f"stitched denoisers must have the same classes; early has {early.num_classes}, late "
            f"{late.num_classes}{'' if late.null_class or not early.null_class else ' without a null class'}"
        )
    shapes = [_shape(one) for one in (early, late)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(
            f"stitched denoisers must be of images of one shape; early has {shapes[0]}, late {shapes[1]}"
        )


def _shape(denoiser: Denoiser) -> tuple[int, int] | None:
    """(channels, size) of a network's images; None where there is no network."""
    while isinstance(denoiser, WrappedDenoiser):
        denoiser = denoiser.inner
    if not isinstance(denoiser, BackboneDenoiser):
        return None
    return denoiser.backbone.in_channels, getattr(denoiser.backbone, "image_size", 0)
