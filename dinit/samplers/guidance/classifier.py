"""Classifier guidance. Dhariwal & Nichol 2021 (Diffusion models beat GANs on image synthesis)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoiser, Scales
from dinit.diffusion.denoiser import time_input
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    check_interval,
    check_null_class,
    check_scale,
    labels_of,
)
from dinit.samplers.guidance.gradient import gradient_guidance, shift_mean, shift_score

_SHIFTS = {"score": (shift_score, frozenset[str]()), "mean": (shift_mean, frozenset({"mean_gradient"}))}


@GUIDANCES.register("classifier")
@dataclass(frozen=True)
class Classifier(Guidance):
    """Classifier guidance: scale times the gradient of log p(label | x_t) on the score. Dhariwal & Nichol 2021.

    Source: arXiv:2105.05233.

    Args:
        scale: At least 0. 0 is neutral, 1 turns an unconditional score into the conditional one (Bayes); the
            paper's figures have up to 10.
        classifier: (x_t, noise label (B,) or (1,)) to logits (B, classes), trained on noisy images of this
            process; `dinit.models.adm_classifier.ADMClassifier` is one.
        form: 'score' shifts eps by -sigma scale gradient, which any sampler can follow (the paper's Algorithm 2);
            'mean' adds variance times scale times gradient to the mean of a DDPM step (its Algorithm 1, and its
            published ImageNet samples).
        unconditional: Whether the network is evaluated at its null class, so that the classifier alone brings the
            class.
        label: The class to guide to, where the network has no classes; None: the labels of the batch, and rows of
            the null class are left as they are.
        low: Lowest log-SNR that is guided; below it the prediction is the conditional one.
        high: Highest log-SNR that is guided, above low; above it the prediction is the conditional one.

    Raises:
        ValueError: An option out of its range; from `wrap`, a scale without a classifier, or a network without
            classes and no `label`.
    """

    scale: float = 1.0
    classifier: Callable[[Tensor, Tensor], Tensor] | None = None
    form: Literal["score", "mean"] = "score"
    unconditional: bool = False
    label: int | None = None
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale, "classifier guidance", "0 is the model alone")
        check_interval(self.low, self.high)
        if self.form not in _SHIFTS:
            raise ValueError(f"form must be 'score' or 'mean', got {self.form!r}")
        if self.classifier is not None and not callable(self.classifier):
            raise ValueError(f"classifier must take (x_t, noise label) and give logits, got {self.classifier!r}")
        if self.label is not None and self.label < 0:
            raise ValueError(f"label must be a class, 0 and up, or None for the batch's own; got {self.label}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 0 and not self.unconditional:
            return denoiser
        if self.classifier is None:
            raise ValueError(
                "classifier guidance needs a classifier of noisy images, which Python alone can give: "
                "Classifier(scale, classifier=network)"
            )
        if denoiser.num_classes == 0 and self.label is None:
            raise ValueError("this network has no classes: name the one to guide to, Classifier(..., label=...)")
        if self.unconditional:
            check_null_class(denoiser, "unconditional = True", "the conditional prediction, unconditional = False")
        shift, required_outputs = _SHIFTS[self.form]

        def log_probability(x_t: Tensor, t: Scales, cond: Condition) -> Tensor:
            return self._log_probability(denoiser, x_t, t, cond)

        return gradient_guidance(
            denoiser, log_probability, self.scale, self.low, self.high, shift, required_outputs, self.unconditional
        )

    def _log_probability(self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition) -> Tensor:
        """log p(label | x_t), (B,); 0 for rows that no class is wanted of."""
        assert self.classifier is not None, "wrap has checked it"
        log_p = self.classifier(x_t, time_input(denoiser.process.noise_label(t), x_t)).log_softmax(dim=1)
        if self.label is not None:
            return log_p[:, self.label]
        labels = labels_of(cond, 0, "classifier guidance")
        chosen = log_p.gather(1, labels[:, None])[:, 0]
        return torch.where(~cond.is_null, chosen, torch.zeros_like(chosen))
