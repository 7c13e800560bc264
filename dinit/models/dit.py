"""DiT: a transformer on patches, conditioned by adaLN-Zero. Peebles & Xie 2023, arXiv:2212.09748."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_blocks
from dinit.models.layers.embedding import LabelEmbedding, SinCosPositions, TimeEmbedding
from dinit.models.layers.init import zeroed
from dinit.models.layers.modulation import Modulation, gated, modulated_norm
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.transformer import Attention, Mlp, PatchEmbed, unpatchify

NORM_EPS = 1e-6

# Table 1 of the paper.
SIZES = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated before and gated after by the condition."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, mlp_norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        self.mlp_norm_eps = mlp_norm_eps
        self.modulation = Modulation(dim, dim, chunks=6)
        self.attention = Attention(dim, num_heads, dropout)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, N, dim), c (B, dim) -> (B, N, dim)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c, x)
        x = gated(x, gate_a, self.attention(modulated_norm(x, shift_a, scale_a, NORM_EPS)))
        return gated(x, gate_m, self.mlp(modulated_norm(x, shift_m, scale_m, self.mlp_norm_eps)))


class DiTHead(nn.Module):
    """Modulated norm and a Linear to patches; zero at the start."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.modulation = Modulation(dim, dim, chunks=2)
        self.linear = zeroed(nn.Linear(dim, features))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, N, dim), c (B, dim) -> (B, N, features)."""
        shift, scale = self.modulation(c, x)
        return self.linear(modulated_norm(x, shift, scale, NORM_EPS))


@BACKBONES.register("dit")
@config_from_fields
class DiT(Backbone):
    """Diffusion transformer with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748); sizes S to XL, patches 2, 4, 8.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of patch_size, with the
            position table computed for them.
        patch_size: pixels on a side of a patch.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        hidden_size: features of a token; a multiple of 4 and of num_heads.
        depth: blocks.
        num_heads: heads of an attention.
        mlp_ratio: width of the MLP over hidden_size.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: after attention and in the MLP, in [0, 1).
        freq_shift: of the time sinusoid; 1.0 in weights trained with diffusers' DiT.
        mlp_norm_eps: epsilon of the norm before the MLP; 1e-5 in weights trained with diffusers' DiT.

    Raises:
        ValueError: sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("blocks",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(patch_size=2, hidden_size=32, depth=2, num_heads=4),
        **imagenet_presets(SIZES, patches=(2, 4, 8)),
    }

    image_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0
    freq_shift: float = 0.0
    mlp_norm_eps: float = NORM_EPS

    def build(self) -> None:
        dim, patch = self.hidden_size, self.patch_size
        self.check_positive(mlp_width=int(dim * self.mlp_ratio))
        self.check_divides("num_heads", self.num_heads, "hidden_size", dim)
        self.check_divides("4 (of the position table)", 4, "hidden_size", dim)
        self.stem = PatchEmbed(self.in_channels, dim, patch)
        self.positions = SinCosPositions(dim, self.image_size // patch)
        self.time_embedding = TimeEmbedding(dim, freq_shift=self.freq_shift)
        self.label_embedding = LabelEmbedding(self.num_classes, dim, self.null_class)
        self.blocks = nn.ModuleList(
            DiTBlock(dim, self.num_heads, self.mlp_ratio, self.dropout, self.mlp_norm_eps)
            for _ in range(self.depth)
        )
        self.head = DiTHead(dim, patch * patch * self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x)
        x = x + self.positions(rows, columns).to(x)
        x = run_blocks(self, self.blocks, x, c)
        return unpatchify(self.head(x, c), rows, columns, self.patch_size)
