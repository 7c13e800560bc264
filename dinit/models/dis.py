"""DiS: bidirectional Mamba blocks with long skips over tokens. Fei et al. 2024, arXiv:2402.05608."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, register_to_config
from dinit.models.layers.blocks import run_block
from dinit.models.layers.checks import check_divides, check_input, configure
from dinit.models.layers.embedding import LabelEmbedding, sinusoid
from dinit.models.layers.init import small_normal, zeroed
from dinit.models.layers.mamba import Mamba
from dinit.models.layers.modulation import Modulation, modulate
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
_IMAGENET = {"image_size": 32, "in_channels": 4, "num_classes": 1000, "learn_sigma": True}
_TINY = {"image_size": 8, "patch_size": 2, "in_channels": 1, "embed_dim": 32, "depth": 2, "num_classes": 10}


class DiSBlock(nn.Module):
    """RMSNorm and a bidirectional Mamba mixer. Adding the result to the residual stream is the caller's."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=RMS_NORM_EPS)
        self.mixer = Mamba(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, residual: Tensor) -> Tensor:
        """residual (B, N, dim) -> what the mixer makes of it, (B, N, dim)."""
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
class DiS(Backbone):
    """Diffusion with a state-space backbone (Fei et al. 2024); sizes S to H, patches 2 and 4.

    The tokens are (label, time, patches row by row), or (time, patches) when num_classes is 0; a learned
    position table covers them all. Mixer outputs of the first half of the blocks are concatenated to the input of
    the second half, last one first; the residual stream runs past that.

    image_size: height = width that the position table is made for; for others, multiples of patch_size, its
    patch part is interpolated. embed_dim: even. depth: 2 * (depth // 2) + 1 blocks, as published. dropout:
    after every mixer. learn_sigma: in_channels more output channels for a learned variance. ValueError for
    sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("encoder",)
    adds_blocks: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": _TINY,
        **{f"{n}/{p}": {**_IMAGENET, **size, "patch_size": p} for n, size in _SIZES.items() for p in (2, 4)},
        "H/2-512": {**_IMAGENET, **_SIZES["H"], "image_size": 64, "patch_size": 2},
        "S/2-uncond-32": {
            **_SIZES["S"],
            "image_size": 32,
            "patch_size": 2,
            "in_channels": 3,
            "num_classes": 0,
            "learn_sigma": True,
        },
    }

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        embed_dim: int = 368,
        depth: int = 24,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        configure(
            self,
            image_size=image_size,
            size_multiple=patch_size,
            in_channels=in_channels,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
            dropout=dropout,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
        )
        check_divides("DiS", "2 (of the time sinusoid)", 2, "embed_dim", embed_dim)
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        conditional = num_classes > 0
        self.prefix = 2 if conditional else 1  # tokens before the patches

        self.stem = PatchEmbed(in_channels, embed_dim, patch_size)
        tokens = self.prefix + (image_size // patch_size) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, embed_dim))
        self.time_embedding = nn.Sequential(
            small_normal(nn.Linear(embed_dim, 4 * embed_dim)),
            nn.SiLU(),
            small_normal(nn.Linear(4 * embed_dim, embed_dim)),
        )
        self.label_embedding = LabelEmbedding(num_classes, embed_dim) if conditional else None
        half = depth // 2
        self.encoder = nn.ModuleList(DiSBlock(embed_dim, dropout) for _ in range(half))
        self.bottom = DiSBlock(embed_dim, dropout)
        self.decoder = nn.ModuleList(DiSBlock(embed_dim, dropout) for _ in range(half))
        self.merges = nn.ModuleList(small_normal(nn.Linear(2 * embed_dim, embed_dim)) for _ in range(half))
        self.norm = nn.RMSNorm(embed_dim, eps=RMS_NORM_EPS)
        self.head = DiSHead(embed_dim, patch_size * patch_size * self.out_channels, conditional)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes -> (B, embed_dim); zeros where there are no classes."""
        if self.label_embedding is None:
            return self.positions.new_zeros(len(labels), self.embed_dim)
        return self.label_embedding(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        check_input("DiS", x, self.in_channels, self.patch_size, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        # The sinusoid is float32 at least: bf16 cannot tell step 998 from step 999.
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
        skips = []
        for block in self.encoder:
            hidden = run_block(self, block, residual)
            residual = residual + hidden
            skips.append(hidden)
        hidden = run_block(self, self.bottom, residual)
        for block, merge in zip(self.decoder, self.merges, strict=True):
            residual = residual + merge(torch.cat([hidden, skips.pop()], dim=-1))
            hidden = run_block(self, block, residual)
        return self.norm(residual + hidden)

    def position_table(self, rows: int, columns: int) -> Tensor:
        """(prefix + rows * columns, embed_dim): the learned table, its patch part resized bicubically."""
        side = math.isqrt(len(self.positions) - self.prefix)
        if (rows, columns) == (side, side):
            return self.positions
        prefix, patches = self.positions[: self.prefix], self.positions[self.prefix :]
        grid = patches.float().t().unflatten(1, (side, side))[None]
        resized = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([prefix, resized[0].flatten(1).t().to(prefix)])
