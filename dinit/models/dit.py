"""DiT: a transformer on patches, conditioned by adaLN-Zero. Peebles & Xie 2023, arXiv:2212.09748."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, register_to_config
from dinit.models.layers.blocks import run_blocks
from dinit.models.layers.checks import check_divides, check_input, configure
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding, sincos_positions
from dinit.models.layers.init import zeroed
from dinit.models.layers.modulation import Modulation, gated, modulated_norm
from dinit.models.layers.transformer import Attention, Mlp, PatchEmbed, unpatchify

NORM_EPS = 1e-6

# Table 1 of the paper.
_SIZES = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}
_IMAGENET = {"image_size": 32, "in_channels": 4, "num_classes": 1000, "learn_sigma": True}
_TINY = {
    "image_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 10,
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
class DiT(Backbone):
    """Diffusion transformer with adaLN-Zero (Peebles & Xie 2023); sizes S to XL, patches 2, 4, 8.

    image_size: height = width it is configured for; others work if they are multiples of patch_size, with the
    position table computed for them. in_channels: 4 for Stable Diffusion latents. hidden_size: a multiple of
    4 and of num_heads. dropout: after attention and in the MLP. learn_sigma: in_channels more output
    channels for a learned variance. freq_shift (of the time sinusoid) and mlp_norm_eps: 1.0 and 1e-5 in weights
    trained with diffusers' DiT. ValueError for sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("blocks",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": _TINY,
        **{f"{n}/{p}": {**_IMAGENET, **size, "patch_size": p} for n, size in _SIZES.items() for p in (2, 4, 8)},
    }

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        dropout: float = 0.0,
        freq_shift: float = 0.0,
        mlp_norm_eps: float = NORM_EPS,
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
            hidden_size=hidden_size,
            depth=depth,
            mlp_width=int(hidden_size * mlp_ratio),
        )
        check_divides("DiT", "num_heads", num_heads, "hidden_size", hidden_size)
        check_divides("DiT", "4 (of the position table)", 4, "hidden_size", hidden_size)
        self.patch_size = patch_size
        self.hidden_size = hidden_size

        self.stem = PatchEmbed(in_channels, hidden_size, patch_size)
        side = image_size // patch_size
        # Not saved: it is a function of the sizes, and a saved copy could disagree with them.
        self.register_buffer("positions", sincos_positions(hidden_size, side, side), persistent=False)
        self.time_embedding = TimeEmbedding(hidden_size, freq_shift=freq_shift)
        self.label_embedding = LabelEmbedding(num_classes, hidden_size)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, dropout, mlp_norm_eps) for _ in range(depth)
        )
        self.head = DiTHead(hidden_size, patch_size * patch_size * self.out_channels)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes -> (B, hidden_size)."""
        return self.label_embedding(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        check_input("DiT", x, self.in_channels, self.patch_size, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x)
        x = x + self.position_table(rows, columns).to(x)
        x = run_blocks(self, self.blocks, x, c)
        return unpatchify(self.head(x, c), rows, columns, self.patch_size)

    def position_table(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, hidden_size): what a DiT configured for that many patches would have."""
        side = self.image_size // self.patch_size
        if (rows, columns) == (side, side):
            return self.positions
        return sincos_positions(self.hidden_size, rows, columns, self.positions.device)
