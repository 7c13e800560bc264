"""Sanity checks: warnings of greyscale share, JPEG artefacts, duplicates and sizes that differ between two sets.

A Fréchet distance reacts to these as much as to errors of a model.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import torch
from torch import Tensor

from dinit.evaluation.image_features import ImageFeatures, ImageSource, spread_out

_GREY, _BLOCKY = (
    0.02,
    0.06,
)  # differences of shares from which a warning is given; without JPEG, up to 0.05 was measured
_BLOCK = 8


def uneven(samples: ImageFeatures, reference: ImageFeatures, any_size: bool = False) -> list[str]:
    """Warnings, one line each, of differences that make a score of these sets unreliable."""
    found = few_samples(samples, "samples") + few_samples(reference, "reference images")
    if samples.images is None:
        return found
    found += copies(samples.images)
    if reference.images is not None:
        ours, theirs = spread_out(samples.images), spread_out(reference.images)
        found += other_size(ours, theirs, any_size) + grey(ours, theirs) + recompressed(ours, theirs)
    return found


def few_samples(of: ImageFeatures, what: str) -> list[str]:
    """Warning where the covariance has not full rank."""
    gaussian = of.gaussian
    if gaussian is None or not gaussian.rank_deficient:
        return []
    return [
        f"{gaussian.count} {what} for {gaussian.dim} features: the covariance is not of full rank, and the Fréchet "
        f"distance is far above that of more images; take at least {gaussian.dim + 1}, better ten times as many"
    ]


def other_size(ours: Tensor, theirs: Tensor, any_size: bool) -> list[str]:
    """Warning where images are of another size than the reference's and the extractor resizes both."""
    a, b = tuple(ours.shape[2:]), tuple(theirs.shape[2:])
    if a == b or not any_size:
        return []
    return [
        f"samples are {a[0]}×{a[1]}, the reference {b[0]}×{b[1]}: both are resized to the extractor's input, and "
        "the distance includes the effect of that"
    ]


def grey(ours: Tensor, theirs: Tensor) -> list[str]:
    """Warning where one set has many more greyscale images than the other, or another number of channels."""
    if ours.shape[1] != theirs.shape[1]:
        return [f"samples have {ours.shape[1]} channel(s), the reference {theirs.shape[1]}"]
    if ours.shape[1] != 3:
        return []
    a, b = grey_share(ours), grey_share(theirs)
    if abs(a - b) <= max(_GREY, 3 * _error(a, len(ours), b, len(theirs))):
        return []
    return [
        f"{a:.1%} of the samples are greyscale and {b:.1%} of the reference: colour alone separates the two sets"
    ]


def grey_share(images: Tensor) -> float:
    """Share of (N, 3, H, W) images whose three channels are equal."""
    same = (images[:, 0] == images[:, 1]) & (images[:, 1] == images[:, 2])
    return float(same.flatten(1).all(dim=1).double().mean())


def recompressed(ours: Tensor, theirs: Tensor) -> list[str]:
    """Warning where one set has JPEG's 8×8 grid and the other has not. JPEGs resized afterwards are not found."""
    if min(*ours.shape[2:], *theirs.shape[2:]) < 4 * _BLOCK:
        return []
    a, b = blockiness(ours), blockiness(theirs)
    if abs(a - b) <= _BLOCKY:
        return []
    which, other = ("samples", "reference") if a > b else ("reference", "samples")
    return [
        f"the {which} have the 8×8 grid of JPEG and the {other} not ({a:.3f} against {b:.3f}): compression alone "
        "separates the two sets; store both without loss, or compress both alike"
    ]


def blockiness(images: Tensor) -> float:
    """Share of small cosine coefficients in 8×8 blocks on JPEG's grid less that of blocks 4 pixels off it.

    JPEG rounds most coefficients of a block's cosine transform to 0; without JPEG the difference is about 0. Small
    is below half a byte; the transform is of brightness; both kinds of blocks keep away from the edges, so that
    they cover the same content. images: (N, C, H, W) uint8, H and W at least 32.
    """
    brightness, half = images.double().mean(dim=1), _BLOCK // 2
    high, wide = (side - side % _BLOCK for side in brightness.shape[1:])
    on = brightness[:, _BLOCK : high - _BLOCK, _BLOCK : wide - _BLOCK]
    return _small_share(on) - _small_share(brightness[:, half : high - half, half : wide - half])


def _small_share(planes: Tensor) -> float:
    blocks = planes.unfold(1, _BLOCK, _BLOCK).unfold(2, _BLOCK, _BLOCK)
    k, n = torch.arange(_BLOCK).double()[:, None], torch.arange(_BLOCK).double()
    basis = torch.cos(math.pi * k * (2 * n + 1) / (2 * _BLOCK)) * math.sqrt(2 / _BLOCK)
    basis[0] /= math.sqrt(2)
    coefficients = basis @ blocks @ basis.T
    live = blocks.flatten(-2).std(dim=-1) > 1  # flat blocks have no coefficients to compare
    return float((coefficients[live].abs() < 0.5).double().mean()) if bool(live.any()) else 0.0


def copies(images: ImageSource) -> list[str]:
    """Warning where images of the set are the same byte for byte."""
    duplicates = len(images) - len(fingerprints(images))
    if not duplicates:
        return []
    return [f"{duplicates} of {len(images)} samples are byte for byte copies of another sample"]


def fingerprints(images: ImageSource) -> Counter[bytes]:
    """Number of occurrences of each image, by a hash of its bytes."""
    seen: Counter[bytes] = Counter()
    for start in range(0, len(images), 256):
        for image in images[start : start + 256]:
            seen[hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()] += 1
    return seen


def _error(a: float, n: int, b: float, m: int) -> float:
    """Standard error of the difference of two shares."""
    return math.sqrt(a * (1 - a) / n + b * (1 - b) / m)
