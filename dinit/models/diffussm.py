"""DiffuSSM: a diffusion model of gated state-space layers. Yan, Gu & Rush 2023, arXiv:2311.18257."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.dit import NORM_EPS, DiTHead
from dinit.models.layers.blocks import run_blocks
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.init import xavier
from dinit.models.layers.linear import is_plain, linear_gelu, module_gelu
from dinit.models.layers.modulation import Modulation, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.s4d import S4D
from dinit.models.layers.transformer import unpatchify

# 29 layers as wide as DiT-XL's, in the latents of 256 px images.
_SIZES = {"XL": {"patch_size": 1, "hidden_size": 1152, "depth": 29, "ratio": 2}}


class DiffuSSMBlock(nn.Module):
    """A bidirectional state-space layer at full length inside a gated MLP at 1 / ratio of it, an hourglass.

    Between them every short token j becomes `ratio` tokens of the full sequence and back, each by a Linear of its
    place k. With s for GELU, the paper's layer is

        U_l = s(W_up_k s(W0 I_j)),  Y = SSM(U),  I'_j = [s(W_down_k Y_l)]_k,  O_j = W3 (s(W2 I'_j) * s(W1 I_j)),

    modulated before and gated after by the condition (adaLN-Zero) around one residual connection.
    """

    def __init__(self, dim: int, ratio: int, state_size: int, dropout: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.modulation = Modulation(dim, dim, chunks=3)
        self.inward = xavier(nn.Linear(dim, dim))  # W0
        self.up = xavier(nn.Linear(dim, ratio * dim))  # every W_up_k
        self.ssm = S4D(dim, state_size, bidirectional=True)
        self.mix = xavier(nn.Linear(dim, dim))  # S4D's own: it keeps channels apart
        self.down = nn.ModuleList(xavier(nn.Linear(dim, dim)) for _ in range(ratio))
        self.gate = xavier(nn.Linear(dim, 2 * dim))  # W1
        self.value = xavier(nn.Linear(ratio * dim, 2 * dim))  # W2
        self.outward = xavier(nn.Linear(2 * dim, dim))  # W3
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, J, dim), c (B, dim) -> (B, J, dim); the state-space layer sees J * ratio tokens."""
        shift, scale, gate = self.modulation(c, x)
        short = modulate(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), shift, scale)
        full = linear_gelu(self.up, linear_gelu(self.inward, short, "none"), "none")  # (B, J, ratio * dim)
        full = full.unflatten(-1, (self.ratio, -1)).flatten(1, 2)  # (B, J * ratio, dim)
        merged = self._short(module_gelu(self.ssm, full.transpose(1, 2)).transpose(1, 2))
        out = self.outward(linear_gelu(self.value, merged, "none") * linear_gelu(self.gate, short, "none"))
        return x + gate * self.dropout(out)

    def _short(self, full: Tensor) -> Tensor:
        """[s(W_down_k mix(Y_l))]_k of Y (B, J * ratio, dim) -> (B, J, ratio * dim)."""
        down: list[Any] = list(self.down)
        if self._merges(full):
            # Two layers in a row are one, whose weights are computed in less time than the first one's product.
            weights = [layer.weight @ self.mix.weight for layer in down]
            biases = [F.linear(self.mix.bias, layer.weight, layer.bias) for layer in down]
            places = full.unflatten(1, (-1, self.ratio)).unbind(2)
            outs = [F.gelu(F.linear(*given)) for given in zip(places, weights, biases, strict=True)]
        else:
            places = self.mix(full).unflatten(1, (-1, self.ratio)).unbind(2)
            outs = [linear_gelu(layer, y, "none") for layer, y in zip(down, places, strict=True)]
        return torch.cat(outs, dim=-1)

    def _merges(self, full: Tensor) -> bool:
        """Whether mix and down may be one layer in inference, and are faster so."""
        batch, length, dim = full.shape
        return (
            not torch.is_grad_enabled()
            and full.is_cpu
            and full.dtype.itemsize >= 4
            and not torch.is_autocast_enabled("cpu")
            and batch * length > 2 * self.ratio * dim
            and all(is_plain(layer, nn.Linear) for layer in (self.mix, *self.down))
        )


@BACKBONES.register("diffussm")
@config_from_fields
class DiffuSSM(Backbone):
    """Diffusion state-space model without attention (Yan, Gu & Rush 2023, arXiv:2311.18257); preset XL.

    From the paper alone: neither code nor weights were published, so there is nothing to compare with. The paper
    gives the block's formulas (DiffuSSMBlock), S4D as the state-space layer, no patches, ratio 2, 29 layers of
    width 1152 and 673 million parameters; ours has 669. Our reading, where it is silent:

    - the image is flattened row by row, has no position table, and the stem makes one short token of `ratio`
      neighbours in a row, the head the reverse;
    - the layer has 9 D^2 + 2 * ratio * D^2 weights in the shapes that give that number for ratio 2;
    - the activation is GELU; S4D has 64 states, separate parameters for each direction, the directions added,
      and GELU and a Linear behind it;
    - time and class enter as in DiT, by adaLN-Zero: one shift, scale and gate a layer.

    Args:
        image_size: height = width it is configured for; heights and widths must be multiples of patch_size * ratio.
        patch_size: pixels on a side of a patch.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        hidden_size: features of a token.
        depth: blocks.
        ratio: full length over short length.
        state_size: of S4D, even.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: after every block, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    token_stages: ClassVar[tuple[str, ...]] = ("blocks",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(patch_size=1, hidden_size=32, depth=2, ratio=2, state_size=8),
        **imagenet_presets(_SIZES),
    }

    image_size: int = 32
    patch_size: int = 1
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 29
    ratio: int = 2
    state_size: int = 64
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def smallest_size(self) -> int:
        return self.patch_size * self.ratio

    def build(self) -> None:
        dim, patch, ratio = self.hidden_size, self.patch_size, self.ratio
        run = (patch, patch * ratio)  # the pixels of a short token
        self.stem = xavier(nn.Conv2d(self.in_channels, dim, run, stride=run))
        self.time_embedding = TimeEmbedding(dim)
        self.label_embedding = LabelEmbedding(self.num_classes, dim, self.null_class)
        self.blocks = nn.ModuleList(
            DiffuSSMBlock(dim, ratio, self.state_size, self.dropout) for _ in range(self.depth)
        )
        self.head = DiTHead(dim, ratio * patch * patch * self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x).flatten(2).transpose(1, 2)  # (B, J, D), row by row
        x = run_blocks(self, self.blocks, x, c)
        patches = self.head(x, c).unflatten(-1, (self.ratio, -1)).flatten(1, 2)  # (B, J * ratio, p * p * C)
        return unpatchify(patches, rows, columns, self.patch_size)
