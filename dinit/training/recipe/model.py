"""Recipes as one typed value: the settings of a training run, with all their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_MOST = 2**63 - 1  # torch's seeds and sizes end here
Positive = Annotated[int, Field(gt=0, le=_MOST)]
Count = Annotated[int, Field(ge=0, le=_MOST)]


_NAME = r"^[^/\\\x00-\x1f.][^/\\\x00-\x1f]*$"  # of folders too


class Section(BaseModel):
    """A group of settings: frozen, unknown keys are refused, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    """The loss.

    Attributes:
        weighting: Of the squared error at each time; see `dinit list weightings`.
        terms: Added to the squared error; see `dinit list loss-terms`.
        variational: Weight of the bound that trains a learned variance, at least 0.
    """

    weighting: Named = Named(name="uniform")
    terms: Annotated[list[Named], BeforeValidator(_as_list)] = []
    variational: float = Field(default=0.001, ge=0)


class OptimizerSection(Section):
    """The optimiser.

    Attributes:
        kind: AdamW; Lion, which needs a third of AdamW's rate or less; or Muon for matrices and AdamW for the rest.
        lr: Peak learning rate, positive.
        betas: Of the moving averages, in [0, 1). The first is Muon's momentum.
        weight_decay: Decoupled from the gradient, at least 0.
        eps: Of AdamW, positive.
    """

    kind: Literal["adamw", "lion", "muon"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    eps: float = Field(default=1e-8, gt=0)


class ScheduleSection(Section):
    """The learning-rate schedule.

    Attributes:
        kind: Constant, or half a cosine from lr to floor · lr.
        warmup_steps: Optimiser steps of linear increase before that.
        floor: The last rate of 'cosine', as a fraction of lr, in [0, 1].
    """

    kind: Literal["constant", "cosine"] = "constant"
    warmup_steps: Count = 0
    floor: float = Field(default=0.0, ge=0, le=1)


class EMASection(Section):
    """Averages of the weights.

    Attributes:
        decay: Of the exponential average that is sampled from, in [0, 1).
        warmup: Start with smaller decays.
        widths: Relative widths of further, power-function EMAs (EDM2), in (0, 0.28]. `dinit ema` computes EMAs of
            other widths from their snapshots later.
        snapshot_every: Steps between snapshots of these.
    """

    decay: float = Field(default=0.999, ge=0, lt=1)
    warmup: bool = True
    widths: list[Annotated[float, Field(gt=0, le=0.28)]] = []
    snapshot_every: Positive = 1000


class ConditionNoiseSection(Section):
    """Condition-embedding perturbation (CEP).

    Attributes:
        gamma: Length of the noise on a label's embedding, positive.
        kind: Distribution of the noise.
    """

    gamma: float = Field(default=1.0, gt=0)
    kind: Literal["gaussian", "uniform"] = "gaussian"


class RoutingSection(Section):
    """Token routing (TREAD).

    Attributes:
        ratio: Fraction of the tokens that skip the blocks, in [0, 1).
        start: The first skipped block, from 0.
        end: The block after the last skipped one; a negative number counts from the last block.
    """

    ratio: float = Field(default=0.5, ge=0, lt=1)
    start: int = 2
    end: int = -4


class AlignmentSection(Section):
    """Representation alignment (REPA).

    Attributes:
        encoder: A name of `dinit list encoders`, or 'module:function'.
        block: The aligned block: its number among the blocks on tokens, from 0, or its name.
        weight: Of the alignment in the loss, positive.
        hidden: Width of the projection from the block's features to the encoder's.
    """

    encoder: Named
    block: Count | str
    weight: float = Field(default=0.5, gt=0)
    hidden: Positive = 2048


class FinetuneSection(Section):
    """Fine-tuning of a pipeline.

    Attributes:
        init_from: A shipped pipeline, a folder or a Hub id.
        mode: What is trained: all weights, DiffFit's few, or LoRA's additions.
        classes: New class to the old class whose embedding it starts from; classes of equal names need no entry.
        new_rows: Initial embeddings of the other classes.
        rank: Of LoRA's additions.
        alpha: LoRA's factor is alpha / rank; null is the rank.
        targets: Last parts of the names of the layers that LoRA adds to; null is all but the stem.
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
    """The training loop.

    Attributes:
        steps: Optimiser steps.
        extended: Written by dinit where `steps` was changed after a run had begun: for each change the steps done
            by then, and `steps` before it, by which the learning rate of those steps was set.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1 or mps.
        batch_size: Images in an optimiser step, over all processes and accumulated parts.
        gradient_accumulation: Parts into which each process divides its images of a step.
        clip_norm: Largest norm of the gradient; null does not clip.
        precision: Of the forward and backward pass; weights are float32.
        gradient_checkpointing: Compute activations again in the backward pass, which saves memory.
        workers: Processes that read data.
        log_every: Steps between reports of the loss.
        sample_every: Steps between sample grids; 0 is never.
        checkpoint_every: Steps between checkpoints.
        keep: Checkpoints that are kept.
        max_skipped: Consecutive steps with a gradient that is not finite, after which the run ends.
        sharding: Whether each of several processes has all weights (none) or a part of them (fsdp2).
    """

    steps: Positive
    extended: list[tuple[Positive, Positive]] = []
    device: str = "auto"
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
    """The default sampling of the trained pipeline, which the sample grids use too.

    Attributes:
        sampler: A name of `dinit list samplers`, with options.
        steps: Sampling steps.
        grid: Time grid; null is the usual one.
        end: End of the trajectory: 'posterior-mean', 'clean' or 'state'; null is the sampler's.
        guidance: One or several; the last is outermost.
    """

    sampler: Named = Named(name="ddim")
    steps: Positive = 20
    grid: Named | None = None
    end: Literal["posterior-mean", "clean", "state"] | None = None
    guidance: Annotated[list[Named], BeforeValidator(_as_list)] = []


class EvaluationSection(Section):
    """Scores of the averaged weights during training, in evaluations.jsonl.

    Attributes:
        every: Steps between evaluations, and one after the last step; 0 is never.
        num_samples: Generated images, at least 8.
        metrics: Names of `dinit list metrics`; null is the usual six.
        protocol: As for `dinit evaluate`.
        reference: File of statistics, as for `dinit evaluate`.
        data: Data set of the real images; null is the training data.
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

    Attributes:
        name: Of the pipeline.
        seed: Of all random numbers.
        data: Data set, with options.
        backbone: Backbone, with options or a preset.
        process: Noise process, with options.
        parameterization: What the network predicts.
        t_max: The largest training time, in (0, 1].
        loss: The loss.
        time: Distribution of the training times.
        label_dropout: Fraction of samples trained as the null class, in [0, 1).
        condition_noise: Noise on the condition; null is none.
        routing: Token routing; null is none.
        alignment: Representation alignment; null is none.
        finetune: The pipeline from which training starts; null starts from random weights.
        optimizer: The optimiser.
        schedule: The learning-rate schedule.
        ema: Averages of the weights.
        training: The training loop.
        tracker: 'tensorboard', any other tracker of Accelerate, or null.
        sampling: Default sampling of the trained pipeline.
        evaluation: Scores during training.
    """

    name: Annotated[str, Field(pattern=_NAME)] = "dinit-model"
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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
