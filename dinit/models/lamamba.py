"""LaMamba-Diff: a U-Net of Mamba and local attention. Fu, Chen & Yu 2024, arXiv:2408.02615."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.dit import NORM_EPS, DiTHead
from dinit.models.layers.blocks import run_block, run_layer
from dinit.models.layers.embedding import LabelEmbedding, SinCosPositions, TimeEmbedding
from dinit.models.layers.init import xavier
from dinit.models.layers.local_attention import LocalAttention
from dinit.models.layers.mamba2d import Mamba2d
from dinit.models.layers.modulation import Modulation, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.skips import Skips
from dinit.models.layers.transformer import Mlp, PatchEmbed, unpatchify

# XL as published; the widths of the others are chosen for DiT's parameter counts, see the class.
_SIZES = {
    "S": {"hidden_size": 72, "num_heads": 4},
    "B": {"hidden_size": 144, "num_heads": 8},
    "L": {"hidden_size": 264, "num_heads": 8},
    "XL": {"hidden_size": 320, "num_heads": 16},
}


class LaMambaBlock(nn.Module):
    """Mamba over the whole image, attention in windows of it, MLP: each modulated and gated by the condition."""

    def __init__(
        self, dim: int, cond_dim: int, num_heads: int, window: int, shifted: bool, states: int, dropout: float
    ) -> None:
        super().__init__()
        self.condition = xavier(nn.Linear(cond_dim, dim))
        self.modulation = Modulation(dim, dim, chunks=9)
        self.mamba = Mamba2d(dim, states)
        self.attention = LocalAttention(dim, num_heads, window, shifted, dropout)
        self.mlp = Mlp(dim, 4 * dim, dropout)

    def forward(self, x: Tensor, c: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, rows * columns, dim), c (B, cond_dim) -> (B, rows * columns, dim)."""
        shift_s, scale_s, gate_s, *others = self.modulation(self.condition(c), x)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = others
        x = x + gate_s * self.mamba(_normed(x, shift_s, scale_s), rows, columns)
        x = x + gate_a * self.attention(_normed(x, shift_a, scale_a), rows, columns)
        return x + gate_m * self.mlp(_normed(x, shift_m, scale_m))


def _normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return modulate(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), shift, scale)


