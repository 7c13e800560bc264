"""Checkpoint layout of YuchuanTian/DiC."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, check_fixed, count, with_null_class

_BLOCK = {
    r"affine\.1": "modulation.linear",
    r"norm0": "norm_1",
    r"conv0": "conv_1",
    r"norm1": "norm_2",
    r"conv1": "conv_2",
    r"skip": "shortcut",
}
_STAGES = {
    r"enc_blocks\.(\d+)\.(\d+)": r"encoder.\1.\2",
    r"lat_blocks\.(0)\.(\d+)": r"bottom.\2",
    r"dec_blocks\.(\d+)\.(\d+)": r"decoder.\1.\2",
}
DIC: KeyMap = (
    Rule(r"x_embedder\.proj\.(.+)", r"stem.\1"),
    Rule(r"t_embedder_ls\.(\d+)\.mlp\.(.+)", r"time_embeddings.\1.mlp.\2"),
    Rule(r"y_embedder_ls\.(\d+)\.embedding_table\.weight", r"label_embeddings.\1.table.weight"),
    *(
        Rule(rf"{stage}\.conv\.{part}\.(weight|bias)", rf"{our_stage}.{our_part}.\3")
        for stage, our_stage in _STAGES.items()
        for part, our_part in _BLOCK.items()
    ),
    Rule(r"downs\.(\d+)\.body\.0\.weight", r"downs.\1.conv.weight"),
    Rule(r"ups\.(\d+)\.body\.0\.weight", r"ups.\1.conv.weight"),
    Rule(r"output\.(.+)", r"head.conv_in.\1"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.out_proj\.(.+)", r"head.conv_out.\1"),
)

# Options of the published class that no published size varies and ours does not have.
_FIXED = {
    "block_type": "unetblock",
    "actf": [1, 1],
    "norm_type": "gnorm",
    "norm_type1": "gnorm",
    "actinada": 1,
    "affinef": 3,
    "actfunc": "gelu",
    "affine": 0,
    "blockconfig": 0,
    "num_groups": 32,
    "min_channels": 4,
}


def _skip_stride(shapes: Shapes) -> int:
    """The first decoder block after a stage's first that is wider at its input, for a skip; the published 3 or a
    larger one, which is the same network, where there is none."""
    inputs = r"dec_blocks\.\d+\.(\d+)\.conv\.conv0\.weight"
    found = {key: int(match[1]) for key in shapes if (match := re.fullmatch(inputs, key))}
    joined = [block for key, block in found.items() if block and shapes[key][1] > shapes[key][0]]
    return min(joined) if joined else max(3, *(block + 1 for block in found.values()))


@LAYOUTS.register("dic")
class DiCLayout(Layout):
    """YuchuanTian/DiC."""

    backbone: ClassVar[str] = "dic"
    reference: ClassVar[tuple[str, ...]] = ("DiC",)
    rules: ClassVar[KeyMap] = DIC
    signature: ClassVar[tuple[str, ...]] = (
        r"enc_blocks\.0\.0\.conv\.conv0\.weight",
        r"lat_blocks\.0\.0\.conv\.conv0\.weight",
    )
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = r"y_embedder_ls\.0\.embedding_table\.weight"
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "in_channels": ("in_channels",),
        "hidden_size": ("hidden_size",),
        "depth": ("depth",),
        "channel_mult": ("mult_channels",),
        "skip_stride": ("skip_stride",),
        "learn_sigma": ("learn_sigma",),
    }

    def options(self, shapes: Shapes) -> dict[str, Any]:
        hidden, in_channels = shapes["x_embedder.proj.weight"][:2]
        stages = [f"enc_blocks.{i}" for i in range(count(shapes, r"enc_blocks\.(\d+)\."))]
        stages += ["lat_blocks.0"]
        stages += [f"dec_blocks.{i}" for i in range(count(shapes, r"dec_blocks\.(\d+)\."))]
        return {
            "in_channels": in_channels,
            "hidden_size": hidden,
            "depth": [count(shapes, stage.replace(".", r"\.") + r"\.(\d+)\.") for stage in stages],
            "channel_mult": [shapes[f"{stage}.0.conv.conv0.weight"][0] // hidden for stage in stages],
            "skip_stride": _skip_stride(shapes),
            "num_classes": shapes["y_embedder_ls.0.embedding_table.weight"][0] - 1,
            "learn_sigma": shapes["final_layer.out_proj.weight"][0] == 2 * in_channels,
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        check_fixed("DiC", reference, _FIXED)
        given = {name: value for name, value in reference.items() if name not in _FIXED}
        if "input_size" in given:
            given["image_size"] = given.pop("input_size")
        if "mult_channels" in given:
            given["channel_mult"] = given.pop("mult_channels")
        return with_null_class(given)
