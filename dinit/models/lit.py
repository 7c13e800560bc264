"""LiT: DiT with linear attention of few heads and a depthwise convolution. Wang et al. 2025, arXiv:2501.12976."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.dit import NORM_EPS, DiTHead
from dinit.models.layers.blocks import run_block
from dinit.models.layers.embedding import LabelEmbedding, SinCosPositions, TimeEmbedding
from dinit.models.layers.init import xavier
from dinit.models.layers.modulation import Modulation, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.transformer import Mlp, PatchEmbed, unpatchify

# Keeps the normaliser of a query away from zero: ReLU may close all of its features.
KERNEL_EPS = 1e-6

# DiT's widths and depths with the paper's few heads.
_SIZES = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 2},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 3},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 4},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 4},
}


class LinearAttention(nn.Module):
    """Attention with the kernel relu(q) . relu(k) instead of exp(q . k), plus a convolution of the values.

    The kernel is a product, so the sums over the keys are done once for all queries: time and memory are linear
    in the number of tokens. A depthwise convolution of the values on the image grid, added before the last
    Linear, restores the local detail that such attention lacks.
    The qkv features are ordered (q | k | v) x head x head_dim, as in Attention.
    """

    def __init__(self, dim: int, num_heads: int, kernel_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier(nn.Linear(dim, 3 * dim))
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.proj = xavier(nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, rows * columns, dim), row by row -> (B, rows * columns, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        q, k = F.relu(q), F.relu(k)
        # Means over the tokens, not sums: their ratio is the same, and half precision does not overflow.
        root = x.shape[1] ** -0.5
        values = (k * root).transpose(-2, -1) @ (v * root)  # (B, heads, d, d)
        normaliser = q @ k.mean(-2)[..., None]  # (B, heads, N, 1)
        mixed = (q @ values / (normaliser + KERNEL_EPS)).transpose(1, 2).flatten(2)
        grid = (
            v.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(-1, (rows, columns))
        )  # (B, dim, rows, columns)
        mixed = mixed + self.conv(grid).flatten(2).transpose(1, 2)
        return self.dropout(self.proj(mixed))


class LiTBlock(nn.Module):
    """Linear attention and MLP, each modulated before and gated after by the condition."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.modulation = Modulation(dim, dim, chunks=6)
        self.attention = LinearAttention(dim, num_heads, kernel_size, dropout)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, c: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, rows * columns, dim), c (B, dim) -> (B, rows * columns, dim)."""
        dim = x.shape[-1:]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c, x)
        normed = modulate(F.layer_norm(x, dim, eps=NORM_EPS), shift_a, scale_a)
        x = x + gate_a * self.attention(normed, rows, columns)
        return x + gate_m * self.mlp(modulate(F.layer_norm(x, dim, eps=NORM_EPS), shift_m, scale_m))


@BACKBONES.register("lit")
@config_from_fields
class LiT(Backbone):
    """Linear diffusion transformer (Wang et al. 2025, arXiv:2501.12976); presets S/2, B/2, L/2, XL/2.

    From the paper; no weights to compare with. DiT's body, sizes and parameter names: all weights of a DiT of
    the same size fit but those of `attention`, which is how the authors start training. The paper fixes the
    ReLU kernel, the kernel size 5 and few heads (2 in S, 4 in XL). Our reading: the convolution acts on
    the values, has its own weights for every channel, and its result is added before the last Linear of
    attention; 3 heads in B and 4 in L.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of patch_size.
        patch_size: pixels on a side of a patch.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        hidden_size: features of a token; a multiple of 4 and of num_heads.
        depth: blocks.
        num_heads: few; each costs N * (hidden_size / num_heads)^2 for N tokens.
        kernel_size: of the depthwise convolution, odd.
        mlp_ratio: width of the MLP over hidden_size.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: after attention and in the MLP, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("blocks",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(patch_size=2, hidden_size=32, depth=2, num_heads=2),
        **imagenet_presets(_SIZES, patches=(2,)),
    }

    image_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 2
    kernel_size: int = 5
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def build(self) -> None:
        dim, patch = self.hidden_size, self.patch_size
        self.check_positive(mlp_width=int(dim * self.mlp_ratio))
        self.check_divides("num_heads", self.num_heads, "hidden_size", dim)
        self.check_divides("4 (of the position table)", 4, "hidden_size", dim)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"LiT: kernel_size must be odd (the paper: 5), got {self.kernel_size}")
        self.stem = PatchEmbed(self.in_channels, dim, patch)
        self.positions = SinCosPositions(dim, self.image_size // patch)
        self.time_embedding = TimeEmbedding(dim)
        self.label_embedding = LabelEmbedding(self.num_classes, dim, self.null_class)
        self.blocks = nn.ModuleList(
            LiTBlock(dim, self.num_heads, self.kernel_size, self.mlp_ratio, self.dropout) for _ in range(self.depth)
        )
        self.head = DiTHead(dim, patch * patch * self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x)
        x = x + self.positions(rows, columns).to(x)
        for block in self.blocks:
            x = run_block(self, block, x, c, rows, columns)
        return unpatchify(self.head(x, c), rows, columns, self.patch_size)
