"""Recipes as one typed value: the settings of a training run, with all their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A group of settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(BaseModel):
    """An entry of a registry: a mapping of `name` and options, or only the name."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """The options without the name."""
        return dict(self.model_extra or {})

    def spec(self) -> dict[str, Any]:
        """The mapping that `Registry.create` takes."""
        return {"name": self.name, **self.options}


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, (str, Mapping)) else value


class LossSection(Section):
    """terms: added to the weighted squared error. variational: of the bound that trains a learned variance."""

    weighting: Named = Named(name="uniform")
    terms: Annotated[list[Named], BeforeValidator(_as_list)] = []
    variational: float = Field(default=0.001, ge=0)


class OptimizerSection(Section):
    """betas: of 'muon' the first is its momentum. eps: not for 'lion', which needs a third of the rate or less."""

    kind: Literal["adamw", "lion", "muon"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    eps: float = Field(default=1e-8, gt=0)


class ScheduleSection(Section):
    """warmup_steps: optimiser steps of linear increase. floor: the last rate of 'cosine', as a fraction of lr."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup_steps: Count = 0
    floor: float = Field(default=0.0, ge=0, le=1)


class EMASection(Section):
    """decay: of the average that is sampled from. widths: relative widths of further, power-function EMAs (EDM2).

    Snapshots of these are written every snapshot_every steps; `dinit ema` computes other widths from them later.
    """

    decay: float = Field(default=0.999, ge=0, lt=1)
    warmup: bool = True
    widths: list[Annotated[float, Field(gt=0, le=0.28)]] = []
    snapshot_every: Positive = 1000


class ConditionNoiseSection(Section):
    """Condition-embedding perturbation (CEP). gamma: length of the noise on a label's embedding."""

    gamma: float = Field(default=1.0, gt=0)
    kind: Literal["gaussian", "uniform"] = "gaussian"


class RoutingSection(Section):
    """Token routing (TREAD): `ratio` of the tokens skip the blocks start .. end - 1; negative: from the last."""

    ratio: float = Field(default=0.5, ge=0, lt=1)
    start: int = 2
    end: int = -4


class AlignmentSection(Section):
    """Representation alignment (REPA). encoder: of the registry, or 'module:function'. block: the aligned block.

    hidden: width of the projection from the block's features to the encoder's.
    """

    encoder: Named
    block: Count | str
    weight: float = Field(default=0.5, gt=0)
    hidden: Positive = 2048


class FinetuneSection(Section):
    """Fine-tuning of a pipeline: init_from is a shipped one, a folder or a hub id.

    mode: what is trained. classes: {new class: the old class whose embedding it starts from}; classes of equal
    names need no entry. new_rows: initial embeddings of the other classes. rank, alpha, targets: of 'lora'; alpha
    is the rank where null.
    """

    init_from: str
    mode: Literal["full", "difffit", "lora"] = "full"
    classes: dict[str, str] = {}
    new_rows: Literal["mean", "random"] = "mean"
    rank: Positive = 8
    alpha: float | None = Field(default=None, gt=0)
    targets: list[str] | None = None

    @property
    def alpha_or_rank(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


class LoopSection(Section):
    """batch_size: images in an optimiser step, over all processes and accumulated parts. sample_every: 0 is never.

    max_skipped: consecutive steps with a gradient that is not finite, after which a run ends. sharding: whether
    each of several processes holds all weights, or (fsdp2) a part of them.
    """

    steps: Positive
    batch_size: Positive = 128
    gradient_accumulation: Positive = 1
    clip_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    workers: Count = 2
    log_every: Positive = 50
    sample_every: Count = 0
    checkpoint_every: Positive = 1000
    keep: Positive = 2
    max_skipped: Positive = 10
    sharding: Literal["none", "fsdp2"] = "none"


class SamplingSection(Section):
    """The default sampling of the trained pipeline, which the sample grids use too."""

    sampler: Named = Named(name="ddim")
    steps: Positive = 20
    grid: Named | None = None
    guidance: Annotated[list[Named], BeforeValidator(_as_list)] = []


class EvaluationSection(Section):
    """Scores of the averaged weights every `every` steps and after the last, in evaluations.jsonl; 0 is never.

    metrics: names from `dinit list metrics`; null is the usual six. data: the real images; null is the training
    data. protocol, reference: as for `dinit evaluate`.
    """

    every: Count = 0
    num_samples: Annotated[int, Field(ge=8)] = 1000
    metrics: list[str] | None = None
    protocol: str | None = None
    reference: str | None = None
    data: Named | None = None

    def due(self, step: int, last: bool) -> bool:
        """Whether to measure after `step`; last: of the run."""
        return self.every > 0 and (last or step % self.every == 0)


class Recipe(Section):
    """The settings of a training run. Build it with `load_recipe` or `parse_recipe`, which check it completely.

    t_max: the largest time. label_dropout: fraction of samples trained as the null class.
    tracker: 'tensorboard', any other tracker of Accelerate, or null.
    """

    name: str = "dinit-model"
    seed: Count = 0
    data: Named
    backbone: Named
    process: Named = Named(name="vp-discrete")
    parameterization: Named = Named(name="v")
    t_max: float = Field(default=1.0, gt=0, le=1)
    loss: LossSection = LossSection()
    time: Named = Named(name="uniform")
    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    condition_noise: ConditionNoiseSection | None = None
    routing: RoutingSection | None = None
    alignment: AlignmentSection | None = None
    finetune: FinetuneSection | None = None
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    ema: EMASection = EMASection()
    training: LoopSection
    tracker: str | None = "tensorboard"
    sampling: SamplingSection = SamplingSection()
    evaluation: EvaluationSection = EvaluationSection()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out; `parse_recipe` of its YAML gives an equal recipe."""
        return self.model_dump(mode="json")