class MergeDown(nn.Module):
    """2x2 tokens become one of twice the width: LayerNorm and Linear. Liu et al. 2021 (Swin)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.linear = xavier(nn.Linear(4 * dim, 2 * dim, bias=False))

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, rows * columns, dim) -> (B, rows / 2 * columns / 2, 2 * dim)."""
        squares = x.unflatten(1, (rows // 2, 2, columns // 2, 2)).transpose(2, 3)
        return self.linear(self.norm(squares.flatten(3).flatten(1, 2)))


class SplitUp(nn.Module):
    """One token becomes 2x2 of half the width: Linear and LayerNorm, the reverse of MergeDown."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = xavier(nn.Linear(dim, 2 * dim, bias=False))
        self.norm = nn.LayerNorm(dim // 2)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, rows * columns, dim) -> (B, 2 * rows * 2 * columns, dim / 2)."""
        squares = self.linear(x).unflatten(1, (rows, columns)).unflatten(-1, (2, 2, -1))
        return self.norm(squares.transpose(2, 3).flatten(1, 4))


def _check_stages(depth: Sequence[int], channel_mult: Sequence[int]) -> None:
    """ValueError for stages that do not follow each other."""
    if not depth or len(depth) != len(channel_mult) or min(depth) < 1:
        raise ValueError(
            f"LaMamba: depth must be positive integers, as many as channel_mult has, "
            f"got {tuple(depth)} with channel_mult = {tuple(channel_mult)}"
        )
    steps = zip((1, *channel_mult), channel_mult, strict=False)
    if channel_mult[0] != 1 or any(after not in (before, 2 * before) for before, after in steps):
        raise ValueError(
            "LaMamba: channel_mult must start at 1 and each entry must be the one before it (the same resolution) "
            f"or twice that (half of it), got {tuple(channel_mult)}"
        )


@BACKBONES.register("lamamba")
@config_from_fields
class LaMamba(Backbone):
    """LaMamba-Diff (Fu, Chen & Yu 2024, arXiv:2408.02615); presets S, B, L, XL.

    From the paper and the published configuration of XL; no weights to compare with. That configuration fixes
    width 320, stages of 2 blocks at 1, 2, 4, 4 times the width of which the first two end in a halving, 2 blocks
    at the bottom, 3 in every stage on the way up (skips are added), windows of 8, every second one shifted, 16
    heads, one state, and serpentine scans in four directions. For S, B and L we know no widths and heads: they
    are chosen for parameter counts near DiT's, which the paper calls comparable. Ours as well: the fixed
    sin-cos position table (any size works), norms without weights where they are modulated, and DiT's head.

    The condition is as wide as the last stage, (B, 4 * hidden_size) in the presets.

    Args:
        image_size: height = width it is configured for; heights and widths must be multiples of
            patch_size * channel_mult[-1].
        patch_size: pixels on a side of a patch.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        hidden_size: features of a token in the first stage; a multiple of 4 and of num_heads.
        depth: blocks of each stage down; up there is one more.
        channel_mult: widths of the stages as multiples of hidden_size, each as the one before, or twice that and
            half the resolution.
        bottom_depth: blocks at the bottom.
        num_heads: heads of an attention.
        window: side of the windows of attention in tokens, at any resolution; they need not fit the image.
        states: of the scans.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: after attention and in the MLP, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("encoder", "bottom", "decoder")
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(
            patch_size=2, hidden_size=16, depth=(1, 1), channel_mult=(1, 2), bottom_depth=1, num_heads=2, window=2
        ),
        **imagenet_presets(_SIZES),
    }

    image_size: int = 32
    patch_size: int = 1
    in_channels: int = 4
    hidden_size: int = 320
    depth: Sequence[int] = (2, 2, 2, 2)
    channel_mult: Sequence[int] = (1, 2, 4, 4)
    bottom_depth: int = 2
    num_heads: int = 16
    window: int = 8
    states: int = 1
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def smallest_size(self) -> int:
        _check_stages(self.depth, self.channel_mult)
        return self.patch_size * self.channel_mult[-1]

    def build(self) -> None:
        dim, patch, depth = self.hidden_size, self.patch_size, self.depth
        self.check_divides("num_heads", self.num_heads, "hidden_size", dim)
        self.check_divides("4 (of the position table)", 4, "hidden_size", dim)
        widths = [dim * multiple for multiple in self.channel_mult]
        # Whether a stage works at half the resolution of the one before it.
        mults = self.channel_mult
        self.halved = [after > before for before, after in zip((1, *mults), mults, strict=False)]
        doubled = [width for width, half in zip(widths, self.halved, strict=True) if half]
        self.stem = PatchEmbed(self.in_channels, dim, patch)
        self.stem_norm = nn.LayerNorm(dim)
        self.positions = SinCosPositions(dim, self.image_size // patch)
        self.time_embedding = TimeEmbedding(widths[-1])
        self.label_embedding = LabelEmbedding(self.num_classes, widths[-1], self.null_class)
        self.encoder = nn.ModuleList(self._stage(*sizes) for sizes in zip(widths, depth, strict=True))
        self.downs = nn.ModuleList(MergeDown(width // 2) for width in doubled)
        self.bottom = self._stage(widths[-1], self.bottom_depth)
        self.ups = nn.ModuleList(SplitUp(width) for width in reversed(doubled))
        up_stages = zip(reversed(widths), reversed(depth), strict=True)
        self.decoder = nn.ModuleList(self._stage(width, blocks + 1) for width, blocks in up_stages)
        self.head_condition = xavier(nn.Linear(widths[-1], dim))
        self.head = DiTHead(dim, patch * patch * self.out_channels)

    def _stage(self, width: int, blocks: int) -> nn.ModuleList:
        """Blocks of one width; every second one has its windows shifted."""
        cond_dim = self.hidden_size * self.channel_mult[-1]
        return nn.ModuleList(
            LaMambaBlock(width, cond_dim, self.num_heads, self.window, b % 2 == 1, self.states, self.dropout)
            for b in range(blocks)
        )

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem_norm(self.stem(x))
        x = x + self.positions(rows, columns).to(x)
        downs, ups, skips = iter(self.downs), iter(self.ups), Skips(self)
        for blocks, half in zip(self.encoder, self.halved, strict=True):
            if half:
                x = run_layer(self, next(downs), x, rows, columns)
                rows, columns = rows // 2, columns // 2
            x = self._run(blocks, x, c, rows, columns)
            skips.keep(x)
        x = self._run(self.bottom, x, c, rows, columns)
        for blocks, half in zip(self.decoder, reversed(self.halved), strict=True):
            x, skip = skips.take(x)
            x = self._run(blocks, x + skip, c, rows, columns)
            if half:
                x = run_layer(self, next(ups), x, rows, columns)
                rows, columns = rows * 2, columns * 2
        return unpatchify(self.head(x, self.head_condition(c)), rows, columns, self.patch_size)

    def _run(self, blocks: Any, x: Tensor, c: Tensor, rows: int, columns: int) -> Tensor:
        """Run every block of a stage in turn."""
        for block in blocks:
            x = run_block(self, block, x, c, rows, columns)
        return x
