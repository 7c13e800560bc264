"""Sheets of restorations: measurement, truth, mean, standard deviation and samples, with their scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.base import LinearOperator
from dinit.pipelines.generate import Generated, Pipeline
from dinit.pipelines.outputs.files import caption, png_bytes, write_file
from dinit.pipelines.outputs.inputs import write_inputs
from dinit.pipelines.outputs.manifest import describe
from dinit.pipelines.outputs.sheets import Layout, draw_sheet, lay_out
from dinit.pipelines.plain import to_spec

_WINDOW = 7  # of SSIM, pixels, as scikit-image has it


@dataclass(frozen=True)
class Scores:
    """How restorations agree with the measurement, and with the truth where it is known.

    Attributes:
        distance: Root mean square of A(x) - y, one a restoration, in the units of y.
        noise_std: What it would be of the truth.
        psnr: Peak signal-to-noise ratio in decibels, one a restoration; None without the truth.
        ssim: Structural similarity (Wang et al. 2004), one a restoration.
        mean_psnr: PSNR of the restorations' mean.
        mean_ssim: SSIM of the restorations' mean.
        rank: Of the truth among restorations and truth by distance from the mean of the others, 1 for the nearest.
            It is uniform on 1 .. N + 1 where restorations are samples of p(x | y). None below two of them.
    """

    distance: tuple[float, ...]
    noise_std: float
    psnr: tuple[float, ...] | None = None
    ssim: tuple[float, ...] | None = None
    mean_psnr: float | None = None
    mean_ssim: float | None = None
    rank: int | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Name and text of each score, for a table."""
        table = [("distance of A(x) from y", f"{round(_mean(self.distance), 6):.3g} (noise {self.noise_std:g})")]
        if self.psnr is not None and self.ssim is not None:
            table += [
                ("PSNR", f"{_mean(self.psnr):.2f} dB each, {self.mean_psnr:.2f} dB their mean"),
                ("SSIM", f"{_mean(self.ssim):.3f} each, {self.mean_ssim:.3f} their mean"),
            ]
        if self.rank is not None:
            table.append(
                ("rank of the truth", f"{self.rank} of {len(self.distance) + 1} by distance from the others")
            )
        return table


def score(images: Tensor, measurement: Measurement, truth: Tensor | None = None) -> Scores:
    """The scores of restorations.

    Args:
        images: (B, C, H, W), around [-1, 1].
        measurement: Of them, of one row or B.
        truth: (1, C, H, W); None where it is not known.

    Returns:
        Scores, of images clipped to [-1, 1] where they are compared with the truth.
    """
    images = images.detach().double().cpu()
    known = measurement.fitted(images)
    shape = tuple(images.shape[1:])
    seen = known.a.size(shape) / known.y[0].numel()  # a mask's hidden values are 0 in both
    residual = known.a.clean(known.residual(images), shape).flatten(1)
    distance = (residual.square().mean(1) / seen).sqrt().tolist()
    if truth is None:
        return Scores(tuple(distance), measurement.noise_std)
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    reference, clipped = truth.double().cpu().clamp(-1, 1), images.clamp(-1, 1)
    side = min(images.shape[-2:])
    window = min(_WINDOW, side - 1 + side % 2)

    def compared(one: Tensor) -> tuple[float, float]:
        pair = reference[0].numpy(), one.numpy()
        similarity: Any = structural_similarity(*pair, data_range=2.0, channel_axis=0, win_size=window)
        error = float((reference[0] - one).square().mean())
        return (float(peak_signal_noise_ratio(*pair, data_range=2.0)) if error else float("inf")), float(similarity)

    psnr, ssim = zip(*(compared(one) for one in clipped), strict=True)
    mean_psnr, mean_ssim = compared(clipped.mean(0))
    rank = truth_rank(clipped, reference) if len(images) > 1 else None
    return Scores(tuple(distance), measurement.noise_std, psnr, ssim, mean_psnr, mean_ssim, rank)


def truth_rank(images: Tensor, truth: Tensor) -> int:
    """Rank of the truth among images and truth by distance from the mean of the others, from 1.

    Args:
        images: (B, ...).
        truth: (1, ...).
    """
    pool = torch.cat([truth, images]).flatten(1)
    distance = (pool - (pool.sum(0) - pool) / (len(pool) - 1)).norm(dim=1)
    return 1 + int((distance[1:] < distance[0]).sum())


def restoration_tiles(generated: Generated, truth: Tensor | None) -> tuple[Tensor, list[str]]:
    """The pictures of a sheet, (N, C, H, W), and what each is.

    Args:
        generated: Of output_type 'raw', of a call with a measurement.
        truth: (1, C, H, W) or None.
    """
    images = generated.images.detach().float().cpu().clamp(-1, 1)
    given = generated.call.given
    assert given is not None, "a restoration has a measurement"
    assert given.measurement is not None, "a restoration has a measurement"
    tiles = [as_picture(given.measurement, tuple(images.shape[1:]))]
    names = ["measurement"]
    if truth is not None:
        tiles.append(truth.float().cpu())
        names.append("truth")
    if len(images) > 1:
        deviation = images.std(0, unbiased=False, keepdim=True)
        largest = float(deviation.max())
        tiles += [images.mean(0, keepdim=True), 2 * deviation / (largest or 1.0) - 1]
        names += ["mean", f"deviation, 0 to {largest:.2g}"]
    return torch.cat([*tiles, images]), [*names, *["restored"] * len(images)]


def as_picture(measurement: Measurement, shape: tuple[int, ...]) -> Tensor:
    """A measurement as an image of the shape (C, H, W): itself, enlarged, or the least image that has it."""
    y, operator = measurement.y[:1].float().cpu(), measurement.a
    if y.ndim == 4 and y.shape[1] in (1, shape[0]):
        y = torch.nn.functional.interpolate(y, size=shape[1:], mode="nearest")
        return y.expand(1, *shape).clamp(-1, 1)
    if isinstance(operator, LinearOperator):
        return operator.pseudo_inverse(y, shape).clamp(-1, 1)
    return y.new_zeros(1, *shape)


def restoration_layout(pipe: Pipeline, generated: Generated, names: list[str]) -> Layout:
    """The layout of the sheet: a row for each kind of picture, under the call in one line."""
    return lay_out(names, generated.images.shape[-1], caption(pipe, generated.call, generated.nfe))


def save_restoration(path: Path, pipe: Pipeline, generated: Generated, truth: Tensor | None = None) -> Scores:
    """A sheet of restorations with its manifest, which has the scores; its inputs are written next to it.

    Args:
        path: A PNG.
        pipe: What generated.
        generated: Of output_type 'raw', of a call with a measurement.
        truth: (1, C, H, W) in [-1, 1]; None where it is not known.

    Returns:
        The scores.
    """
    given = generated.call.given
    if given is None or given.measurement is None:
        raise ValueError("a restoration is of a call with a measurement")
    scores = score(generated.images, given.measurement, truth)
    tiles, names = restoration_tiles(generated, truth)
    layout = restoration_layout(pipe, generated, names)
    tensors = given.tensors()
    picture: dict[str, Any] = {
        "kind": "restoration",
        "scale": layout.scale,
        "cells": [list(cell) for cell in layout.cells],
        "texts": [list(text) for text in layout.texts],
        "scores": to_spec(vars(scores)),
        "truth": to_spec(truth, tensors),
    }
    write_file(path, png_bytes(draw_sheet(tiles, layout), describe(pipe, generated).with_picture(picture)))
    write_inputs(path, tensors)
    return scores


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)
