"""Glyph factors: each factor read back from generated pictures, and its spread within classes.

Colours are measured, by the arithmetic that `dinit.data.glyphs` mixes them with; character, font, rotation and
scale are predicted by the heads of the glyphs classifier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.data.glyphs import FONTS, INK, Glyphs, ReadableFactors
from dinit.evaluation.features.glyphs_classifier import (
    ROTATION_UNIT,
    SCALE_MEAN,
    SCALE_RATE,
    GlyphsClassifier,
    read_glyphs,
)

_HUES = 12  # bins of 30°
_EDGE = 2  # pixels: the ground is measured there, as a glyph seldom reaches it
_NEAR = 0.3  # of the greatest distance from the ground: nearer pixels are ground with noise


@dataclass(frozen=True)
class Spread:
    """Spread of one factor within classes, averaged over the classes that have images.

    Attributes:
        bins: number of bins of the histogram.
        entropy: of the histogram, as a share of log(bins): 1 is uniform, 0 is all in one bin. Few images
            underestimate it; Miller and Madow's (1955) correction is added, up to 1.
        coverage: share of bins with an image in them.
        expected_coverage: coverage by as many uniform draws.
    """

    bins: int
    entropy: float
    coverage: float
    expected_coverage: float


def colours(images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ink and ground of each image, (N, 3) and (N, 3), in bytes. images: (N, 3, S, S) uint8.

    Ground: the median of the edge. A pixel is ground + share · (ink - ground) and the ink's mean is known, so the
    sum over the glyph gives the ink whatever the shares, also for thin strokes, which never cover a pixel.
    """
    pixels = images.double()
    size = pixels.shape[-1]
    inner = torch.zeros(size, size, dtype=torch.bool)
    inner[_EDGE:-_EDGE, _EDGE:-_EDGE] = True
    ground = pixels[:, :, ~inner].median(dim=2).values
    off = pixels.flatten(2) - ground[:, :, None]
    distance = off.square().sum(1).sqrt()
    glyph = distance > _NEAR * distance.amax(1, keepdim=True)
    total = (off * glyph[:, None]).sum(2)
    gap = INK - ground.mean(1)
    gap = torch.where(gap < 0, gap.clamp(max=-1), gap.clamp(min=1))  # a ground as grey as the ink has no share
    shares = (total.mean(1) / gap).clamp(min=1e-6)
    return (ground + total / shares[:, None]).numpy(), ground.numpy()


def hue_of(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hue of colours (N, 3), (N,) degrees 0 .. 360 in the plane across grey; red is 0."""
    red, green, blue = colour.T
    return np.degrees(np.arctan2(math.sqrt(3) / 2 * (green - blue), red - (green + blue) / 2)) % 360


def read_factors(images: Tensor, model: GlyphsClassifier | None = None) -> ReadableFactors:
    """Factors of images (N, 3, S, S) uint8, S 32 or 64. model: by default the shipped classifier.

    ValueError for another shape or dtype.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"factors are read from (N, 3, S, S) uint8 images, got {images.dtype} of {tuple(images.shape)}; "
            "dinit.data.to_uint8 converts from [-1, 1]"
        )
    found = read_glyphs(images, model)
    ink, ground = colours(images)
    return ReadableFactors(
        label=found.characters.argmax(1).numpy(),
        font=found.fonts.argmax(1).numpy(),
        hue=hue_of(ink),
        background_hue=hue_of(ground),
        background=ground.mean(1),
        rotation=ROTATION_UNIT * found.numbers[:, 0].double().numpy(),
        scale=SCALE_MEAN + found.numbers[:, 1].double().numpy() / SCALE_RATE,
    )


def bin_factors(read: ReadableFactors) -> dict[str, tuple[NDArray[np.int64], int]]:
    """Bin of each image and number of bins, by factor; in the data all bins are about equally likely.

    hue and background_hue: 30° each; background: four dark and four light; font; rotation: 5°; scale: three.
    """

    def even(values: NDArray, low: float, high: float, bins: int) -> NDArray[np.int64]:
        return np.clip(np.floor((values - low) / (high - low) * bins), 0, bins - 1).astype(np.int64)

    lightness = np.asarray(read.background, dtype=np.float64)
    light = lightness > INK  # edges of bins lie between the whole numbers of the data
    shade = np.where(light, even(lightness, 191.5, 239.5, 4) + 4, even(lightness, 15.5, 63.5, 4))
    return {
        "hue": (even((read.hue + 0.5) % 360, 0, 360, _HUES), _HUES),
        "background_hue": (even((read.background_hue + 0.5) % 360, 0, 360, _HUES), _HUES),
        "background": (shade, 8),
        "font": (read.font, len(FONTS)),
        "rotation": (even(read.rotation, -15.25, 15.25, 6), 6),
        "scale": (even(read.scale, 51.5 / 128, 72.5 / 128, 3), 3),
    }


def spread(bins: NDArray[np.int64], count: int, labels: NDArray[np.int64]) -> Spread:
    """Spread of one factor within classes. bins, labels: (N,). count: number of bins, at least 2."""
    entropies, hit, expected = [], [], []
    for label in np.unique(labels):
        times = np.bincount(bins[labels == label], minlength=count)
        n = int(times.sum())
        share = times[times > 0] / n
        entropy = -(share * np.log(share)).sum() + (len(share) - 1) / (2 * n)
        entropies.append(min(1.0, entropy / math.log(count)))
        hit.append(len(share) / count)
        expected.append(1 - (1 - 1 / count) ** n)
    return Spread(count, float(np.mean(entropies)), float(np.mean(hit)), float(np.mean(expected)))


def diversity(
    images: Tensor, labels: Tensor | None = None, model: GlyphsClassifier | None = None
) -> dict[str, Spread]:
    """Spread of each factor within classes. images: (N, 3, S, S) uint8. labels: (N,); None is one class.

    ValueError for labels of another length, or images that `read_factors` refuses.
    """
    classes = np.zeros(len(images), dtype=np.int64) if labels is None else labels.cpu().numpy()
    if classes.shape != (len(images),):
        raise ValueError(f"labels must have the shape ({len(images)},), one an image, got {classes.shape}")
    binned = bin_factors(read_factors(images, model))
    return {name: spread(bins, count, classes) for name, (bins, count) in binned.items()}


def reader_errors(data: Glyphs, model: GlyphsClassifier | None = None) -> dict[str, float]:
    """Errors of `read_factors` on real images, whose factors are known.

    label, font: share of correct ones. hue, background_hue, rotation (degrees), background (bytes), scale (share of
    the side): root mean square of the error. NAME_bin: share of images in the right bin of `bin_factors`.
    ValueError unless the data set has the classifier's characters and fonts.
    """
    model_names = (model or GlyphsClassifier.from_pretrained()).config
    if (data.class_names, data.fonts) != (model_names.class_names, model_names.fonts):
        raise ValueError(
            "the classifier was trained on the default characters and fonts of 'glyphs' alone; give such a data set"
        )
    true, read = data.factor_arrays(), read_factors(data.uint8_images(), model)
    found = {name: float((getattr(read, name) == getattr(true, name)).mean()) for name in ("label", "font")}
    for name in ("hue", "background_hue", "background", "rotation", "scale"):
        error = getattr(read, name) - getattr(true, name)
        if "hue" in name:
            error = (error + 180) % 360 - 180
        found[name] = float(np.sqrt(np.mean(error**2)))
    there, here = bin_factors(true), bin_factors(read)
    return found | {f"{name}_bin": float((here[name][0] == there[name][0]).mean()) for name in here}
