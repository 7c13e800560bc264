"""PSNR and SSIM of reconstructions. Wang et al. 2004."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels; Wang et al. 2004, section III-C, as are sigma, K1 and K2
_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03
_NO_ERROR = 1e-10  # lower bound of the mean squared error of pixels in [0, 1]: at most 100 dB, and never infinity


def psnr(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Peak signal-to-noise ratio: 10 log10(1 / mean squared error) of images scaled to [0, 1].

    Args:
        images: (B, C, H, W), clipped to [-1, 1].
        reconstructed: as images.

    Returns:
        (B,) decibels, at most 100.

    Raises:
        ValueError: other or different shapes.
    """
    x, y = _unit(images, reconstructed)
    error = (x - y).square().flatten(1).mean(1).clamp(min=_NO_ERROR)
    return -10 * error.log10()


def ssim(images: Tensor, reconstructed: Tensor, window: int | None = None) -> Tensor:
    """Structural similarity, averaged over channels and positions. Wang et al. 2004, Eq. 13.

    Args:
        images: (B, C, H, W), clipped to [-1, 1].
        reconstructed: as images.
        window: side of the Gaussian window (sigma 1.5) in pixels, odd; it stays inside the image. By default 11, or
            the largest that fits.

    Returns:
        (B,) in [-1, 1].

    Raises:
        ValueError: other or different shapes, or a window that is even or too large.
    """
    x, y = _unit(images, reconstructed)
    window = window_for(min(x.shape[2:])) if window is None else window
    if window % 2 == 0 or not 1 <= window <= min(x.shape[2:]):
        raise ValueError(f"the window must be odd and at most {min(x.shape[2:])} pixels, got {window}")
    mean_x, mean_y, xx, yy, xy = _smooth(torch.stack([x, y, x * x, y * y, x * y]), window)
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def window_for(side: int) -> int:
    """Side of the usual window, or the largest odd one that fits into `side` pixels."""
    return min(WINDOW, side - 1 + side % 2)


def _unit(images: Tensor, reconstructed: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != reconstructed.shape or images.ndim != 4:
        shapes = f"{tuple(images.shape)} and {tuple(reconstructed.shape)}"
        raise ValueError(f"images and reconstructions must both be (B, C, H, W), got {shapes}")
    x, y = (((one.float() + 1) / 2).clamp(0, 1) for one in (images, reconstructed))
    return x, y


def _smooth(stack: Tensor, window: int) -> Tensor:
    """Stack (K, B, C, H, W) averaged with a Gaussian window; H and W shrink by window - 1."""
    places = torch.arange(window, device=stack.device, dtype=torch.float64) - (window - 1) / 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).to(stack.dtype)
    planes = stack.reshape(math.prod(stack.shape[:3]), 1, *stack.shape[3:])
    planes = F.conv2d(F.conv2d(planes, weights[None, None, :, None]), weights[None, None, None, :])
    return planes.reshape(*stack.shape[:3], *planes.shape[2:])
