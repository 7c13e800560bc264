"""DiCo: a U-shaped convolutional diffusion model with channel attention. Ai et al. 2025, arXiv:2505.11196."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_blocks, run_layer
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.init import xavier, zeroed
from dinit.models.layers.linear import conv1x1, conv1x1_gelu
from dinit.models.layers.modulation import ChannelLayerNorm, Modulation, gated, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.resample import ShuffleDown, ShuffleUp
from dinit.models.layers.skips import Skips

_SIZES = {
    "S": {"hidden_size": 128, "depth": (5, 4, 4, 4, 4), "mlp_ratio": 2.0},
    "B": {"hidden_size": 256, "depth": (5, 4, 4, 4, 4), "mlp_ratio": 2.0},
    "L": {"hidden_size": 352, "depth": (9, 8, 9, 8, 9), "mlp_ratio": 2.0},
    "XL": {"hidden_size": 416, "depth": (9, 9, 10, 9, 9), "mlp_ratio": 2.0},
    "H": {"hidden_size": 416, "depth": (14, 12, 10, 12, 14), "mlp_ratio": 4.0},
}


class ChannelAttention(nn.Module):
    """Scales every channel by a sigmoid of a 1x1 convolution of the global average."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        return x * conv1x1(self.conv, x.mean((2, 3), keepdim=True)).sigmoid()


class DiCoBlock(nn.Module):
    """Depthwise convolution with channel attention, then a 1x1 MLP; each modulated before and gated after."""

    def __init__(self, dim: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.modulation = Modulation(dim, dim, chunks=6)
        self.norm = ChannelLayerNorm(dim)
        self.conv_in = nn.Conv2d(dim, dim, 1)
        self.conv_depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.channel_attention = ChannelAttention(dim)
        self.conv_out = nn.Conv2d(dim, dim, 1)
        self.mlp_in = nn.Conv2d(dim, hidden, 1)
        self.mlp_out = nn.Conv2d(hidden, dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, dim, H, W), c (B, dim) -> (B, dim, H, W)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c, x)
        h = conv1x1(self.conv_in, modulate(self.norm(x), shift_a, scale_a))
        h = conv1x1(self.conv_out, self.channel_attention(F.gelu(self.conv_depthwise(h))))
        x = gated(x, gate_a, self.dropout(h))
        h = self.dropout(conv1x1_gelu(self.mlp_in, modulate(self.norm(x), shift_m, scale_m)))
        return gated(x, gate_m, self.dropout(conv1x1(self.mlp_out, h)))


class DiCoHead(nn.Module):
    """Modulated norm and a 3x3 convolution to the output channels; zero at the start."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.modulation = Modulation(dim, dim, chunks=2)
        self.norm = ChannelLayerNorm(dim)
        self.conv = zeroed(nn.Conv2d(dim, out_channels, 3, padding=1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, dim, H, W), c (B, dim) -> (B, out_channels, H, W)."""
        shift, scale = self.modulation(c, x)
        return self.conv(modulate(self.norm(x), shift, scale))


@BACKBONES.register("dico")
@config_from_fields
class DiCo(Backbone):
    """Diffusion ConvNet with compact channel attention (Ai et al. 2025, arXiv:2505.11196); presets S, B, L, XL, H.

    Three resolutions with 1, 2 and 4 times hidden_size channels; the way up stays at twice hidden_size.
    Fully convolutional: any height and width that are multiples of 4. The condition is the label embeddings of the
    three resolutions, concatenated: (B, 7 * hidden_size).

    Args:
        image_size: height = width it is configured for.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        hidden_size: channels at full resolution, even.
        depth: blocks in the five stages (down 1, down 2, bottom, up 2, up 1).
        mlp_ratio: width of the MLP over that of its stage.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: at the end of both branches and inside the MLP, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(hidden_size=16, depth=(1, 1, 1, 1, 1)),
        **imagenet_presets(_SIZES),
    }

    image_size: int = 32
    in_channels: int = 4
    hidden_size: int = 128
    depth: Sequence[int] = (5, 4, 4, 4, 4)
    mlp_ratio: float = 2.0
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def smallest_size(self) -> int:
        return 4

    def build(self) -> None:
        dim, depth = self.hidden_size, self.depth
        self.check_positive(mlp_width=int(dim * self.mlp_ratio))
        if dim % 2:
            raise ValueError(f"DiCo: hidden_size must be even (downsampling halves it), got {dim}")
        if len(depth) != 5 or min(depth) < 1:
            raise ValueError(f"DiCo: depth must be five positive numbers of blocks, got {tuple(depth)}")
        self.widths = narrow, middle, wide = (dim, 2 * dim, 4 * dim)

        def stage(count: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(DiCoBlock(width, self.mlp_ratio, self.dropout) for _ in range(count))

        self.stem = xavier(nn.Conv2d(self.in_channels, narrow, 3, padding=1))
        self.time_embeddings = nn.ModuleList(TimeEmbedding(width) for width in self.widths)
        self.label_embeddings = nn.ModuleList(
            LabelEmbedding(self.num_classes, width, self.null_class) for width in self.widths
        )
        self.encoder_1 = stage(depth[0], narrow)
        self.down_1 = ShuffleDown(narrow, middle)
        self.encoder_2 = stage(depth[1], middle)
        self.down_2 = ShuffleDown(middle, wide)
        self.bottom = stage(depth[2], wide)
        self.up_2 = ShuffleUp(wide, middle)
        self.merge_2 = nn.Conv2d(2 * middle, middle, 1)
        self.decoder_2 = stage(depth[3], middle)
        self.up_1 = ShuffleUp(middle, narrow)
        self.merge_1 = nn.Conv2d(2 * narrow, middle, 1)
        self.decoder_1 = stage(depth[4], middle)
        self.head = DiCoHead(middle, self.out_channels)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes -> (B, 7 * hidden_size), a part for each resolution."""
        return torch.cat([table(labels) for table in self.label_embeddings], dim=-1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        times = [embedding(noise_label, x.dtype) for embedding in self.time_embeddings]
        c1, c2, c3 = (time + part for time, part in zip(times, cond.split(self.widths, dim=-1), strict=True))

        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = Skips(self)
        x = run_blocks(self, self.encoder_1, x, c1)
        skips.keep(x)
        x = run_blocks(self, self.encoder_2, run_layer(self, self.down_1, x), c2)
        skips.keep(x)
        x = run_blocks(self, self.bottom, run_layer(self, self.down_2, x), c3)
        x = self.merge_2(torch.cat(skips.take(run_layer(self, self.up_2, x)), dim=1))
        x = run_blocks(self, self.decoder_2, x, c2)
        x = self.merge_1(torch.cat(skips.take(run_layer(self, self.up_1, x)), dim=1))
        x = run_blocks(self, self.decoder_1, x, c2)  # twice hidden_size wide, so it shares that of level 2
        return self.head(x, c2)
