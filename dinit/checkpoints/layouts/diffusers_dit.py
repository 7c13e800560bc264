"""Checkpoint layout of diffusers' DiTTransformer2DModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.checkpoints.claims import whole
from dinit.checkpoints.keymap import KeyMap, Rule, map_keys, names
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, check_fixed, count, published
from dinit.checkpoints.stored import Stated, plain_value

_BLOCK = r"transformer_blocks\.(\d+)\."
_EMBEDDINGS = re.compile(_BLOCK + r"norm1\.emb\.(.+)")
_SPLIT = re.compile(_BLOCK + r"attn1\.to_([qkv])\.(weight|bias)")

# Of the state that `prepare` makes: one embedding, and q, k and v joined.
DIFFUSERS_DIT: KeyMap = (
    Rule(r"pos_embed\.pos_embed", None),
    Rule(r"pos_embed\.proj\.(.+)", r"stem.proj.\1"),
    Rule(r"emb\.timestep_embedder\.linear_1\.(.+)", r"time_embedding.mlp.0.\1"),
    Rule(r"emb\.timestep_embedder\.linear_2\.(.+)", r"time_embedding.mlp.2.\1"),
    Rule(r"emb\.class_embedder\.embedding_table\.weight", r"label_embedding.table.weight"),
    Rule(_BLOCK + r"norm1\.linear\.(.+)", r"blocks.\1.modulation.linear.\2"),
    Rule(_BLOCK + r"attn1\.to_qkv\.(.+)", r"blocks.\1.attention.qkv.\2"),
    Rule(_BLOCK + r"attn1\.to_out\.0\.(.+)", r"blocks.\1.attention.proj.\2"),
    Rule(_BLOCK + r"ff\.net\.0\.proj\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    Rule(_BLOCK + r"ff\.net\.2\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    Rule(r"proj_out_1\.(.+)", r"head.modulation.linear.\1"),
    Rule(r"proj_out_2\.(.+)", r"head.linear.\1"),
)
_BACK: KeyMap = (
    Rule(r"stem\.proj\.(.+)", r"pos_embed.proj.\1"),
    Rule(r"time_embedding\.mlp\.0\.(.+)", r"emb.timestep_embedder.linear_1.\1"),
    Rule(r"time_embedding\.mlp\.2\.(.+)", r"emb.timestep_embedder.linear_2.\1"),
    Rule(r"label_embedding\.table\.weight", r"emb.class_embedder.embedding_table.weight"),
    Rule(r"blocks\.(\d+)\.modulation\.linear\.(.+)", r"transformer_blocks.\1.norm1.linear.\2"),
    Rule(r"blocks\.(\d+)\.attention\.qkv\.(.+)", r"transformer_blocks.\1.attn1.to_qkv.\2"),
    Rule(r"blocks\.(\d+)\.attention\.proj\.(.+)", r"transformer_blocks.\1.attn1.to_out.0.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.fc1\.(.+)", r"transformer_blocks.\1.ff.net.0.proj.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.fc2\.(.+)", r"transformer_blocks.\1.ff.net.2.\2"),
    Rule(r"head\.modulation\.linear\.(.+)", r"proj_out_1.\1"),
    Rule(r"head\.linear\.(.+)", r"proj_out_2.\1"),
)

# Arguments whose only value that our DiT has is the published one.
_FIXED = {
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "upcast_attention": False,
}
_DEFAULTS = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None}
_DEFAULTS |= {"num_layers": 28, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000}


@LAYOUTS.register("diffusers-dit")
class DiffusersDiTLayout(Layout):
    """diffusers' DiT, whose time sinusoid and one norm epsilon are not those of facebookresearch/DiT."""

    backbone: ClassVar[str] = "dit"
    reference: ClassVar[tuple[str, ...]] = ("DiTTransformer2DModel",)
    rules: ClassVar[KeyMap] = DIFFUSERS_DIT
    signature: ClassVar[tuple[str, ...]] = (
        r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.weight",
        r"transformer_blocks\.0\.attn1\.to_q\.weight",
        r"proj_out_1\.weight",
    )
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = (
        r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.weight"
    )
    always_null_row: ClassVar[bool] = True
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "num_heads": ("num_attention_heads",),
        "depth": ("num_layers",),
        "patch_size": ("patch_size",),
        "in_channels": ("in_channels",),
    }

    def options(self, shapes: Shapes) -> dict[str, Any]:
        hidden, in_channels, patch, _ = shapes["pos_embed.proj.weight"]
        depth = count(shapes, _BLOCK)
        block = "transformer_blocks.0"
        return {
            "patch_size": patch,
            "in_channels": in_channels,
            "hidden_size": hidden,
            "depth": depth,
            "num_heads": published("dit", "num_heads", hidden_size=hidden, depth=depth),
            "mlp_ratio": shapes[f"{block}.ff.net.0.proj.weight"][0] / hidden,
            "num_classes": shapes[f"{block}.norm1.emb.class_embedder.embedding_table.weight"][0] - 1,
            "learn_sigma": shapes["proj_out_2.weight"][0] == 2 * in_channels * patch**2,
            "freq_shift": 1.0,
            "mlp_norm_eps": 1e-5,
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        check_fixed("DiTTransformer2DModel", reference, _FIXED)
        given: dict[str, Any] = dict(_DEFAULTS)
        for name, value in reference.items():
            if name in _DEFAULTS and (value is not None or _DEFAULTS[name] is not None):
                given[name] = whole(Stated(f"config.json: {name}", plain_value(value)))
        channels = given["in_channels"]
        if given["out_channels"] not in (None, channels, 2 * channels):
            raise ValueError(
                f"DiTTransformer2DModel with out_channels = {given['out_channels']} is not covered; they are as "
                f"many as in_channels ({channels}), or twice as many"
            )
        return {
            "image_size": given["sample_size"],
            "patch_size": given["patch_size"],
            "in_channels": channels,
            "hidden_size": given["num_attention_heads"] * given["attention_head_dim"],
            "depth": given["num_layers"],
            "num_heads": given["num_attention_heads"],
            "num_classes": given["num_embeds_ada_norm"],
            "learn_sigma": given["out_channels"] == 2 * channels,
            "freq_shift": 1.0,
            "mlp_norm_eps": reference.get("norm_eps", 1e-5),
        }

    def prepare(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One time and label embedding, which every block repeats; q, k and v joined.

        ValueError where the blocks' embeddings differ: our DiT has one.
        """
        prepared: dict[str, Tensor] = {}
        differing: list[str] = []
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            if embedding := _EMBEDDINGS.fullmatch(key):
                first = prepared.setdefault(f"emb.{embedding[2]}", tensor)
                if not torch.equal(first, tensor):
                    differing.append(key)
            elif split := _SPLIT.fullmatch(key):
                joined = f"transformer_blocks.{split[1]}.attn1.to_qkv.{split[3]}"
                parts.setdefault(joined, {})[split[2]] = tensor
            else:
                prepared[key] = tensor
        if differing:
            raise ValueError(
                f"{len(differing)} time or label embeddings differ from the first block's: {names(differing)}; "
                "dinit's DiT has one for all blocks, as the published weights do"
            )
        for key, three in parts.items():
            if len(three) == 3:
                prepared[key] = torch.cat([three["q"], three["k"], three["v"]])
            else:  # under its own name, so that it is reported with everything else that does not fit
                prepared |= {key.replace("qkv", part): tensor for part, tensor in three.items()}
        return prepared

    def tables(self, backbone: Any) -> dict[str, Tensor]:
        return {"pos_embed.pos_embed": backbone.positions.table}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a DiTTransformer2DModel from that of our DiT: what `prepare` and the rules undo."""
    mapped = map_keys(state, _BACK)
    restored: dict[str, Tensor] = {}
    depth = count(mapped, _BLOCK)
    for key, tensor in mapped.items():
        if key.startswith("emb."):
            restored |= {f"transformer_blocks.{block}.norm1.{key}": tensor.clone() for block in range(depth)}
        elif ".to_qkv." in key:
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            restored |= {key.replace("qkv", part): third.clone() for part, third in thirds}
        else:
            restored[key] = tensor
    return restored
