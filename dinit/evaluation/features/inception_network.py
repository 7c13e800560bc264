"""Inception-v3's forward pass over torch-fidelity's layers, with the feature map of sFID and a choice of resize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinit.evaluation.features.base import SPATIAL_CHANNELS, Extracted

SIDE = 299
_STEM = (
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "MaxPool_1",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
    "MaxPool_2",
)
_BEFORE = (*_STEM, "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c")
_AFTER = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")
Resize = Callable[[Tensor], Tensor]


class InceptionNetwork:
    """Function of images (B, 3, H, W) uint8 to pooled features (B, 2048), logits (B, 1008) and spatial features.

    The logits are without their bias. The spatial features (B, 17 · 17 · 7) are 7 channels of the first convolution
    of the third 17×17 block (TensorFlow's `mixed_6/conv`), in the order height, width, channel: those of sFID (Nash
    et al. 2021) as the ADM evaluator computes it.

    Args:
        weights: the file.
        device: where it runs.
        resize: images to 299×299 floats in 0 .. 255.
        spatial: whether to give the spatial features.
    """

    def __init__(self, weights: Path, device: torch.device | str, resize: Resize, spatial: bool) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        net: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
        self.net, self.resize, self.spatial = net.to(device), resize, spatial

    def __call__(self, images: Tensor) -> Extracted:
        x = (self.resize(images) - 128) / 128
        for name in _BEFORE:
            x = getattr(self.net, name)(x)
        places = None
        if self.spatial:
            places = self.net.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        for name in _AFTER:
            x = getattr(self.net, name)(x)
        pooled = x.flatten(1)
        return Extracted(pooled, pooled @ self.net.fc.weight.T, places)


def resize_tensorflow(images: Tensor) -> Tensor:
    """Bilinear without antialiasing, corners as TensorFlow 1 places them: what FID was defined with."""
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    return interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(SIDE, SIDE), align_corners=False)


def resize_clean(images: Tensor, side: int = SIDE) -> Tensor:
    """Bicubic with antialiasing, in float and without rounding: Parmar et al. 2022 ("On aliased resizing")."""
    planes = images.cpu().float().numpy()
    out = np.empty((*planes.shape[:2], side, side), dtype=np.float32)
    for index in np.ndindex(*planes.shape[:2]):
        picture = Image.fromarray(planes[index])
        out[index] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(out).clamp(0, 255).to(images.device)
