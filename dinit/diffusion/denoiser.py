"""Denoisers: networks of any origin as the posterior mean E[x0 | x_t]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.devices import upload
from dinit.diffusion.condition import Condition
from dinit.diffusion.parameterization import (
    Parameterization,
    Preconditioning,
    check_pair,
    precondition,
    split_variance,
)
from dinit.diffusion.process import Process, ScalarScales, Scales


@dataclass(frozen=True)
class Denoised:
    """Posterior mean of a noisy batch, and what follows from it.

    Two guidances set more than x0, `renoise_eps` and `mean_gradient`; only samplers that list such a field in
    `supported_outputs` use it.

    Args:
        x_t: The noisy batch, (B, C, H, W).
        x0: The posterior mean E[x0 | x_t], (B, C, H, W).
        scales: Those of the batch's time or times, broadcastable to x_t.
        variance_fraction: (B, C, H, W) in [0, 1] where the network learned its variance (Nichol & Dhariwal 2021):
            the weight of the upper bound log beta against the lower bound log beta-tilde. Else None.
        renoise_eps: The eps used to go on, (B, C, H, W), in place of the one that x_t and x0 imply; None: that
            one.
        mean_gradient: A gradient to add, times the variance of a stochastic step, to its mean, (B, C, H, W); or
            None.
        clean_eps: The network's eps at sigma = 0, (B, C, H, W), where x_t and x0 do not tell it; or None.
    """

    x_t: Tensor
    x0: Tensor
    scales: Scales
    variance_fraction: Tensor | None = None
    renoise_eps: Tensor | None = None
    mean_gradient: Tensor | None = None
    clean_eps: Tensor | None = None

    @property
    def eps(self) -> Tensor:
        """The posterior mean of the noise. Where sigma is 0 it is the network's, or 0 where that has none."""
        if self.renoise_eps is not None:
            return self.renoise_eps
        if self.clean_eps is not None:
            return self.clean_eps
        k = self.scales.factors
        if isinstance(k, ScalarScales):
            return (self.x_t - k.alpha * self.x0) / (k.sigma or math.inf)
        return (self.x_t - k.alpha * self.x0) / torch.where(k.sigma == 0, torch.inf, k.sigma)

    @property
    def score(self) -> Tensor:
        """The gradient of log p_t at x_t: -eps / sigma. Needs sigma > 0."""
        return -self.eps / self.scales.factors.sigma

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE: alpha' x0 + sigma' eps."""
        k = self.scales.factors
        return k.d_alpha * self.x0 + k.d_sigma * self.eps

    def log_variance(self, s: Scales) -> Tensor:
        """log of the learned variance of x_s given x_t. Nichol & Dhariwal 2021, Eq. 15.

        Args:
            s: Scales of the time s < t.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: The network learned no variance.
        """
        if self.variance_fraction is None:
            raise ValueError("this network has no learned variance: choose 'fixed-small' or 'fixed-large'")
        t = self.scales
        upper = (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2).log()
        lower = upper + 2 * (s.sigma.log() - t.sigma.log())
        return self.variance_fraction * upper + (1 - self.variance_fraction) * lower

    def parts(self, count: int) -> tuple[Denoised, ...]:
        """The batch in `count` equal parts."""
        n = self.x_t.shape[0] // count
        return tuple(self.rows(slice(i * n, (i + 1) * n)) for i in range(count))

    def rows(self, part: slice) -> Denoised:
        """Some samples of the batch.

        Args:
            part: Which rows.
        """
        tensors = {
            name: None if (value := getattr(self, name)) is None else value[part]
            for name in ("x_t", "x0", "variance_fraction", "renoise_eps", "mean_gradient", "clean_eps")
        }
        scales = self.scales.map(lambda v: v[part]) if self.scales.time.ndim else self.scales
        return replace(self, scales=scales, **tensors)


class Denoiser(ABC):
    """A network as (x_t, t, condition) -> Denoised: the only form in which solvers and guidance use networks.

    Attributes:
        process: The path that x_t lies on.
        num_classes: Labels run from 0 to num_classes - 1; num_classes is the null class.
        null_class: False where the network was trained without one, and has no unconditional prediction.
        learns_variance: Whether predictions have a `variance_fraction`.
        t_min: The cleanest time at which it may be evaluated, in [0, t_max).
        t_max: The noisiest, at most 1.
        required_outputs: The fields of Denoised, besides x0, that its guidance sets; a sampler that does not
            support them refuses to run.
    """

    process: Process
    num_classes: int
    null_class: bool = True
    learns_variance: bool = False
    t_min: float
    t_max: float = 1.0
    required_outputs: frozenset[str] = frozenset()

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        """The prediction for a noisy batch.

        Args:
            x_t: The noisy batch, (B, C, H, W).
            t: Its time: Scales, a number, or one time a sample, (B,).
            cond: The condition of the batch.
        """

    @abstractmethod
    def embed(self, labels: Tensor) -> Tensor:
        """The embeddings (B, D) of (B,) int64 labels in 0 .. num_classes."""

    def condition(
        self, labels: Tensor | Sequence[int] | None, batch: int, device: torch.device | None = None
    ) -> Condition:
        """The embedded condition of a batch.

        Args:
            labels: One a sample, in 0 .. num_classes (num_classes is null, where the network has a null class);
                None is the null class for all.
            batch: The number of samples.
            device: Of the condition; None is the CPU.

        Raises:
            ValueError: A label out of range, or a wrong number of them.
        """
        return self.encode(self.check_labels(labels, batch, device))

    def encode(self, labels: Tensor) -> Condition:
        """The condition of (B,) int64 labels on the device, which are not checked."""
        null = torch.full((1,), self.num_classes, dtype=torch.int64, device=labels.device)
        null_embedding = self.embed(null) if self.null_class else None
        return Condition(self.embed(labels), null_embedding, labels == self.num_classes, labels=labels)

    def check_labels(
        self, labels: Tensor | Sequence[int] | None, batch: int, device: torch.device | None = None
    ) -> Tensor:
        """(batch,) int64 labels on the device. Arguments and errors as in `condition`."""
        device = torch.device("cpu") if device is None else device
        if labels is None:
            if not self.null_class:
                raise ValueError(
                    f"this network was trained without a null class: give labels in 0 .. {self.num_classes - 1}"
                )
            return torch.full((batch,), self.num_classes, dtype=torch.int64, device=device)
        labels = _class_numbers(labels)
        if labels.shape != (batch,):
            raise ValueError(f"expected {batch} labels, one per sample, got shape {tuple(labels.shape)}")
        host = labels if labels.is_meta else labels.cpu()  # labels on a GPU are read back, before the first step
        known = (
            labels.is_meta
            or not batch
            or 0 <= int(host.min()) <= int(host.max()) < self.num_classes + self.null_class
        )
        if not known:
            or_null = (
                f", or {self.num_classes} for the null class" if self.null_class else " (there is no null class)"
            )
            raise ValueError(
                f"labels must be in 0 .. {self.num_classes - 1}{or_null}; got {sorted(set(host.tolist()))}"
            )
        return upload(labels, device)

    def scales(self, t: Scales | Tensor | float) -> Scales:
        """The process's scales at t, unless t is scales already."""
        return t if isinstance(t, Scales) else self.process.scales(t)

    def known_at(self, k: Scales) -> bool:
        """Whether the prediction at the scales k follows from x_t alone, so that no network need be evaluated.

        Args:
            k: Scales of one time.
        """
        return False

    def given(self, labels: Tensor | Sequence[int]) -> Denoiser:
        """This denoiser with its labels filled in: `condition(None, ...)` then means these labels."""
        return _Given(self, _class_numbers(labels))


