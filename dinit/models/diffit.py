"""DiffiT's latent model, whose attention depends on time. Hatamizadeh et al. 2023, arXiv:2312.02139."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, register_to_config
from dinit.models.layers.blocks import run_block
from dinit.models.layers.checks import check_divides, check_input, configure
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding, sincos_positions
from dinit.models.layers.init import zeroed
from dinit.models.layers.time_attention import NORM_EPS, DiffiTBlock
from dinit.models.layers.transformer import PatchEmbed, unpatchify

_XL = {"patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28, "num_heads": 16}
_IMAGENET = {**_XL, "num_classes": 1000, "learn_sigma": True}
_TINY = {
    "image_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 10,
}


class DiffiTHead(nn.Module):
    """LayerNorm, SiLU and a Linear to patches; zero at the start."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(dim, features))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, features)."""
        return self.linear(F.silu(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)))


@BACKBONES.register("diffit")
class DiffiT(Backbone):
    """Latent diffusion transformer with time-dependent attention (Hatamizadeh et al. 2023).

    Presets latent-256 and latent-512, for ImageNet at 256 and 512 px through an autoencoder that shrinks by 8.

    image_size: height = width it is configured for. Every block learns a relative position bias of that size,
    over the whole image; for other sizes, multiples of patch_size, it is interpolated and the fixed position
    table is computed. hidden_size: a multiple of 4 and of num_heads. dropout: after attention and in the MLP.
    learn_sigma: in_channels more output channels for a learned variance. ValueError for sizes that do not fit
    together.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": _TINY,
        "latent-256": {**_IMAGENET, "image_size": 32},
        "latent-512": {**_IMAGENET, "image_size": 64},
    }

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
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
            hidden_size=hidden_size,
            depth=depth,
            mlp_width=int(hidden_size * mlp_ratio),
        )
        check_divides("DiffiT", "num_heads", num_heads, "hidden_size", hidden_size)
        check_divides("DiffiT", "4 (of the position table)", 4, "hidden_size", hidden_size)
        self.patch_size, self.hidden_size = patch_size, hidden_size

        self.stem = PatchEmbed(in_channels, hidden_size, patch_size)
        side = image_size // patch_size
        # Not saved: it is a function of the sizes, and a saved copy could disagree with them.
        self.register_buffer("positions", sincos_positions(hidden_size, side, side), persistent=False)
        self.time_embedding = TimeEmbedding(hidden_size)
        self.label_embedding = LabelEmbedding(num_classes, hidden_size)
        self.blocks = nn.ModuleList(
            DiffiTBlock(hidden_size, hidden_size, num_heads, side, mlp_ratio, dropout) for _ in range(depth)
        )
        self.head = DiffiTHead(hidden_size, patch_size * patch_size * self.out_channels)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes -> (B, hidden_size)."""
        return self.label_embedding(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        check_input("DiffiT", x, self.in_channels, self.patch_size, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x)
        x = (x + self.position_table(rows, columns).to(x))[:, None]  # (B, 1, N, D): the image is one window
        for block in self.blocks:
            x = run_block(self, block, x, c, rows, columns)
        return unpatchify(self.head(x[:, 0]), rows, columns, self.patch_size)

    def position_table(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, hidden_size): what a DiffiT configured for that many patches would have."""
        side = self.image_size // self.patch_size
        if (rows, columns) == (side, side):
            return self.positions
        return sincos_positions(self.hidden_size, rows, columns, self.positions.device)
