"""The standard deviation of the noise in a measurement, estimated."""

from __future__ import annotations

from torch import Tensor

from dinit.arguments import shown

_QUARTILE = 0.6744897501960817  # of the standard normal: the median of its absolute value


def estimate_noise(y: Tensor, seen: Tensor | None = None) -> float:
    """The standard deviation of white noise in images, from their finest diagonal differences.

    It is the median of the absolute diagonal coefficients of the Haar wavelet over 0.6745 (Donoho and Johnstone
    1994, Ideal spatial adaptation by wavelet shrinkage). Images without noise have mostly small ones; fine textures
    count as noise, and an image of few pixels gives a rough estimate.

    Args:
        y: (B, C, H, W), at least 2 x 2 pixels.
        seen: Broadcastable to y, 0 or False where a value does not count; None for all.

    Raises:
        ValueError: y of another form, or in which no block of 2 x 2 pixels is seen.
    """
    if y.ndim != 4 or min(y.shape[2:]) < 2 or not len(y):
        raise ValueError(f"noise is estimated from images (B, C, H, W) of at least 2 x 2 pixels, got {shown(y)}")
    difference = (_corner(y, 0, 0) - _corner(y, 0, 1) - _corner(y, 1, 0) + _corner(y, 1, 1)).abs().double() / 2
    if seen is not None:
        seen = (seen != 0).expand_as(y)
        whole = _corner(seen, 0, 0) & _corner(seen, 0, 1) & _corner(seen, 1, 0) & _corner(seen, 1, 1)
        difference = difference[whole]
        if not len(difference):
            raise ValueError("noise cannot be estimated: no 2 x 2 pixels are seen together; give noise_std")
    return float(difference.flatten().median()) / _QUARTILE


def _corner(y: Tensor, down: int, right: int) -> Tensor:
    """One of the four pixels of every block of 2 x 2."""
    height, width = y.shape[2] - 1, y.shape[3] - 1
    return y[:, :, down : down + height, right : right + width]
