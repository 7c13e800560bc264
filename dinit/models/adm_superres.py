"""ADM's upsamplers: ADM with a smaller image as a second input. Dhariwal & Nichol 2021, arXiv:2105.05233."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dinit.models.adm import IMAGENET, ADMNetwork
from dinit.models.base import Preset, config_from_fields

_IMAGENET = {**IMAGENET, "channels": 192, "channel_mult": (1, 1, 2, 2, 4, 4)}


@config_from_fields
class ADMSuperRes(ADMNetwork):
    """Class-conditional diffusion upsampler; presets 64-256 and 128-512. Arguments: see ADMNetwork.

    image_size is that of the large image. The small one is upsampled bilinearly to the size of x and enters
    the stem after it. Not among BACKBONES, as it needs that image: `given(low_res)` is what samplers take.
    """

    stem_inputs: ClassVar[int] = 2
    presets: ClassVar[Mapping[str, Preset]] = {
        "64-256": {**_IMAGENET, "image_size": 256, "attention_factors": (8, 16, 32), "num_heads": 4},
        "128-512": {**_IMAGENET, "image_size": 512, "attention_factors": (16, 32), "head_dim": 64},
    }

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, noise_label: Tensor, cond: Tensor, low_res: Tensor
    ) -> Tensor:
        """x (B, C, H, W), noise_label (B,) or (1,), cond (B, D), low_res (B, C, h, w) -> (B, out_channels, H, W).

        low_res is in the range of x's data, [-1, 1]. ValueError where it is larger than x or another batch.
        """
        self.check_input(x, noise_label, cond)
        if low_res.ndim != 4 or low_res.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"ADMSuperRes takes low_res of shape {(*x.shape[:2], 'h', 'w')} with x of shape "
                f"{tuple(x.shape)}, got {tuple(low_res.shape)}; give one small image for each in x"
            )
        if not all(0 < small <= large for small, large in zip(low_res.shape[2:], x.shape[2:], strict=True)):
            raise ValueError(
                f"ADMSuperRes upsamples low_res to the size of x, got {tuple(low_res.shape[2:])} for "
                f"{tuple(x.shape[2:])}; give the smaller image as low_res"
            )
        enlarged = F.interpolate(low_res.to(x.dtype), size=x.shape[2:], mode="bilinear")
        return self.predict(torch.cat([x, enlarged], dim=1), noise_label, cond)

    def given(self, low_res: Tensor) -> GivenLowRes:
        """This network with its small images as a backbone for samplers and guidance.

        Args:
            low_res: (b, C, h, w), one small image for each sample, in the range of x's data, [-1, 1].

        Raises:
            ValueError: another shape.
        """
        if low_res.ndim != 4 or not len(low_res) or low_res.shape[1] != self.in_channels:
            raise ValueError(
                f"low_res must be (b, {self.in_channels}, h, w), one small image a sample, "
                f"got {tuple(low_res.shape)}"
            )
        return GivenLowRes(self, low_res)


@dataclass(frozen=True, eq=False)
class GivenLowRes:
    """Upsampler with its small images filled in, which acts as a backbone.

    Attributes:
        model: the upsampler.
        low_res: (b, C, h, w). Batches of n * b images, such as [x, x] of guidance, repeat them n times.
    """

    model: ADMSuperRes
    low_res: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes of the model."""
        return self.model.num_classes

    @property
    def null_class(self) -> bool:
        """Whether the model has a null label."""
        return self.model.null_class

    @property
    def in_channels(self) -> int:
        """Channels of x."""
        return self.model.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.model.out_channels

    @property
    def image_size(self) -> int:
        """Height = width of the large image in pixels."""
        return self.model.image_size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.model.dtype

    def embed(self, labels: Tensor) -> Tensor:
        """Condition (B, D) of `labels` (B,) int64."""
        return self.model.embed(labels)

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """Output of the upsampler.

        Args:
            x: (n * b, C, H, W).
            noise_label: (n * b,) or (1,).
            cond: (n * b, D), from `embed`.

        Returns:
            (n * b, out_channels, H, W).

        Raises:
            ValueError: a batch that is no multiple of b.
        """
        times, rest = divmod(len(x), len(self.low_res))
        if rest or not times:
            raise ValueError(
                f"this upsampler was given {len(self.low_res)} small images, so it takes batches that are a "
                f"multiple of {len(self.low_res)}, got {len(x)}; call given() with one small image a sample"
            )
        return self.model(x, noise_label, cond, self.low_res.repeat(times, 1, 1, 1))
