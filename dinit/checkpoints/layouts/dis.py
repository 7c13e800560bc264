"""Checkpoint layout of feizc/DiS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, count, with_null_class

_BLOCKS = {r"in_blocks\.(\d+)": r"encoder.\1", r"mid_()block": r"bottom\1", r"out_blocks\.(\d+)": r"decoder.\1"}
DIS: KeyMap = (
    Rule(r"pos_embed", "positions", lambda table: table[0]),
    Rule(r"patch_embed\.proj\.(.+)", r"stem.proj.\1"),
    Rule(r"time_embed\.([02])\.(.+)", r"time_embedding.\1.\2"),
    Rule(r"label_emb\.embedding_table\.weight", r"label_embedding.table.weight"),
    Rule(r"out_blocks\.(\d+)\.skip_linear\.(.+)", r"merges.\1.\2"),
    *(
        rule
        for theirs, ours in _BLOCKS.items()
        for rule in (
            Rule(rf"{theirs}\.norm\.weight", rf"{ours}.norm.weight"),
            Rule(rf"{theirs}\.mixer\.(in_proj|out_proj)\.weight", rf"{ours}.mixer.\2.weight"),
            # The second direction's names have _b in them.
            Rule(rf"{theirs}\.mixer\.conv1d\.(.+)", rf"{ours}.mixer.directions.0.conv.\2"),
            Rule(rf"{theirs}\.mixer\.conv1d_b\.(.+)", rf"{ours}.mixer.directions.1.conv.\2"),
            Rule(rf"{theirs}\.mixer\.(x_proj|dt_proj)\.(.+)", rf"{ours}.mixer.directions.0.\2.\3"),
            Rule(rf"{theirs}\.mixer\.(x_proj|dt_proj)_b\.(.+)", rf"{ours}.mixer.directions.1.\2.\3"),
            Rule(rf"{theirs}\.mixer\.(A_log|D)", rf"{ours}.mixer.directions.0.\2"),
            Rule(rf"{theirs}\.mixer\.(A|D)_b(|_log)", rf"{ours}.mixer.directions.1.\2\3"),
        )
    ),
    Rule(r"norm_f\.weight", r"norm.weight"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.linear\.(.+)", r"head.linear.\1"),
)

# The published class's names for arguments of ours, and those of its mixer.
_RENAMED = {"img_size": "image_size", "channels": "in_channels"}
_MIXER = {"d_state": "states", "d_conv": "conv_width", "expand": "expand", "dt_rank": "dt_rank"}


@LAYOUTS.register("dis")
class DiSLayout(Layout):
    """feizc/DiS: class-conditional and unconditional."""

    backbone: ClassVar[str] = "dis"
    reference: ClassVar[tuple[str, ...]] = ("DisModel",)
    rules: ClassVar[KeyMap] = DIS
    signature: ClassVar[tuple[str, ...]] = (
        r"mid_block\.mixer\.A_b_log",
        r"in_blocks\.0\.mixer\.in_proj\.weight",
        r"time_embed\.0\.weight",
        r"norm_f\.weight",
    )
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = r"label_emb\.embedding_table\.weight"
    lone_null_row: ClassVar[bool] = False
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "patch_size": ("patch_size",),
        "in_channels": ("channels",),
        "embed_dim": ("embed_dim",),
        "learn_sigma": ("learn_sigma",),
        "states": ("d_state",),
        "conv_width": ("d_conv",),
    }

    def options(self, shapes: Shapes) -> dict[str, Any]:
        dim, in_channels, patch, _ = shapes["patch_embed.proj.weight"]
        rows = self.label_rows(shapes)
        patches = shapes["pos_embed"][1] - (1 if rows is None else 2)
        mixer = "mid_block.mixer"
        inner, states = shapes[f"{mixer}.A_log"]
        return {
            "image_size": patch * math.isqrt(patches),
            "patch_size": patch,
            "in_channels": in_channels,
            "embed_dim": dim,
            "depth": 2 * count(shapes, r"in_blocks\.(\d+)\."),
            "num_classes": 0 if rows is None else rows - 1,
            "learn_sigma": shapes["final_layer.linear.weight"][0] == 2 * in_channels * patch**2,
            "states": states,
            "expand": inner // dim,
            "conv_width": shapes[f"{mixer}.conv1d.weight"][2],
            "dt_rank": shapes[f"{mixer}.dt_proj.weight"][1],
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = {_RENAMED.get(name, name): value for name, value in reference.items()}
        given |= given.pop("ssm_cfg", None) or {}
        given = {_MIXER.get(name, name): None if value == "auto" else value for name, value in given.items()}
        # The published class is unconditional by default, with num_classes = -1.
        given["num_classes"] = max(given.get("num_classes", -1), 0)
        return with_null_class(given)
