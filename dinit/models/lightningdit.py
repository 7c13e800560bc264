"""LightningDiT: DiT with rotary positions, SwiGLU and RMSNorm. Yao et al. 2025, arXiv:2501.01423."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_block
from dinit.models.layers.embedding import LabelEmbedding, SinCosPositions, TimeEmbedding
from dinit.models.layers.init import xavier, zeroed
from dinit.models.layers.modulation import Modulation, gated, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.transformer import Mlp, PatchEmbed, unpatchify

NORM_EPS = 1e-6

# S is DiT-S's shape, for which no weights are published.
_SIZES = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
    "1p0B": {"hidden_size": 1536, "depth": 24, "num_heads": 24},
    "1p6B": {"hidden_size": 1792, "depth": 28, "num_heads": 28},
}
# What the published checkpoints switch on; the class's own defaults are a plain DiT.
_PUBLISHED = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True}


def rotary_angles(head_dim: int, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Angles of 2-d rotary positions: (rows * columns, head_dim // 2) float32, one a pair of features.

    The first half of the pairs turns with the row, the second half with the column, at frequencies
    10000^(-2i / half) for half = head_dim / 2, which must be even. Su et al. 2021 (RoFormer), on each axis.
    Computed in float64, except on devices that have none (MPS).
    """
    dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64
    pairs = head_dim // 4
    frequency = torch.exp(torch.arange(pairs, dtype=dtype, device=device) * (-math.log(1e4) / pairs))
    by_row = torch.arange(rows, dtype=dtype, device=device)[:, None, None] * frequency  # (rows, 1, pairs)
    by_column = torch.arange(columns, dtype=dtype, device=device)[None, :, None] * frequency
    angles = [part.expand(rows, columns, pairs) for part in (by_row, by_column)]
    return torch.cat(angles, dim=-1).flatten(0, 1).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turns features 2i and 2i + 1 of x (..., N, d) by angles (N, d // 2), as one point in the plane."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose queries and keys may be normed, and then turned by their position."""

    def __init__(
        self, dim: int, num_heads: int, dropout: float, qk_norm: Callable[[int], nn.Module] | None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier(nn.Linear(dim, 3 * dim))
        self.norm_q = qk_norm(dim // num_heads) if qk_norm else nn.Identity()
        self.norm_k = qk_norm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = xavier(nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        """x (B, N, dim), angles (N, head_dim // 2) or None -> (B, N, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        q, k = self.norm_q(q), self.norm_k(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        mixed = F.scaled_dot_product_attention(q.to(v), k.to(v), v)  # norms are float32 under autocast
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))


class SwiGlu(nn.Module):
    """Linear to gate and value, SiLU(gate) * value, Linear. Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.gate_value = xavier(nn.Linear(dim, 2 * hidden))
        self.out = xavier(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        gate, value = self.gate_value(x).chunk(2, dim=-1)
        return self.dropout(self.out(self.dropout(F.silu(gate) * value)))


class LightningDiTBlock(nn.Module):
    """Attention and MLP, each modulated before and gated after by the condition; shifts may be left out."""

    def __init__(
        self,
        dim: int,
        attention: RotaryAttention,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        wo_shift: bool,
    ) -> None:
        super().__init__()
        self.modulation = Modulation(dim, dim, chunks=4 if wo_shift else 6)
        self.norm_1, self.norm_2 = norms
        self.attention = attention
        self.mlp = mlp
        self.wo_shift = wo_shift

    def forward(self, x: Tensor, c: Tensor, angles: Tensor | None) -> Tensor:
        """x (B, N, dim), c (B, dim), angles (N, head_dim // 2) or None -> (B, N, dim)."""
        chunks = self.modulation(c, x)
        if self.wo_shift:
            scale_a, gate_a, scale_m, gate_m = chunks
            shift_a = shift_m = torch.zeros_like(scale_a)
        else:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks
        x = gated(x, gate_a, self.attention(modulate(self.norm_1(x), shift_a, scale_a), angles))
        return gated(x, gate_m, self.mlp(modulate(self.norm_2(x), shift_m, scale_m)))


class LightningDiTHead(nn.Module):
    """Modulated norm and a Linear to patches; zero at the start."""

    def __init__(self, dim: int, features: int, norm: nn.Module) -> None:
        super().__init__()
        self.modulation = Modulation(dim, dim, chunks=2)
        self.norm = norm
        self.linear = zeroed(nn.Linear(dim, features))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, N, dim), c (B, dim) -> (B, N, features)."""
        shift, scale = self.modulation(c, x)
        return self.linear(modulate(self.norm(x), shift, scale))


@BACKBONES.register("lightningdit")
@config_from_fields
class LightningDiT(Backbone):
    """DiT with rotary positions, SwiGLU and RMSNorm (Yao et al. 2025, arXiv:2501.01423).

    Presets S, B, L, XL, 1p0B and 1p6B with their patch sizes. The published models were trained on a noise label in
    [0, 1], unscaled, that runs the other way (0 noise, 1 data), and on the velocity data - noise. The backbone
    embeds whatever label it is given.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of patch_size.
        patch_size: pixels on a side of a patch.
        in_channels: channels of x; 32 for the latents of its VA-VAE.
        hidden_size: features of a token; a multiple of 4 and of num_heads.
        depth: blocks.
        num_heads: heads of an attention.
        mlp_ratio: width of a GELU MLP over hidden_size.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels; published models that have it drop them, here they are kept.
        use_qknorm: norms on queries and keys.
        use_swiglu: SwiGlu instead of a GELU MLP, two thirds as wide.
        use_rope: rotary positions as well as the position table; a head's width is then a multiple of 4.
        use_rmsnorm: RMSNorm with a weight instead of a LayerNorm without one.
        wo_shift: no shifts in the modulation of the blocks.
        dropout: after attention and in the MLP, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("blocks",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(patch_size=2, hidden_size=32, depth=2, num_heads=4, **_PUBLISHED),
        **{
            name: preset
            for name, preset in imagenet_presets(
                _SIZES, patches=(1, 2), image_size=16, in_channels=32, learn_sigma=False, **_PUBLISHED
            ).items()
            if name != "L/1"  # not published
        },
    }

    image_size: int = 16
    patch_size: int = 1
    in_channels: int = 32
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    use_qknorm: bool = False
    use_swiglu: bool = False
    use_rope: bool = False
    use_rmsnorm: bool = False
    wo_shift: bool = False
    dropout: float = 0.0

    def build(self) -> None:
        dim, patch = self.hidden_size, self.patch_size
        self.check_divides("num_heads", self.num_heads, "hidden_size", dim)
        self.check_divides("4 (of the position table)", 4, "hidden_size", dim)
        self.head_dim = dim // self.num_heads
        if self.use_rope:
            self.check_divides("4 (of the rotary positions)", 4, "a head's width", self.head_dim)
        self.stem = PatchEmbed(self.in_channels, dim, patch)
        self.positions = SinCosPositions(dim, self.image_size // patch)
        self.time_embedding = TimeEmbedding(dim)
        self.label_embedding = LabelEmbedding(self.num_classes, dim, self.null_class)
        self.blocks = nn.ModuleList(self._block() for _ in range(self.depth))
        self.head = LightningDiTHead(dim, patch * patch * self.out_channels, self._norm())

    def _norm(self) -> nn.Module:
        if self.use_rmsnorm:
            return nn.RMSNorm(self.hidden_size, eps=NORM_EPS)
        return nn.LayerNorm(self.hidden_size, eps=NORM_EPS, elementwise_affine=False)

    def _block(self) -> LightningDiTBlock:
        dim, mlp_width = self.hidden_size, int(self.hidden_size * self.mlp_ratio)
        mlp_width = int(2 / 3 * mlp_width) if self.use_swiglu else mlp_width
        self.check_positive(mlp_width=mlp_width)
        mlp = (SwiGlu if self.use_swiglu else Mlp)(dim, mlp_width, self.dropout)
        norms = (self._norm(), self._norm())
        # The LayerNorm keeps PyTorch's epsilon, 1e-5, here: so does the published one.
        head_norm = partial(nn.RMSNorm, eps=NORM_EPS) if self.use_rmsnorm else nn.LayerNorm
        attention = RotaryAttention(dim, self.num_heads, self.dropout, head_norm if self.use_qknorm else None)
        return LightningDiTBlock(dim, attention, mlp, norms, self.wo_shift)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        angles = rotary_angles(self.head_dim, rows, columns, x.device) if self.use_rope else None
        x = self.stem(x)
        x = x + self.positions(rows, columns).to(x)
        for block in self.blocks:
            x = run_block(self, block, x, c, angles)
        return unpatchify(self.head(x, c), rows, columns, self.patch_size)
