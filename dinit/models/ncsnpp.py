"""NCSN++ and DDPM++: U-Nets with BigGAN's residual blocks. Song et al. 2021, arXiv:2011.13456, appendix H."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_block, run_blocks
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.feature_maps import ConvHead
from dinit.models.layers.fir import ConvDown, FIRConvDown, downsampler, upsampler
from dinit.models.layers.presets import tiny_preset
from dinit.models.layers.score_unet import (
    CIFAR10,
    FourierEmbedding,
    ScoreBlock,
    build_levels,
    check_levels,
    decode,
    encode,
    fan_average,
    group_norm,
)
from dinit.models.layers.skips import Skips

_CIFAR = {**CIFAR10, "blocks_per_level": 4}
_DEEP = {"blocks_per_level": 8}
_VP = {
    "fir": True,
    "input_pyramid": "residual",
    "output_pyramid": "none",
    "embedding": "positional",
    "scale_by_sigma": False,
    "centered": True,
}
_VE = {
    **_VP,
    "embedding": "fourier",
    "scale_by_sigma": True,
    "centered": False,
    "sigma_max": 50.0,
    "num_scales": 1000,
}
_VE_DISCRETE = {**_VE, "embedding": "positional"}
_VE_LARGE = {**_VE, "input_pyramid": "skip", "output_pyramid": "skip", "num_scales": 2000}
_DDPMPP = {**_VP, "fir": False, "input_pyramid": "none"}
_256 = {
    **_CIFAR,
    **_VE_LARGE,
    "image_size": 256,
    "channel_mult": (1, 1, 2, 2, 2, 2, 2),
    "blocks_per_level": 2,
    "attention_levels": (4,),
}
_1024 = {
    **_256,
    "image_size": 1024,
    "channels": 16,
    "channel_mult": (1, 2, 4, 8, 16, 32, 32, 32),
    "blocks_per_level": 1,
    "attention_levels": (6,),
    "sigma_max": 1348.0,
}
_PUBLISHED = {
    "cifar10-ve": {**_CIFAR, **_VE},
    "cifar10-ve-deep": {**_CIFAR, **_VE, **_DEEP},
    "cifar10-ve-discrete": {**_CIFAR, **_VE_DISCRETE},
    "celeba-64-ve": {**_CIFAR, **_VE_DISCRETE, "image_size": 64, "attention_levels": (2,), "sigma_max": 90.0},
    "256-ve": {**_256, "sigma_max": 348.0},
    "bedroom-256-ve": {**_256, "sigma_max": 378.0},
    "church-256-ve": {**_256, "sigma_max": 380.0},
    "1024-ve": _1024,
    "cifar10-vp": {**_CIFAR, **_VP},
    "cifar10-vp-deep": {**_CIFAR, **_VP, **_DEEP},
    "cifar10-ddpmpp": {**_CIFAR, **_DDPMPP},
    "cifar10-ddpmpp-deep": {**_CIFAR, **_DDPMPP, **_DEEP},
}
_RESIDUAL_SCALE = 1 / math.sqrt(2)


def _norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels, but at most 32 groups."""
    return group_norm("NCSNpp", min(max(channels // 4, 1), 32), channels)


class InputSkip(nn.Module):
    """The downsampled image is added to each level through a 1x1 convolution."""

    def __init__(self, in_channels: int, width: int, fir: bool) -> None:
        super().__init__()
        self.down = downsampler(fir)
        self.conv = nn.Conv2d(in_channels, width, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, width, H, W), pyramid (B, in_channels, 2H, 2W) -> h, and the pyramid for the next level."""
        pyramid = self.down(pyramid)
        return h + self.conv(pyramid), pyramid


class InputResidual(nn.Module):
    """The sum of the last level, convolved and downsampled, is added to this level."""

    def __init__(self, in_width: int, width: int, fir: bool) -> None:
        super().__init__()
        self.down = FIRConvDown(in_width, width) if fir else ConvDown(in_width, width)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, width, H, W), pyramid (B, in_width, 2H, 2W) -> h, and the pyramid for the next level."""
        h = (self.down(pyramid) + h) * _RESIDUAL_SCALE
        return h, h


def _input_pyramid(kind: str, in_channels: int, widths: Sequence[int], fir: bool) -> nn.ModuleList:
    """Input pyramid: a module for each level but the first. widths: of these levels."""
    if kind == "skip":
        return nn.ModuleList(InputSkip(in_channels, width, fir) for width in widths[:-1])
    if kind == "residual":
        return nn.ModuleList(
            InputResidual(below, width, fir)
            for below, width in zip([in_channels, *widths], widths[:-1], strict=False)
        )
    return nn.ModuleList()


@BACKBONES.register("ncsnpp")
@config_from_fields
class NCSNpp(Backbone):
    """NCSN++ and DDPM++ (Song et al. 2021, arXiv:2011.13456, appendix H); the published networks are presets.

    All published ones are unconditional. Any height and width that are multiples of 2^(levels - 1).

    Args:
        image_size: height = width it is configured for.
        in_channels: channels of x.
        channels: channels of the stem, even.
        channel_mult: channels of each level as a multiple of `channels`.
        blocks_per_level: on the way down; one more on the way up.
        attention_levels: those (0 is full resolution) with single-head attention; the middle has it in any case.
        fir: resample by the filter [1, 3, 3, 1] instead of 2x2 means and copies.
        input_pyramid: how smaller images join the way down: "none", "skip", "residual".
        output_pyramid: how outputs at lower resolutions are summed on the way up: "none", "skip".
        embedding: "fourier" takes sigma itself as the noise label, positive; "positional" takes a number such as
            999 t or the index of a noise level.
        scale_by_sigma: divide the output by sigma, which makes it a score; positional then takes the index, 0 at
            sigma_max .. num_scales - 1 at sigma_min, in a geometric sequence of noise levels.
        centered: x is in [-1, 1]; else in [0, 1], and the network maps it to [-1, 1] itself.
        sigma_min: smallest noise level, positive.
        sigma_max: largest noise level.
        num_scales: noise levels, at least 2.
        num_classes: above 0, a label embedding (not in the published networks) is added to that of the time.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: before the last convolution of a block, in [0, 1).

    Raises:
        ValueError: sizes or choices that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(
            **_VP | {"output_pyramid": "skip"},
            channels=16,
            channel_mult=(1, 2),
            blocks_per_level=1,
            attention_levels=(1,),
        ),
        **_PUBLISHED,
    }
    _keep_in_fp32_modules: ClassVar[list[str]] = ["frequencies"]  # for from_pretrained(torch_dtype=...)

    image_size: int = 32
    in_channels: int = 3
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    blocks_per_level: int = 4
    attention_levels: Sequence[int] = (1,)
    fir: bool = True
    input_pyramid: Literal["none", "skip", "residual"] = "residual"
    output_pyramid: Literal["none", "skip"] = "none"
    embedding: Literal["positional", "fourier"] = "positional"
    scale_by_sigma: bool = False
    centered: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    num_classes: int = 0
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def build(self) -> None:
        channels, fir = self.channels, self.fir
        widths = check_levels("NCSNpp", channels, self.channel_mult, self.attention_levels)
        _check_choices(self.input_pyramid, self.output_pyramid, self.embedding)
        _check_sigmas(self.sigma_min, self.sigma_max, self.num_scales)
        self.cond_dim = 4 * channels
        self.log_sigma_max = math.log(self.sigma_max)
        # Of sigma, from one noise level to the next.
        self.log_step = math.log(self.sigma_min / self.sigma_max) / (self.num_scales - 1)

        self.stem = nn.Conv2d(self.in_channels, channels, 3, padding=1)
        self.time_embedding = _time_embedding(self.embedding == "fourier", self.cond_dim, channels)
        self.label_embedding = (
            LabelEmbedding(self.num_classes, self.cond_dim, self.null_class) if self.num_classes else None
        )
        block = _blocks(self.cond_dim, self.dropout)
        self.encoder, self.middle, self.decoder = build_levels(
            block, channels, widths, self.blocks_per_level, self.attention_levels
        )
        self.downs = nn.ModuleList(block(w, w, False, downsampler(fir)) for w in widths[:-1])
        self.ups = nn.ModuleList(block(w, w, False, upsampler(fir)) for w in widths[:0:-1])
        self.pyramid = _input_pyramid(self.input_pyramid, self.in_channels, widths, fir)
        fan_average(self.stem)
        fan_average(self.pyramid)
        coarse = widths[:0:-1] if self.output_pyramid == "skip" else []
        self.coarse_heads = nn.ModuleList(ConvHead(_norm(w), self.out_channels) for w in coarse)
        self.enlarge = upsampler(fir)
        self.head = ConvHead(_norm(widths[0]), self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = x.contiguous(memory_format=torch.channels_last)
        h, skips = self._encode(x if self.centered else 2 * x - 1, c)
        h = run_blocks(self, self.middle, h, c)
        out = self._decode(h, skips, c)
        if self.scale_by_sigma:
            out = out / self._sigma(noise_label).to(out.dtype)[:, None, None, None]
        return out

    def _encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Skips]:
        """x (B, in_channels, H, W) in [-1, 1] -> the bottom's features and all skips, last in first out."""
        h, pyramid = self.stem(x), x
        skips = Skips(self)
        skips.keep(h)
        for level, blocks in enumerate(self.encoder):
            h = encode(self, blocks, h, c, skips)
            if level < len(self.downs):
                h = run_block(self, self.downs[level], h, c)
                if self.pyramid:
                    h, pyramid = self.pyramid[level](h, pyramid)
                skips.keep(h)
        return h, skips

    def _decode(self, h: Tensor, skips: Skips, c: Tensor) -> Tensor:
        """Way up to the output (B, out_channels, H, W): the head's, plus the enlarged sum of the coarser heads'."""
        image: Tensor | None = None
        for level, blocks in enumerate(self.decoder):
            h = decode(self, blocks, h, c, skips)
            if level < len(self.coarse_heads):
                out = self.coarse_heads[level](h)
                image = out if image is None else self.enlarge(image) + out
            if level < len(self.ups):
                h = run_block(self, self.ups[level], h, c)
        out = self.head(h)
        return out if image is None else self.enlarge(image) + out

    def _sigma(self, noise_label: Tensor) -> Tensor:
        """Noise level of a label, in its shape, float32 at least; labels may be fractional indices."""
        label = noise_label.to(torch.promote_types(noise_label.dtype, torch.float32))
        return label if self.embedding == "fourier" else (self.log_sigma_max + self.log_step * label).exp()


def _time_embedding(fourier: bool, cond_dim: int, channels: int) -> nn.Module:
    """Time embedding by random Fourier features of the log noise level, or by DDPM's sinusoids of the label."""
    if fourier:
        return FourierEmbedding(cond_dim, channels)
    return TimeEmbedding(cond_dim, channels, freq_shift=1.0)


def _blocks(cond_dim: int, dropout: float) -> Callable[..., ScoreBlock]:
    """Factory of residual blocks: widths in and out, with attention or not, resampling or not."""

    def block(in_width: int, width: int, attend: bool, resample: nn.Module | None = None) -> ScoreBlock:
        return ScoreBlock(
            in_width,
            width,
            cond_dim,
            dropout,
            norm=_norm,
            residual_scale=_RESIDUAL_SCALE,
            resample=resample,
            attend=attend,
        )

    return block


def _check_choices(input_pyramid: str, output_pyramid: str, embedding: str) -> None:
    """ValueError for an unknown choice."""
    for argument, given, known in (
        ("input_pyramid", input_pyramid, ("none", "skip", "residual")),
        ("output_pyramid", output_pyramid, ("none", "skip")),
        ("embedding", embedding, ("positional", "fourier")),
    ):
        if given not in known:
            raise ValueError(f"NCSNpp: {argument} must be one of {', '.join(known)}, got {given!r}")


def _check_sigmas(sigma_min: float, sigma_max: float, num_scales: int) -> None:
    """ValueError for noise levels that do not fall from sigma_max to a positive sigma_min."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"NCSNpp: sigmas must be 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if num_scales < 2:
        raise ValueError(f"NCSNpp: num_scales must be at least 2, got {num_scales}")
