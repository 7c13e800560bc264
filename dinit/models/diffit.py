"""DiffiT's latent model, whose attention depends on time. Hatamizadeh et al. 2023, arXiv:2312.02139."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_block
from dinit.models.layers.embedding import LabelEmbedding, SinCosPositions, TimeEmbedding
from dinit.models.layers.init import zeroed
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.time_attention import NORM_EPS, DiffiTBlock
from dinit.models.layers.transformer import PatchEmbed, unpatchify

_XL = {"patch_size": 2, "hidden_size": 1152, "depth": 28, "num_heads": 16}


class DiffiTHead(nn.Module):
    """LayerNorm, SiLU and a Linear to patches; zero at the start."""

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(dim, features))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, features)."""
        return self.linear(F.silu(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)))


@BACKBONES.register("diffit")
@config_from_fields
class DiffiT(Backbone):
    """Latent diffusion transformer with time-dependent attention (Hatamizadeh et al. 2023, arXiv:2312.02139).

    Presets latent-256 and latent-512, for ImageNet at 256 and 512 px through an autoencoder that shrinks by 8.

    Args:
        image_size: height = width it is configured for. Every block learns a relative position bias of that size,
            over the whole image; for other sizes, multiples of patch_size, it is interpolated and the fixed
            position table is computed.
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

    Raises:
        ValueError: sizes that do not fit together.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(patch_size=2, hidden_size=32, depth=2, num_heads=4),
        **imagenet_presets({"latent-256": _XL, "latent-512": {**_XL, "image_size": 64}}),
    }

    image_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
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
        side = self.image_size // patch
        self.stem = PatchEmbed(self.in_channels, dim, patch)
        self.positions = SinCosPositions(dim, side)
        self.time_embedding = TimeEmbedding(dim)
        self.label_embedding = LabelEmbedding(self.num_classes, dim, self.null_class)
        self.blocks = nn.ModuleList(
            DiffiTBlock(dim, dim, self.num_heads, side, self.mlp_ratio, self.dropout) for _ in range(self.depth)
        )
        self.head = DiffiTHead(dim, patch * patch * self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x)
        x = (x + self.positions(rows, columns).to(x))[:, None]  # (B, 1, N, D): the image is one window
        for block in self.blocks:
            x = run_block(self, block, x, c, rows, columns)
        return unpatchify(self.head(x[:, 0]), rows, columns, self.patch_size)
