"""DiS: bidirectional Mamba blocks with long skips over tokens. Fei et al. 2024, arXiv:2402.05608."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_block
from dinit.models.layers.embedding import LabelEmbedding, resized_table, sinusoid
from dinit.models.layers.init import small_normal, zeroed
from dinit.models.layers.mamba import Mamba
from dinit.models.layers.modulation import Modulation, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.skips import Skips
from dinit.models.layers.transformer import PatchEmbed, unpatchify

RMS_NORM_EPS = 1e-5
HEAD_NORM_EPS = 1e-6

_SIZES = {
    "S": {"embed_dim": 368, "depth": 24},
    "B": {"embed_dim": 768, "depth": 24},
    "M": {"embed_dim": 768, "depth": 48},
    "L": {"embed_dim": 1024, "depth": 48},
    "H": {"embed_dim": 1536, "depth": 48},
}


class DiSBlock(nn.Module):
    """RMSNorm and a bidirectional Mamba mixer. Adding the result to the residual stream is the caller's."""

    def __init__(self, dim: int, dropout: float, **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=RMS_NORM_EPS)
        self.mixer = Mamba(dim, **mixer)
        self.dropout = nn.Dropout(dropout)

    def forward(self, residual: Tensor) -> Tensor:
        """residual (B, N, dim) -> output of the mixer, (B, N, dim)."""
        return self.dropout(self.mixer(self.norm(residual)))


class DiSHead(nn.Module):
    """LayerNorm, modulated by the condition if there is one, and a Linear to patches that is zero at the start."""

    def __init__(self, dim: int, features: int, conditional: bool) -> None:
        super().__init__()
        self.modulation = Modulation(dim, dim, chunks=2) if conditional else None
        self.linear = zeroed(nn.Linear(dim, features))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, N, dim), c (B, dim) -> (B, N, features)."""
        x = F.layer_norm(x, x.shape[-1:], eps=HEAD_NORM_EPS)
        if self.modulation is not None:
            shift, scale = self.modulation(c, x)
            x = modulate(x, shift, scale)
        return self.linear(x)


@BACKBONES.register("dis")
@config_from_fields
class DiS(Backbone):
    """Diffusion with a state-space backbone (Fei et al. 2024, arXiv:2402.05608); sizes S to H, patches 2 and 4.

    The tokens are (label, time, patches row by row), or (time, patches) when num_classes is 0; a learned
    position table covers them all. Mixer outputs of the first half of the blocks are concatenated to the input of
    the second half, last one first; the residual stream runs past that.

    Args:
        image_size: height = width that the position table is made for; for others, multiples of patch_size, its
            patch part is interpolated.
        patch_size: pixels on a side of a patch.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        embed_dim: features of a token, even.
        depth: 2 * (depth // 2) + 1 is the number of blocks, as published.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: after every mixer, in [0, 1).
        states: of the mixer's scan, for each of its channels.
        expand: channels inside a mixer over embed_dim.
        conv_width: tokens that a mixer's causal convolution sees.
        dt_rank: of the mixer's map to step sizes; None is embed_dim / 16, rounded up.

    Raises:
        ValueError: sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("encoder",)
    adds_blocks: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(patch_size=2, embed_dim=32, depth=2),
        **imagenet_presets(_SIZES, patches=(2, 4)),
        "H/2-512": {**imagenet_presets(_SIZES, patches=(2,))["H/2"], "image_size": 64},
        "S/2-uncond-32": {**imagenet_presets(_SIZES, patches=(2,))["S/2"], "in_channels": 3, "num_classes": 0},
    }

    image_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    embed_dim: int = 368
    depth: int = 24
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0
    states: int = 16
    expand: int = 2
    conv_width: int = 4
    dt_rank: int | None = None

    def build(self) -> None:
        dim, patch, half = self.embed_dim, self.patch_size, self.depth // 2
        self.check_divides("2 (of the time sinusoid)", 2, "embed_dim", dim)
        conditional = self.num_classes > 0
        self.cond_dim = dim
        self.prefix = 2 if conditional else 1

        self.stem = PatchEmbed(self.in_channels, dim, patch)
        tokens = self.prefix + (self.image_size // patch) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.time_embedding = nn.Sequential(
            small_normal(nn.Linear(dim, 4 * dim)), nn.SiLU(), small_normal(nn.Linear(4 * dim, dim))
        )
        self.label_embedding = LabelEmbedding(self.num_classes, dim, self.null_class) if conditional else None
        self.encoder = nn.ModuleList(self._block() for _ in range(half))
        self.bottom = self._block()
        self.decoder = nn.ModuleList(self._block() for _ in range(half))
        self.merges = nn.ModuleList(small_normal(nn.Linear(2 * dim, dim)) for _ in range(half))
        self.norm = nn.RMSNorm(dim, eps=RMS_NORM_EPS)
        self.head = DiSHead(dim, patch * patch * self.out_channels, conditional)

    def _block(self) -> DiSBlock:
        return DiSBlock(
            self.embed_dim,
            self.dropout,
            states=self.states,
            conv_width=self.conv_width,
            expand=self.expand,
            dt_rank=self.dt_rank,
        )

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        # The sinusoid is float32 at least: bf16 has the same number for steps 998 and 999.
        label = noise_label.to(torch.promote_types(x.dtype, torch.float32))
        time = self.time_embedding(sinusoid(label, self.embed_dim).to(x.dtype)).expand(len(x), -1)
        prefix = [time] if self.label_embedding is None else [cond, time]
        patches = self.stem(x)
        tokens = torch.cat([*(token[:, None] for token in prefix), patches], dim=1)
        # Under autocast the table, and with it the residual stream, is float32.
        tokens = self.mix(tokens + self.position_table(rows, columns))
        return unpatchify(self.head(tokens[:, self.prefix :], time + cond), rows, columns, self.patch_size)

    def mix(self, hidden: Tensor) -> Tensor:
        """Every block in turn and the last norm. hidden (B, N, D) -> (B, N, D)."""
        residual = hidden
        skips = Skips(self)
        for block in self.encoder:
            hidden = run_block(self, block, residual)
            residual = residual + hidden
            skips.keep(hidden)
        hidden = run_block(self, self.bottom, residual)
        for block, merge in zip(self.decoder, self.merges, strict=True):
            (residual, hidden), skip = skips.take((residual, hidden))
            residual = residual + merge(torch.cat([hidden, skip], dim=-1))
            hidden = run_block(self, block, residual)
        return self.norm(residual + hidden)

    def position_table(self, rows: int, columns: int) -> Tensor:
        """Learned position table, its patch part resized bicubically for other sizes.

        Args:
            rows: patches in height.
            columns: patches in width.

        Returns:
            (prefix + rows * columns, embed_dim).
        """
        side = math.isqrt(len(self.positions) - self.prefix)
        if (rows, columns) == (side, side):
            return self.positions
        prefix, patches = self.positions[: self.prefix], self.positions[self.prefix :]
        resized = resized_table(patches.unflatten(0, (side, side)), rows, columns)
        return torch.cat([prefix, resized.flatten(0, 1).to(prefix)])
