"""Pixel statistics: brightness, contrast, sharpness and variety of two sets, without any features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dinit.evaluation.image_features import ImageSource, spread_out
from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured

_MOST = 2000  # images of a set, evenly spaced over it


def pixel_statistics(images: Tensor) -> dict[str, float]:
    """Statistics of a set of images.

    Args:
        images: (N, C, H, W) uint8, at least 2 of each.

    Returns:
        brightness: mean of all pixels. contrast: mean over images of the standard deviation of their pixels.
        sharpness: mean absolute difference of neighbouring pixels. variety: root mean square over pixels of their
        standard deviation over the set. All in bytes, 0 to 255.
    """
    floats = images.float()
    across, down = floats.diff(dim=-1).abs().mean(), floats.diff(dim=-2).abs().mean()
    return {
        "brightness": float(floats.mean()),
        "contrast": float(floats.flatten(1).std(dim=1, correction=0).mean()),
        "sharpness": float((across + down) / 2),
        "variety": float(floats.var(dim=0, correction=0).mean().sqrt()),
    }


def compared(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Difference of brightness, and ratios of the other statistics to those of the reference.

    Args:
        ours: of `pixel_statistics`.
        theirs: of the reference.
    """
    ratios = {name: ours[name] / max(theirs[name], 1e-9) for name in ("contrast", "sharpness", "variety")}
    return {"brightness": ours["brightness"] - theirs["brightness"], **ratios}


@METRICS.register("pixels")
def pixels(inputs: MetricInputs) -> dict[str, float]:
    """Pixel statistics compared with the reference's; no features are needed.

    brightness: difference of the mean pixel, in bytes. contrast, sharpness, variety: ratios to the reference,
    about 1
    for equal sets. A sharpness well below 1 is blur, well above 1 is noise; a variety well below 1 is a set of
    images
    that are too much alike.
    """
    if inputs.samples.images is None or inputs.reference.images is None:
        raise NotMeasured("the reference holds no images")
    if ("pixels",) not in inputs.shared:  # a text is the name of an encoder
        inputs.shared[("pixels",)] = _of(inputs.reference.images)
    return compared(_of(inputs.samples.images), inputs.shared[("pixels",)])


def _of(images: ImageSource) -> dict[str, float]:
    with torch.no_grad():
        return pixel_statistics(spread_out(images, _MOST))
