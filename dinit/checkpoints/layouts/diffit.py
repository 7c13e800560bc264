"""Checkpoint layout of NVlabs/DiffiT: the latent model, the only one whose weights are published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, with_null_class
from dinit.checkpoints.layouts.dit import DIT, LABEL_TABLE, SIZES, transformer_options


def offsets_as_grid(table: Tensor) -> Tensor:
    """((2w - 1)^2, heads), offsets row by row -> (heads, 2w - 1, 2w - 1)."""
    side = math.isqrt(table.shape[0])
    return table.T.unflatten(1, (side, side)).contiguous()


DIFFIT: KeyMap = (
    Rule(r"blocks\.(\d+)\.attn\.relative_position_index", None),
    Rule(
        r"blocks\.(\d+)\.attn\.relative_position_bias_table",
        r"blocks.\1.attention.bias.table",
        change=offsets_as_grid,
    ),
    Rule(r"blocks\.(\d+)\.attn\.qkv_temb\.(.+)", r"blocks.\1.attention.qkv_time.\2"),
    *DIT,
)


@LAYOUTS.register("diffit")
class DiffiTLayout(Layout):
    """NVlabs/DiffiT: the bare state of the latent model."""

    backbone: ClassVar[str] = "diffit"
    reference: ClassVar[tuple[str, ...]] = ("DiffiT",)
    rules: ClassVar[KeyMap] = DIFFIT
    signature: ClassVar[tuple[str, ...]] = (
        r"blocks\.0\.attn\.relative_position_bias_table",
        r"blocks\.0\.attn\.qkv_temb\.weight",
    )
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = LABEL_TABLE
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {**SIZES, "learn_sigma": ("learn_sigma",)}

    def options(self, shapes: Shapes) -> dict[str, Any]:
        # Unlike in other descendants of DiT, the number of heads can be inferred: columns of the bias table.
        return {
            **transformer_options(shapes, self.backbone),
            "num_heads": shapes["blocks.0.attn.relative_position_bias_table"][1],
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / shapes["x_embedder.proj.weight"][0],
        }

    def tables(self, backbone: Any) -> dict[str, Tensor]:
        side = backbone.image_size // backbone.patch_size
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side))  # (N, 2), row and column of a patch
        offset = place[:, None] - place[None] + side - 1  # (N, N, 2)
        index = offset[..., 0] * (2 * side - 1) + offset[..., 1]
        blocks = {f"blocks.{i}.attn.relative_position_index": index for i in range(len(backbone.blocks))}
        return {"pos_embed": backbone.positions.table, **blocks}

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = {"learn_sigma": True, "depth": 30, **reference}  # the published class's own defaults
        if "input_size" in given:
            given["image_size"] = given.pop("input_size")
        return with_null_class(given)
