"""What guidance is: a denoiser made of a denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.registry import Registry

GUIDANCES: Registry[type[Guidance]] = Registry("guidance", "dinit.samplers.guidance")

DenoiseFunction = Callable[[Tensor, Scales, Condition], Denoised]


class Guidance(ABC):
    """A frozen dataclass of settings, one of which is neutral: with it the conditional model comes back."""

    @abstractmethod
    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """The guided denoiser. ValueError where the denoiser lacks what this guidance needs."""


class Guided(Denoiser):
    """A denoiser that answers with `function` and in all else is `denoiser`."""

    def __init__(self, denoiser: Denoiser, function: DenoiseFunction) -> None:
        self.inner, self.function = denoiser, function
        self.process, self.num_classes = denoiser.process, denoiser.num_classes
        self.null_class = denoiser.null_class
        self.t_min, self.t_max = denoiser.t_min, denoiser.t_max

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return self.function(x_t, self.scales(t), cond)

    def embed(self, labels: Tensor) -> Tensor:
        return self.inner.embed(labels)

    def condition(self, labels, batch, device=None) -> Condition:
        return self.inner.condition(labels, batch, device)


def apply_guidance(
    denoiser: Denoiser, guidance: Guidance | str | Mapping[str, Any] | Sequence[Any] | None
) -> Denoiser:
    """Wraps the denoiser in one guidance or several, each given as an object, a name or a mapping with options.

    A list is applied in order, so its last entry is the outermost: [CFG(4.0), CADS()] is
    CADS().wrap(CFG(4.0).wrap(denoiser)). None is no guidance.
    """
    if guidance is None:
        return denoiser
    specs = [guidance] if isinstance(guidance, (str, Mapping, Guidance)) else list(guidance)
    for spec in specs:
        made = GUIDANCES.create(spec)
        if not isinstance(made, Guidance):
            raise ValueError(f"guidance must be a Guidance, a name or a mapping, got {spec!r}")
        denoiser = made.wrap(denoiser)
    return denoiser
