"""PSNR and SSIM against closed forms, and against the definition written out place by place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinit.evaluation.metrics.reconstruction import psnr, ssim, window_for

C1, C2 = 0.01**2, 0.03**2
IMAGES = torch.rand(2, 3, 15, 13, generator=torch.Generator().manual_seed(0)) * 2 - 1
OTHERS = (IMAGES + 0.3 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def constant(value: float) -> torch.Tensor:
    """Grey of `value` in [0, 1]."""
    return torch.full((1, 1, 12, 12), 2 * value - 1)


def test_psnr_is_the_error_in_decibels() -> None:
    found = psnr(torch.cat([constant(0.5), constant(0.2)]), torch.cat([constant(0.6), constant(0.21)]))
    torch.testing.assert_close(found, torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)
    assert psnr(IMAGES, IMAGES).tolist() == [100.0, 100.0]
    assert psnr(constant(1.0), constant(1.5)).item() == 100.0  # what lies outside is clipped


def test_ssim_of_constant_images_is_the_luminance_alone() -> None:
    for a, b in ((0.2, 0.8), (0.0, 1.0), (0.5, 0.5)):
        expected = (2 * a * b + C1) / (a * a + b * b + C1)
        # A variance is a difference of float32 means of squares, here of 0.64, and is compared with C2 = 9e-4:
        # 3.5e-5 were measured.
        assert ssim(constant(a), constant(b)).item() == pytest.approx(expected, rel=5e-4)


def test_ssim_is_the_definition_written_out() -> None:
    x, y = ((one[0].double().numpy() + 1) / 2 for one in (IMAGES, OTHERS))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    places = []
    for channel in range(3):
        for top in range(15 - 10):
            for left in range(13 - 10):
                a, b = (one[channel, top : top + 11, left : left + 11] for one in (x, y))
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
                places.append(luminance * (2 * both + C2) / (var_a + var_b + C2))
    found = ssim(IMAGES, OTHERS)
    assert found[0].item() == pytest.approx(float(np.mean(places)), abs=1e-5)
    torch.testing.assert_close(ssim(OTHERS, IMAGES), found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ssim(IMAGES, IMAGES), torch.ones(2), rtol=0, atol=1e-5)


def test_small_images_get_the_largest_window_that_fits() -> None:
    assert [window_for(side) for side in (1, 2, 7, 8, 11, 12, 64)] == [1, 1, 7, 7, 11, 11, 11]
    small = IMAGES[..., :8, :8]
    torch.testing.assert_close(ssim(small, 0.5 * small), ssim(small, 0.5 * small, window=7))
    assert math.isfinite(ssim(small, -small)[0])
    with pytest.raises(ValueError, match="odd and at most 8 pixels, got 11"):
        ssim(small, small, window=11)
    with pytest.raises(ValueError, match=r"got \(2, 3, 15, 13\) and \(2, 3, 8, 8\)"):
        psnr(IMAGES, small)
