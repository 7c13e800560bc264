"""Guidance, the base class and what the methods share: a denoiser made of a denoiser."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales, WrappedDenoiser
from dinit.diffusion.denoiser import check_denoiser
from dinit.registry import Registry
from dinit.samplers._names import advise_guidance

GUIDANCES: Registry[type[Guidance]] = Registry(
    "guidance", "dinit.samplers.guidance", advise=advise_guidance, also=("dinit.inverse.guidance",)
)

DenoiseFunction = Callable[[Tensor, Scales, Condition], Denoised]


class Guidance(ABC):
    """Guidance settings: subclasses are frozen dataclasses, and have a neutral setting, the conditional model."""

    @abstractmethod
    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """The guided denoiser.

        Args:
            denoiser: The denoiser to guide, which is not changed.

        Raises:
            ValueError: The denoiser lacks what this guidance needs.
        """

    def rows(self, part: slice) -> Guidance:
        """The guidance of some images of a batch: itself, unless it holds something of every image.

        Args:
            part: Which images.
        """
        return self


class Guided(WrappedDenoiser):
    """A denoiser whose prediction is that of `function`, and which is `inner` in everything else.

    Args:
        inner: The denoiser that is guided.
        function: (x_t, scales, condition) -> the guided prediction.
        required_outputs: Fields of Denoised, besides x0, that `function` sets.
    """

    def __init__(
        self, inner: Denoiser, function: DenoiseFunction, required_outputs: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(inner)
        self.function = function
        self.required_outputs = inner.required_outputs | required_outputs

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return self.function(x_t, self.scales(t), cond)


def apply_guidance(
    denoiser: Denoiser, guidance: Guidance | str | Mapping[str, Any] | Sequence[Any] | None
) -> Denoiser:
    """Guided denoiser: the denoiser wrapped in one guidance or in several.

    A list is applied in order, so its last entry is the outermost: [CFG(4.0), CADS()] is
    CADS().wrap(CFG(4.0).wrap(denoiser)).

    Args:
        denoiser: The denoiser to guide, which is not changed.
        guidance: A Guidance, a name, a mapping with options, or a list of these; None is no guidance.

    Raises:
        ValueError: Something else is given, or the denoiser lacks what a guidance needs.
    """
    check_denoiser(denoiser)
    if guidance is None:
        return denoiser
    specs = list(guidance) if isinstance(guidance, Sequence) and not isinstance(guidance, str) else [guidance]
    for spec in specs:
        made = GUIDANCES.create(spec)
        if not isinstance(made, Guidance):
            raise ValueError(f"guidance must be a Guidance, a name or a mapping, got {spec!r}")
        denoiser = made.wrap(denoiser)
    return denoiser


# --- what several guidances share --------------------------------------------------------------------------------


def two_condition_guidance(
    denoiser: Denoiser,
    reference: Callable[[Condition], Condition],
    combine: Callable[[Denoised, Denoised, Condition], Denoised],
    low: float = -math.inf,
    high: float = math.inf,
    required_outputs: frozenset[str] = frozenset(),
) -> Denoiser:
    """Guided denoiser that combines the predictions of two conditions, from one batched forward.

    Args:
        denoiser: The denoiser to guide.
        reference: From the batch's condition to the other one.
        combine: (given, reference, condition) to the guided prediction.
        low: Lowest log-SNR that is guided; below it the conditional model alone is evaluated.
        high: Highest log-SNR that is guided; above it the conditional model alone is evaluated.
        required_outputs: Fields of Denoised, besides x0, that `combine` sets.
    """

    def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        if t.time.ndim == 0 and not low <= t.floats.log_snr <= high:
            return denoiser(x_t, t, cond)
        given, other = batched_call(denoiser, x_t, t, [cond, reference(cond)])
        return apply_interval(combine(given, other, cond), given, low, high)

    return Guided(denoiser, guided, required_outputs)


def batched_call(denoiser: Denoiser, x_t: Tensor, t: Scales, conds: Sequence[Condition]) -> tuple[Denoised, ...]:
    """The predictions of one batch under several conditions, by one forward of that many times the batch.

    Args:
        denoiser: The denoiser.
        x_t: (B, C, H, W).
        t: One time, or one a sample.
        conds: The conditions, each of B rows.

    Returns:
        One prediction for each condition.
    """
    times = t if t.time.ndim == 0 else t.map(lambda v: torch.cat([v] * len(conds)))
    together = denoiser(torch.cat([x_t] * len(conds)), times, reduce(lambda one, more: one.joined(more), conds))
    return together.parts(len(conds))


def apply_interval(guided: Denoised, given: Denoised, low: float, high: float) -> Denoised:
    """`guided` for samples whose log-SNR is in [low, high], `given` for the others, where each has its own time."""
    k = given.scales
    if k.time.ndim == 0 or (low == -math.inf and high == math.inf):
        return guided
    inside = (k.log_snr >= low) & (k.log_snr <= high)  # broadcasts against x_t
    return where_rows(inside, guided, given)


def where_rows(mask: Tensor, one: Denoised, other: Denoised) -> Denoised:
    """Rows of `one` where the mask is true, of `other` elsewhere; mask is (B,) or broadcasts against x_t."""
    mask = mask.reshape(-1, *(1,) * (one.x_t.ndim - 1)).to(one.x0.device)
    chosen = replace(one, x0=torch.where(mask, one.x0, other.x0))
    if one.renoise_eps is not None:
        chosen = replace(chosen, renoise_eps=torch.where(mask, one.renoise_eps, other.eps))
    if one.mean_gradient is not None:
        rest = torch.zeros_like(one.x0) if other.mean_gradient is None else other.mean_gradient
        chosen = replace(chosen, mean_gradient=torch.where(mask, one.mean_gradient, rest))
    if one.clean_eps is not None:
        chosen = replace(chosen, clean_eps=torch.where(mask, one.clean_eps, other.eps))
    return chosen


def other_class(denoiser: Denoiser, cond: Condition, label: int) -> Condition:
    """The same batch conditioned on one class for all, which is embedded once a run."""

    def encoded() -> Condition:
        return denoiser.encode(torch.full((cond.batch,), label, dtype=torch.int64, device=cond.is_null.device))

    return cond.run.states.get(("class", denoiser, label, cond.batch), encoded).in_run(cond.run)


def labels_of(cond: Condition, null: int, who: str) -> Tensor:
    """Labels of a condition, (B,) int64, with `null` in rows of the null class.

    Args:
        cond: The condition.
        null: The label of the null class.
        who: Begins the message.

    Raises:
        ValueError: The condition has no labels.
    """
    if cond.labels is None:
        raise ValueError(
            f"{who} needs the labels of a batch, and this condition has none: make it with "
            "denoiser.condition(labels, batch)"
        )
    return torch.where(cond.is_null, torch.full_like(cond.labels, null), cond.labels)


def non_batch_dims(values: Tensor) -> tuple[int, ...]:
    """All axes but the batch's."""
    return tuple(range(1, values.ndim))


def check_null_class(denoiser: Denoiser, who: str, instead: str) -> None:
    """Raise a ValueError unless the model has classes and an unconditional prediction."""
    if denoiser.num_classes == 0:
        raise ValueError(f"{who} needs a model with classes; this one is unconditional: use {instead}")
    if not denoiser.null_class:
        raise ValueError(f"{who} needs a model trained with a null class; this one has none: use {instead}")


def check_class(denoiser: Denoiser, label: int, who: str) -> None:
    """Raise a ValueError unless the model has the class."""
    if not 0 <= label < denoiser.num_classes:
        raise ValueError(f"{who}: class {label} is not one of this model's {denoiser.num_classes}, 0 and up")


def check_scale(scale: float, who: str, meaning: str = "1 is the conditional model, 0 the unconditional") -> None:
    """Raise a ValueError for a negative, infinite or undefined scale."""
    if not 0 <= scale < math.inf:
        raise ValueError(f"{who} scale must be >= 0 ({meaning}), got {scale}")


def check_interval(low: float, high: float) -> None:
    """Raise a ValueError for an empty interval of log-SNR."""
    if not low < high:
        raise ValueError(f"the log-SNR interval needs low < high, got low = {low}, high = {high}")
