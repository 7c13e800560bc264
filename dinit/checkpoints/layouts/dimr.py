"""Checkpoint layout of qihao067/DiMR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from torch import Tensor

from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, check_fixed, count, published
from dinit.models.layers.dimr_stage import StageConfig


def as_map(table: Tensor) -> Tensor:
    """(side^2, width), positions row by row -> (side, side, width)."""
    side = math.isqrt(table.shape[0])
    return table.unflatten(0, (side, side))


def _norm(foreign: str, ours: str) -> list[Rule]:
    """The vectors of a time-dependent norm, four for each of scale (named weight where it has a bias) and shift."""
    vectors = {"param0": "p0", "param1": "p1", "nodecay_weight": "slope", "nodecay_bias": "offset"}
    return [
        Rule(rf"{foreign}\.{part}\.{vector}", rf"{ours}.{our_part}.{our_vector}")
        for part, our_part in {"scale": "scale", "weight": "scale", "bias": "shift"}.items()
        for vector, our_vector in vectors.items()
    ]


_STAGE = r"stages\.(\d+)"
_BLOCK = rf"{_STAGE}\.blocks\.(\d+)"
_LINEARS = {
    r"block1\.query_key_value": "qkv",
    r"block1\.dense": "proj",
    r"block1\.1": "conv",
    r"block2\.w0": "mlp.gate",
    r"block2\.w1": "mlp.value",
    r"block2\.w2": "mlp.out",
}
DIMR: KeyMap = (
    Rule(rf"{_STAGE}\.input_layer\.1\.(.+)", r"branches.\1.stem.\2"),
    Rule(rf"{_STAGE}\.input_layer\.3\.position_embeddings\.weight", r"branches.\1.positions", change=as_map),
    Rule(rf"{_STAGE}\.class_embeds\.weight", r"label_embeddings.\1.table.weight"),
    Rule(rf"{_STAGE}\.skip_denses\.(\d+)\.(.+)", r"branches.\1.joins.\2.\3"),
    *(Rule(rf"{_BLOCK}\.{name}\.(.+)", rf"branches.\1.blocks.\2.{ours}.\3") for name, ours in _LINEARS.items()),
    *_norm(rf"{_BLOCK}\.block1\.norm", r"branches.\1.blocks.\2.norm_attention"),
    *_norm(rf"{_BLOCK}\.block2\.norm", r"branches.\1.blocks.\2.norm_mlp"),
    *_norm(rf"{_STAGE}\.upsample\.0", r"branches.\1.lift.norm_in"),
    Rule(rf"{_STAGE}\.upsample\.1\.kernel\.(.+)", r"branches.\1.lift.linear.\2"),
    *_norm(rf"{_STAGE}\.upsample\.2", r"branches.\1.lift.norm_out"),
    *_norm(rf"{_STAGE}\.output_layer\.0", r"heads.\1.norm"),
    Rule(rf"{_STAGE}\.output_layer\.2\.(.+)", r"heads.\1.conv.\2"),
)


@LAYOUTS.register("dimr")
class DiMRLayout(Layout):
    """qihao067/DiMR: the state of the class-conditional ImageNet models, Stable Diffusion's betas."""

    backbone: ClassVar[str] = "dimr"
    reference: ClassVar[tuple[str, ...]] = ("MRModel",)
    rules: ClassVar[KeyMap] = DIMR
    signature: ClassVar[tuple[str, ...]] = (
        r"stages\.0\.input_layer\.3\.position_embeddings\.weight",
        r"stages\.0\.blocks\.0\.block2\.norm\.scale\.param0",
    )
    process: ClassVar[dict[str, Any]] = {"name": "vp-discrete", "schedule": "scaled-linear"}
    label_table: ClassVar[str | None] = r"stages\.\d+\.class_embeds\.weight"

    def options(self, shapes: Shapes) -> dict[str, Any]:
        number = count(shapes, r"stages\.(\d+)\.")
        sides = [
            math.isqrt(shapes[f"stages.{i}.input_layer.3.position_embeddings.weight"][0]) for i in range(number)
        ]
        # The last stage works on single pixels, so its table has the image's side.
        stages = tuple(_stage(shapes, f"stages.{i}", sides[-1] // side) for i, side in enumerate(sides))
        in_channels = shapes["stages.0.input_layer.1.weight"][1]
        classes = next(shape[0] for key, shape in shapes.items() if key.endswith(".class_embeds.weight"))
        return {
            "image_size": sides[-1],
            "in_channels": in_channels,
            "stages": stages,
            "num_heads": published(self.backbone, "num_heads", stages=stages),
            "num_classes": classes - 1,
            "coarse_heads": number == 1 or "stages.0.output_layer.2.weight" in shapes,
            "learn_sigma": shapes[f"stages.{number - 1}.output_layer.2.weight"][0] == 2 * in_channels,
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        """image_size is that of the last stage's table. num_classes excludes the null label here."""
        check_fixed("DiMR", reference, {"norm_type": "TDRMSN"})
        foreign = [dict(stage) for stage in reference["stage_configs"]]
        for stage in foreign:
            if stage["block_type"] not in ("TransformerBlock", "ConvNeXtBlock"):
                raise ValueError(f"DiMR with block_type = {stage['block_type']!r} is not covered")
            if stage["max_height"] != stage["max_width"]:
                raise ValueError(f"DiMR with max_height != max_width is not covered, got {stage}")
        dropout = {stage.get("dropout_prob", 0) for stage in foreign}
        if len(dropout) > 1:
            raise ValueError(f"DiMR with a dropout_prob for every stage is not covered, got {sorted(dropout)}")
        return {
            # block_grad_to_lowres, which stops gradients between stages, is of training and not of the network.
            "image_size": foreign[-1]["max_height"],
            "in_channels": reference["channels"],
            "stages": tuple(asdict(_config(stage)) for stage in foreign),
            "num_heads": [s["num_attention_heads"] for s in foreign if s["block_type"] == "TransformerBlock"],
            "num_classes": reference["num_classes"] - 1,
            "dropout": dropout.pop(),
        }


def _config(stage: Mapping[str, Any]) -> StageConfig:
    """A stage of the reference's configuration as ours."""
    return StageConfig(
        width=stage["dim"],
        mlp_width=stage["hidden_dim"],
        depth=stage["num_blocks"] // 2 * 2 + 1,  # halves on both sides of a middle block, whatever the depth is
        patch_size=stage["input_feature_ratio"],
        image_ratio=stage["image_input_ratio"],
        kernel_size=stage["kernel_size"] if stage["block_type"] == "ConvNeXtBlock" else None,
        head_kernel=stage["final_kernel_size"],
    )


def _stage(shapes: Shapes, stage: str, downscale: int) -> dict[str, Any]:
    """A stage's configuration, from the tensors. downscale: pixels of the image on a side of one vector."""
    width, _, patch, _ = shapes[f"{stage}.input_layer.1.weight"]
    conv = shapes.get(f"{stage}.blocks.0.block1.1.weight")
    return asdict(
        StageConfig(
            width=width,
            mlp_width=shapes[f"{stage}.blocks.0.block2.w0.weight"][0],
            depth=count(shapes, stage.replace(".", r"\.") + r"\.blocks\.(\d+)\."),
            patch_size=patch,
            image_ratio=downscale // patch,
            kernel_size=None if conv is None else conv[2],
            head_kernel=shapes.get(f"{stage}.output_layer.2.weight", (0, 0, 3))[2],
        )
    )