def _class_numbers(labels: Tensor | Sequence[int]) -> Tensor:
    """Labels as an int64 tensor. ValueError for names, and for numbers that are not whole."""
    if isinstance(labels, str) or (isinstance(labels, Sequence) and any(isinstance(one, str) for one in labels)):
        raise ValueError(f"labels are class numbers, got {shown(labels)}; pipe.denoiser(labels) takes names too")
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels are class numbers, one per sample, got {shown(labels)}") from error
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise ValueError(f"labels are class numbers, of an integer dtype, got {shown(found.tolist())}")
    return found.to(torch.int64)


def check_denoiser(denoiser: object) -> None:
    """ValueError for what is no Denoiser: a pipeline, a network, or something else."""
    if isinstance(denoiser, Denoiser):
        return
    got = f"a denoiser is wanted, got {shown(denoiser)}"
    if hasattr(type(denoiser), "denoiser"):
        raise ValueError(f"{got}: give pipe.denoiser(labels=...), or call the pipeline, pipe(labels, sampler=...)")
    if isinstance(denoiser, torch.nn.Module):
        raise ValueError(f"{got}: BackboneDenoiser(network, process, parameterization) makes one of a network")
    raise ValueError(f"{got}: pipe.denoiser(labels=...) makes one of a pipeline")


