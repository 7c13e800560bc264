"""Composition of classes. Liu et al. 2022 (Compositional visual generation with composable diffusion models)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    Guided,
    batched_call,
    check_class,
    check_null_class,
    other_class,
    where_rows,
)


@GUIDANCES.register("compose")
@dataclass(frozen=True)
class Compose(Guidance):
    """Composition: the image's own class with others, as a product or a mixture of scores. Liu et al. 2022.

    'product' adds the differences to the unconditional score, free + sum_i w_i (score_i - free), so that an image
    is of all classes, and a negative weight is "not that class"; 'mixture' averages the scores, sum_i w_i score_i
    / sum_i w_i. Rows of the null class are left as they are, so that this may stand inside CFG. Source:
    arXiv:2206.01714.

    Args:
        classes: The other classes; none is neutral (with weight 1).
        weights: One for each of `classes`; None is 1 for all. At least 0 in a mixture.
        weight: Of the image's own class. At least 0 in a mixture.
        how: 'product' or 'mixture'.

    Raises:
        ValueError: An option out of its range, or another number of weights; from `wrap`, a class that the model
            does not have, or a product without a null class.
    """

    classes: Sequence[int] = (0,)
    weights: Sequence[float] | None = None
    weight: float = 1.0
    how: Literal["product", "mixture"] = "product"

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
        if self.how not in ("product", "mixture"):
            raise ValueError(f"how must be 'product' or 'mixture', got {self.how!r}")
        if len(self._weights) != len(self.classes):
            raise ValueError(f"give one weight for each of {len(self.classes)} classes, got {self.weights}")
        every = (self.weight, *self._weights)
        if not all(map(math.isfinite, every)):
            raise ValueError(f"weights must be finite, got {every}")
        if self.how == "mixture" and (min(every) < 0 or sum(every) == 0):
            raise ValueError(f"a mixture needs weights >= 0, not all 0, got {every}; a product takes any")

    @property
    def _weights(self) -> tuple[float, ...]:
        return (1.0,) * len(self.classes) if self.weights is None else tuple(self.weights)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        for label in self.classes:
            check_class(denoiser, label, "composition")
        product = self.how == "product"
        if not self.classes and (self.weight == 1 or not product):
            return denoiser
        if product:
            check_null_class(denoiser, "a product of classes", "how = 'mixture'")

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            others = [other_class(denoiser, cond, label) for label in self.classes]
            given, *rest = batched_call(denoiser, x_t, t, [cond, *others, *([cond.null()] if product else [])])
            x0s = [d.x0 for d in (given, *rest)]
            x0 = self._product(x0s) if product else self._mixture(x0s)
            return where_rows(~cond.is_null, replace(given, x0=x0), given)

        return Guided(denoiser, guided)

    def _product(self, x0s: list[Tensor]) -> Tensor:
        *classes, free = x0s
        return free + sum(w * (x0 - free) for w, x0 in zip((self.weight, *self._weights), classes, strict=True))

    def _mixture(self, x0s: list[Tensor]) -> Tensor:
        every = (self.weight, *self._weights)
        total = sum(every)
        return sum((w / total * x0 for w, x0 in zip(every, x0s, strict=True)), start=0 * x0s[0])
