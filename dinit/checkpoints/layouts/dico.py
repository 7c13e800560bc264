"""Checkpoint layout of shallowdream204/DiCo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, count, with_null_class

_STAGES = {
    "encoder_level_1": "encoder_1",
    "encoder_level_2": "encoder_2",
    "latent": "bottom",
    "decoder_level_2": "decoder_2",
    "decoder_level_1": "decoder_1",
}
_BLOCK = {
    r"adaLN_modulation\.1": "modulation.linear",
    r"conv1": "conv_in",
    r"conv2": "conv_depthwise",
    r"ca\.1": "channel_attention.conv",
    r"conv3": "conv_out",
    r"conv4": "mlp_in",
    r"conv5": "mlp_out",
}
DICO: KeyMap = (
    Rule(r"x_embedder\.proj\.(.+)", r"stem.\1"),
    *(Rule(rf"t_embedder_{i + 1}\.mlp\.(.+)", rf"time_embeddings.{i}.mlp.\1") for i in range(3)),
    Rule(r"y_embedder\.embedding_table_(\d)\.weight", r"label_embeddings.\1.table.weight"),
    *(
        Rule(rf"{stage}\.(\d+)\.{part}\.(weight|bias)", rf"{our_stage}.\1.{our_part}.\2")
        for stage, our_stage in _STAGES.items()
        for part, our_part in _BLOCK.items()
    ),
    Rule(r"down1_2\.body\.0\.weight", "down_1.conv.weight"),
    Rule(r"down2_3\.body\.0\.weight", "down_2.conv.weight"),
    Rule(r"up3_2\.body\.0\.weight", "up_2.conv.weight"),
    Rule(r"up2_1\.body\.0\.weight", "up_1.conv.weight"),
    Rule(r"reduce_chan_level([12])\.(.+)", r"merge_\1.\2"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.out_proj\.(.+)", r"head.conv.\1"),
)


@LAYOUTS.register("dico")
class DiCoLayout(Layout):
    """shallowdream204/DiCo."""

    backbone: ClassVar[str] = "dico"
    reference: ClassVar[tuple[str, ...]] = ("DiCo",)
    rules: ClassVar[KeyMap] = DICO
    signature: ClassVar[tuple[str, ...]] = (r"encoder_level_1\.0\.ca\.1\.weight", r"latent\.0\.conv1\.weight")
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = r"y_embedder\.embedding_table_[01]\.weight"
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (name,) for name in ("in_channels", "hidden_size", "depth", "mlp_ratio", "learn_sigma")
    }

    def options(self, shapes: Shapes) -> dict[str, Any]:
        hidden, in_channels = shapes["x_embedder.proj.weight"][:2]
        return {
            "in_channels": in_channels,
            "hidden_size": hidden,
            "depth": [count(shapes, rf"{stage}\.(\d+)\.") for stage in _STAGES],
            "mlp_ratio": shapes["encoder_level_1.0.conv4.weight"][0] / hidden,
            "num_classes": shapes["y_embedder.embedding_table_1.weight"][0] - 1,
            "learn_sigma": shapes["final_layer.out_proj.weight"][0] == 2 * in_channels,
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(reference)
        if "input_size" in given:
            given["image_size"] = given.pop("input_size")
        return with_null_class(given)
