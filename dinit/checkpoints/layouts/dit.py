"""Checkpoint layouts of facebookresearch/DiT and willisma/SiT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dinit.checkpoints.claims import Pair, transport
from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, ODE_STEPS, Layout, Shapes, count, published, with_null_class
from dinit.checkpoints.stored import RunArguments
from dinit.diffusion import Process

DIT: KeyMap = (
    Rule(r"pos_embed", None),
    Rule(r"x_embedder\.proj\.(.+)", r"stem.proj.\1"),
    Rule(r"t_embedder\.mlp\.(.+)", r"time_embedding.mlp.\1"),
    Rule(r"y_embedder\.embedding_table\.weight", r"label_embedding.table.weight"),
    Rule(r"blocks\.(\d+)\.adaLN_modulation\.1\.(.+)", r"blocks.\1.modulation.linear.\2"),
    Rule(r"blocks\.(\d+)\.attn\.(qkv|proj)\.(.+)", r"blocks.\1.attention.\2.\3"),
    Rule(r"blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"blocks.\1.mlp.\2.\3"),
    Rule(r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"final_layer\.linear\.(.+)", r"head.linear.\1"),
)


LABEL_TABLE = r"y_embedder\.embedding_table\.weight"
SIZES: dict[str, tuple[str, ...]] = {
    name: (name,) for name in ("hidden_size", "depth", "num_heads", "patch_size", "mlp_ratio")
}
SIZES["in_channels"] = ("in_channels", "in_chans")


def transformer_options(shapes: Shapes, backbone: str) -> dict[str, Any]:
    """The arguments that DiT, SiT and LightningDiT share, from the tensors of their common layout.

    The number of heads cannot be inferred from the tensors: it is that of the published size of this width and
    depth.
    """
    hidden, in_channels, patch, _ = shapes["x_embedder.proj.weight"]
    outputs = shapes["final_layer.linear.weight"][0]
    depth = count(shapes, r"blocks\.(\d+)\.")
    return {
        "image_size": patch * math.isqrt(shapes["pos_embed"][1]),
        "patch_size": patch,
        "in_channels": in_channels,
        "hidden_size": hidden,
        "depth": depth,
        "num_heads": published(backbone, "num_heads", hidden_size=hidden, depth=depth),
        "num_classes": shapes["y_embedder.embedding_table.weight"][0] - 1,
        "learn_sigma": outputs == 2 * in_channels * patch**2,
    }


@LAYOUTS.register("dit")
class DiTLayout(Layout):
    """facebookresearch/DiT: the bare state of the EMA weights."""

    backbone: ClassVar[str] = "dit"
    reference: ClassVar[tuple[str, ...]] = ("DiT",)
    rules: ClassVar[KeyMap] = DIT
    # SiT's tensors have the same names and shapes: a bare state is read as DiT's unless layout= is given.
    signature: ClassVar[tuple[str, ...]] = (
        r"blocks\.0\.attn\.qkv\.weight",
        r"blocks\.0\.mlp\.fc1\.weight",
        r"t_embedder\.mlp\.0\.weight",
        r"blocks\.0\.adaLN_modulation\.1\.weight",
        r"final_layer\.linear\.weight",
    )
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = LABEL_TABLE
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {**SIZES, "learn_sigma": ("learn_sigma",)}

    def options(self, shapes: Shapes) -> dict[str, Any]:
        hidden = shapes["x_embedder.proj.weight"][0]
        return {
            **transformer_options(shapes, self.backbone),
            "mlp_ratio": shapes["blocks.0.mlp.fc1.weight"][0] / hidden,
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(reference)
        if "input_size" in given:
            given["image_size"] = given.pop("input_size")
        return with_null_class(given)

    def tables(self, backbone: Any) -> dict[str, Tensor]:
        return {"pos_embed": backbone.positions.table}


@LAYOUTS.register("sit")
class SiTLayout(DiTLayout):
    """willisma/SiT: time runs from noise (0) to data (1), the output is data minus noise."""

    backbone: ClassVar[str] = "sit"
    reference: ClassVar[tuple[str, ...]] = ("SiT",)
    # Without learn_sigma, of which nothing follows here: the half that it adds is dropped.
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = SIZES
    process: ClassVar[dict[str, Any]] = {"name": "flow"}
    parameterization: ClassVar[dict[str, Any]] = {"name": "reversed-velocity"}

    def options(self, shapes: Shapes) -> dict[str, Any]:
        found = super().options(shapes)
        return {**found, "learn_sigma": False, "spare_half": found["learn_sigma"]}

    def sampling(self, process: Process, learned: bool) -> dict[str, Any]:
        return dict(ODE_STEPS)

    def stated_training(self, run: RunArguments, published: Pair) -> Pair:
        return transport(run, published)

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = super().arguments(reference)
        return {**given, "learn_sigma": False, "spare_half": given.get("learn_sigma", True)}