class _Forwarded:
    """An attribute that a wrapper reads from the denoiser it wraps, unless it is given one of its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: WrappedDenoiser | None, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.inner, self.name)


_forwarded: Any = _Forwarded  # of any type, as it stands in for attributes of every type


class WrappedDenoiser(Denoiser):
    """A denoiser made from another: everything that a subclass does not override is the inner denoiser's.

    Args:
        inner: The denoiser that is wrapped.
    """

    process: Process = _forwarded()
    num_classes: int = _forwarded()
    null_class: bool = _forwarded()
    learns_variance: bool = _forwarded()
    t_min: float = _forwarded()
    t_max: float = _forwarded()
    required_outputs: frozenset[str] = _forwarded()

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return self.inner(x_t, t, cond)

    def embed(self, labels: Tensor) -> Tensor:
        return self.inner.embed(labels)

    def encode(self, labels: Tensor) -> Condition:
        return self.inner.encode(labels)

    def known_at(self, k: Scales) -> bool:
        return self.inner.known_at(k)

    def check_labels(
        self, labels: Tensor | Sequence[int] | None, batch: int, device: torch.device | None = None
    ) -> Tensor:
        return self.inner.check_labels(labels, batch, device)


class _Given(WrappedDenoiser):
    """A denoiser whose default labels are fixed."""

    def __init__(self, inner: Denoiser, labels: Tensor) -> None:
        super().__init__(inner)
        self.labels = labels

    def check_labels(
        self, labels: Tensor | Sequence[int] | None, batch: int, device: torch.device | None = None
    ) -> Tensor:
        return super().check_labels(self.labels if labels is None else labels, batch, device)


class BackboneDenoiser(Denoiser):
    """A backbone, the process that it was trained on, and what its output means.

    Args:
        backbone: Has `num_classes`, `in_channels`, `out_channels` (twice in_channels where a variance is learned),
            `embed(labels)` and `forward(x, noise_label, cond)`.
        process: The process that it was trained on.
        parameterization: The meaning of its output.
        t_max: The noisiest time at which it may be evaluated, below 1 where the pair is singular at t = 1.

    Raises:
        ValueError: From `check_pair`: the pair is singular at t_max.
    """

    def __init__(
        self, backbone: Any, process: Process, parameterization: Parameterization, t_max: float = 1.0
    ) -> None:
        check_pair(process, parameterization, t_max)
        self.backbone, self.process, self.parameterization = backbone, process, parameterization
        self.num_classes = backbone.num_classes
        self.null_class = getattr(backbone, "null_class", True)
        self.learns_variance = backbone.out_channels == 2 * backbone.in_channels
        self.t_min, self.t_max = process.t_min, t_max

    def embed(self, labels: Tensor) -> Tensor:
        return self.backbone.embed(labels)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        scales = self.scales(t)
        pre: Preconditioning | _Factors
        if scales.time.ndim == 0 and scales.time.is_cpu:  # numbers: no copy to the device, no synchronisation
            pre = _Factors(*scales.numbers(self, self._factors))
            label = torch.full((1,), pre.noise_label, device=x_t.device)
        else:
            pre = precondition(self.process, self.parameterization, scales).like(x_t)
            label = time_input(pre.noise_label, x_t)
        x_in = (x_t * pre.input_scale).to(getattr(self.backbone, "dtype", x_t.dtype))
        output, fraction = split_variance(self.call_backbone(x_in, label, cond).to(x_t.dtype), x_t.shape[1])
        return Denoised(
            x_t,
            pre.a * x_t + pre.b * output,
            scales.like(x_t),
            fraction,
            clean_eps=self._clean_eps(output, x_t, scales),
        )

    def _factors(self, k: Scales) -> tuple[Tensor, ...]:
        pre = precondition(self.process, self.parameterization, k)
        return pre.noise_label, pre.input_scale, pre.a, pre.b

    def known_at(self, k: Scales) -> bool:
        """Clean data, x0 = x_t / alpha, unless the velocity is regular there and the network's output gives it."""
        if not _clean(k):
            return False
        _, q = self.parameterization.coefficients(k)
        label = self.parameterization.noise_label(self.process, k)
        return not bool(q.isfinite() & (q != 0) & k.d_sigma.isfinite() & label.isfinite())

    def _clean_eps(self, output: Tensor, x_t: Tensor, k: Scales) -> Tensor | None:
        """eps out of output = p x0 + q eps at sigma = 0, where x0 is x_t / alpha; None elsewhere."""
        if not _clean(k) or self.known_at(k):
            return None
        p, q = self.parameterization.coefficients(k)
        return (output - p / k.alpha * x_t) / q

    def call_backbone(self, x: Tensor, noise_label: Tensor, cond: Condition) -> Tensor:
        """The network's output, before it is read as a posterior mean.

        Args:
            x: (B, C, H, W), scaled, in the network's dtype.
            noise_label: (B,) or (1,), the time input.
            cond: The condition of the batch.

        Returns:
            (B, C, H, W), or (B, 2C, H, W) where the network learned its variance.
        """
        return self.backbone(x, noise_label, cond.embedding.to(x.dtype))


class _Factors(NamedTuple):
    """The fields of `Preconditioning` that a forward pass uses, as numbers."""

    noise_label: float
    input_scale: float
    a: float
    b: float


def time_input(noise_label: Tensor, x: Tensor) -> Tensor:
    """A network's time input on x's device: (1,) of one time, (B,) of one a sample."""
    if noise_label.ndim:
        return upload(noise_label, x.device)
    # A 0-dimensional CPU tensor enters a kernel as a number: no copy to the device, no synchronisation.
    return torch.zeros(1, device=x.device) + noise_label


def _clean(k: Scales) -> bool:
    """Whether k is one time, on the CPU, with sigma = 0: no other is read back from a device."""
    return k.time.ndim == 0 and k.time.device.type == "cpu" and k.floats.sigma == 0
