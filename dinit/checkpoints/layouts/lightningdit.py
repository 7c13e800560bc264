"""Checkpoint layout of hustvl/LightningDiT."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dinit.checkpoints.claims import Pair, transport
from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, with_null_class
from dinit.checkpoints.layouts.dit import DIT, LABEL_TABLE, SIZES, transformer_options
from dinit.checkpoints.stored import RunArguments
from dinit.diffusion import Process
from dinit.models.lightningdit import rotary_angles

LIGHTNINGDIT: KeyMap = (
    Rule(r"feat_rope\.freqs_(cos|sin)", None),
    Rule(r"blocks\.(\d+)\.norm([12])\.weight", r"blocks.\1.norm_\2.weight"),
    Rule(r"blocks\.(\d+)\.attn\.([qk])_norm\.(.+)", r"blocks.\1.attention.norm_\2.\3"),
    Rule(r"blocks\.(\d+)\.mlp\.w12\.(.+)", r"blocks.\1.mlp.gate_value.\2"),
    Rule(r"blocks\.(\d+)\.mlp\.w3\.(.+)", r"blocks.\1.mlp.out.\2"),
    Rule(r"final_layer\.norm_final\.weight", r"head.norm.weight"),
    *DIT,
)


# Tensors of its flags, each of which DiT does not have.
_MARKS = (
    "feat_rope.freqs_cos",
    "blocks.0.mlp.w12.weight",
    "blocks.0.norm1.weight",
    "final_layer.norm_final.weight",
)
# Of the published figures: timestep_shift, and cfg_interval_start, below which nothing is guided.
_SHIFT, _GUIDED_FROM = 0.3, 0.125


@LAYOUTS.register("lightningdit")
class LightningDiTLayout(Layout):
    """hustvl/LightningDiT: time runs from noise (0) to data (1), the output is data minus noise."""

    backbone: ClassVar[str] = "lightningdit"
    reference: ClassVar[tuple[str, ...]] = ("LightningDiT",)
    rules: ClassVar[KeyMap] = LIGHTNINGDIT
    signature: ClassVar[tuple[str, ...]] = (
        r"blocks\.0\.attn\.qkv\.weight",
        r"t_embedder\.mlp\.0\.weight",
        r"blocks\.0\.adaLN_modulation\.1\.weight",
        r"final_layer\.linear\.weight",
    )
    process: ClassVar[dict[str, Any]] = {"name": "flow"}
    parameterization: ClassVar[dict[str, Any]] = {"name": "reversed-velocity"}
    guided_channels: ClassVar[int | None] = 3
    label_table: ClassVar[str | None] = LABEL_TABLE
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SIZES,
        **{
            name: (name,)
            for name in ("learn_sigma", "use_qknorm", "use_swiglu", "use_rope", "use_rmsnorm", "wo_shift")
        },
    }
    normalizes_latents: ClassVar[bool] = True
    guidance_scale: ClassVar[float] = 6.7  # high, because 29 of 32 channels go unguided

    def recognises(self, shapes: Shapes) -> bool:
        # At least one of its flags is on; with none of them its tensors are those of DiT.
        if not super().recognises(shapes):
            return False
        rows, width = shapes["blocks.0.adaLN_modulation.1.weight"]
        return rows == 4 * width or any(name in shapes for name in _MARKS)

    def options(self, shapes: Shapes) -> dict[str, Any]:
        found = transformer_options(shapes, self.backbone)
        hidden = found["hidden_size"]
        if "blocks.0.attn.q_norm.weight" in shapes:
            found["num_heads"] = hidden // shapes["blocks.0.attn.q_norm.weight"][0]
        swiglu = "blocks.0.mlp.w12.weight" in shapes
        # The hidden width of SwiGLU is two thirds of the ratio's, rounded down, so a slightly larger ratio is safe.
        width = (
            math.ceil(shapes["blocks.0.mlp.w3.weight"][1] * 1.5) if swiglu else shapes["blocks.0.mlp.fc1.weight"][0]
        )
        return {
            **found,
            "mlp_ratio": width / hidden,
            "use_qknorm": "blocks.0.attn.q_norm.weight" in shapes,
            "use_swiglu": swiglu,
            "use_rope": "feat_rope.freqs_cos" in shapes,
            "use_rmsnorm": "blocks.0.norm1.weight" in shapes,
            "wo_shift": shapes["blocks.0.adaLN_modulation.1.weight"][0] == 4 * hidden,
        }

    def tables(self, backbone: Any) -> dict[str, Tensor]:
        if not backbone.use_rope:
            return {"pos_embed": backbone.positions.table}
        side = backbone.image_size // backbone.patch_size
        angles = rotary_angles(backbone.head_dim, side, side).repeat_interleave(2, dim=1)
        rotary = {"feat_rope.freqs_cos": angles.cos(), "feat_rope.freqs_sin": angles.sin()}
        return {"pos_embed": backbone.positions.table, **rotary}

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(reference)
        if "input_size" in given:
            given["image_size"] = given.pop("input_size")
        return with_null_class(given)

    def sampling(self, process: Process, learned: bool) -> dict[str, Any]:
        # Its 250 times are 249 steps. Its shift acts on a time from noise to data: here it is inverted.
        return {"sampler": {"name": "euler"}, "steps": 249, "grid": {"name": "shifted", "shift": 1 / _SHIFT}}

    def guidance(self, guided: bool) -> list[dict[str, Any]]:
        found = super().guidance(guided)
        low = 2 * math.log(_GUIDED_FROM / (1 - _GUIDED_FROM))  # log-SNR of the linear path
        return [{**one, "low": low} if one["name"] == "cfg" else one for one in found]

    def stated_training(self, run: RunArguments, published: Pair) -> Pair:
        return transport(run, published)
