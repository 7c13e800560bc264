"""DiMR: a cascade of resolutions, attention at the coarsest. Liu et al. 2024, arXiv:2406.09416."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_block
from dinit.models.layers.checks import check_divides
from dinit.models.layers.dimr_stage import Stage, StageConfig, StageHead
from dinit.models.layers.embedding import LabelEmbedding
from dinit.models.layers.presets import imagenet_presets, tiny_preset


def _stages(*stages: StageConfig) -> tuple[dict[str, Any], ...]:
    return tuple(asdict(stage) for stage in stages)


_XL_2R = _stages(
    StageConfig(width=960, mlp_width=1920, depth=39, patch_size=2),
    StageConfig(width=480, mlp_width=960, depth=21, kernel_size=7),
)
_G_2R = _stages(
    StageConfig(width=1152, mlp_width=2304, depth=57, patch_size=2),
    StageConfig(width=576, mlp_width=1152, depth=29, kernel_size=7),
)

_TINY_STAGES = _stages(
    StageConfig(width=32, mlp_width=48, depth=3, patch_size=2),
    StageConfig(width=16, mlp_width=24, depth=3, kernel_size=3),
)


def read_stages(stages: Sequence[Mapping[str, Any]]) -> tuple[StageConfig, ...]:
    """The stages as typed values. ValueError for unknown or missing names and sizes that do not fit together."""
    known = {field.name for field in fields(StageConfig)}
    for i, stage in enumerate(stages):
        unknown, missing = sorted(set(stage) - known), sorted({"width", "mlp_width", "depth"} - set(stage))
        if unknown or missing:
            raise ValueError(
                f"DiMR: stages[{i}] lacks {missing} and has the unknown {unknown}; "
                f"a stage is a mapping of {sorted(known)}"
            )
    configs = tuple(StageConfig(**stage) for stage in stages)
    for i, config in enumerate(configs):
        for name, value in asdict(config).items():
            if value is not None and value < 1:
                raise ValueError(f"DiMR: {name} of stages[{i}] must be at least 1, got {value}")
        for name in ("depth", "kernel_size", "head_kernel"):
            if (value := getattr(config, name)) is not None and value % 2 == 0:
                raise ValueError(f"DiMR: {name} of stages[{i}] must be odd, got {value}")
    scales = [config.downscale for config in configs]
    if not scales or scales[-1] != 1 or any(coarse % fine for coarse, fine in pairwise(scales)):
        raise ValueError(
            "DiMR: stages must go from coarse to fine, each one's patch_size * image_ratio a multiple of the next "
            f"one's and the last one's 1, got {scales}"
        )
    if all(config.kernel_size is not None for config in configs):
        raise ValueError("DiMR: labels enter where a stage attends; leave out kernel_size of one stage at least")
    return configs


@BACKBONES.register("dimr")
@config_from_fields
class DiMR(Backbone):
    """Multi-resolution diffusion model with time-dependent norms (Liu et al. 2024, arXiv:2406.09416).

    Presets XL/2R and G/2R. Every stage sees the image at its own resolution and all features of the stage before
    it; the output of the last one is the prediction, and training may supervise that of every one through
    all_outputs(). noise_label is 0..999 and time enters the norms alone, as a number in [-1, 1]. The condition is
    the label tokens of the stages that attend, concatenated.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of the coarsest stage's
            patch_size * image_ratio, with the learned positions interpolated.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        stages: from coarse to fine, any number, each a mapping of StageConfig's fields.
        num_heads: of the stages that attend, in turn, or one number for all.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance; the published ones have none.
        dropout: after attention and MLP, in [0, 1).
        coarse_heads: False leaves out the heads of all stages but the last, which forward() does not need
            (parameters that never get a gradient are refused by distributed training).

    Raises:
        ValueError: sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(stages=_TINY_STAGES, num_heads=4, coarse_heads=False),
        **imagenet_presets(
            {"XL/2R": {"stages": _XL_2R}, "G/2R": {"stages": _G_2R}}, num_heads=16, learn_sigma=False
        ),
    }

    image_size: int = 32
    in_channels: int = 4
    stages: Sequence[Mapping[str, Any]] = _XL_2R
    num_heads: int | Sequence[int] = 16
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0
    coarse_heads: bool = True

    def smallest_size(self) -> int:
        return read_stages(self.stages)[0].downscale

    def build(self) -> None:
        configs = read_stages(self.stages)
        attending = [i for i, config in enumerate(configs) if config.kernel_size is None]
        self.label_widths = [configs[i].width for i in attending]
        heads = dict(zip(attending, _heads(self.num_heads, self.label_widths), strict=True))
        self.label_embeddings = nn.ModuleDict(
            {str(i): LabelEmbedding(self.num_classes, configs[i].width, self.null_class) for i in attending}
        )
        self.branches = nn.ModuleList(
            Stage(
                config,
                configs[i - 1] if i else None,
                side=self.image_size // config.downscale,
                in_channels=self.in_channels,
                num_heads=heads.get(i, 1),
                dropout=self.dropout,
            )
            for i, config in enumerate(configs)
        )
        last = len(configs) - 1
        self.heads = nn.ModuleDict(
            {
                str(i): StageHead(config.width, self.out_channels, config.head_kernel)
                for i, config in enumerate(configs)
                if self.coarse_heads or i == last
            }
        )

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes -> (B, widths of the stages that attend, together)."""
        return torch.cat([table(labels) for table in self.label_embeddings.values()], dim=-1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        tau = self.time(noise_label, x)
        return self.heads[str(len(self.branches) - 1)](self._trunk(x, tau, cond)[-1], tau)

    def all_outputs(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> list[Tensor]:
        """Outputs of all stages, of which `forward` gives the last.

        Args:
            x: (B, in_channels, H, W).
            noise_label: (B,) or (1,), in 0..999.
            cond: (B, D), from `embed`.

        Returns:
            Coarse to fine, (B, out_channels, H / s, W / s) each; s is the stage's patch_size * image_ratio.

        Raises:
            ValueError: a model without coarse_heads, or other shapes.
        """
        if len(self.heads) < len(self.branches):
            raise ValueError("this DiMR has one output only; build it with coarse_heads=True to have every stage's")
        tau = self.time(noise_label, x)
        trunk = self._trunk(x, tau, cond)
        return [self.heads[str(i)](h, tau) for i, h in enumerate(trunk)]

    def time(self, noise_label: Tensor, x: Tensor) -> Tensor:
        """Time tau that the norms depend on.

        The published models use a quarter of 8 n / 1000 - 4 for steps n = 1..1000, which they call the log-SNR
        although it grows with the noise.

        Args:
            noise_label: (B,) or (1,), in 0..999.
            x: its dtype is used, float32 at least.

        Returns:
            (B,) or (1,), in (-1, 1].
        """
        label = noise_label.to(torch.promote_types(x.dtype, torch.float32))
        return 2 * (label + 1) / 1000 - 1

    def _trunk(self, x: Tensor, tau: Tensor, cond: Tensor) -> list[Tensor]:
        """Input of each stage's head, (B, H / s, W / s, width) each."""
        self.check_input(x, tau, cond)
        labels = dict(zip(self.label_embeddings, cond.split(self.label_widths, dim=-1), strict=True))
        features: list[Tensor] = []
        trunk: list[Tensor] = []
        for i, branch in enumerate(self.branches):
            below = torch.cat(features, dim=-1) if features else None
            features = branch(x, below, tau, labels.get(str(i)), partial(run_block, self))
            trunk.append(features[-1])
        return trunk


def _heads(num_heads: int | Sequence[int], widths: Sequence[int]) -> list[int]:
    """One number of heads for each stage that attends. ValueError where they are too few or do not fit."""
    heads = [num_heads] * len(widths) if isinstance(num_heads, int) else list(num_heads)
    if len(heads) != len(widths):
        raise ValueError(f"DiMR: {len(widths)} stages attend, got num_heads = {num_heads}; give one for each")
    for count, width in zip(heads, widths, strict=True):
        check_divides("DiMR", "num_heads", count, "width", width)
    return heads
