"""Denoisers: networks of any origin as the posterior mean E[x0 | x_t]."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.devices import upload
from dinit.diffusion.condition import Condition
from dinit.diffusion.denoised import Denoised, OutputFactors
from dinit.diffusion.parameterization import (
    Parameterization,
    Preconditioning,
    check_pair,
    precondition,
    split_variance,
)
from dinit.diffusion.process import Process, Scales


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

    def check_end(self, x0: Tensor) -> None:  # noqa: B027 (most know nothing of their samples)
        """A warning where the end of a run cannot be a sample of this denoiser's; once a run.

        Args:
            x0: (B, C, H, W), without noise.
        """

    def given(self, labels: Tensor | Sequence[int]) -> Denoiser:
        """This denoiser with its labels filled in: `condition(None, ...)` then means these labels."""
        return GivenLabels(self, _class_numbers(labels))


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

    def check_end(self, x0: Tensor) -> None:
        self.inner.check_end(x0)

    def check_labels(
        self, labels: Tensor | Sequence[int] | None, batch: int, device: torch.device | None = None
    ) -> Tensor:
        return self.inner.check_labels(labels, batch, device)


class GivenLabels(WrappedDenoiser):
    """A denoiser with labels: a condition without any has these.

    Args:
        inner: The denoiser.
        labels: (B,) int64.
    """

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

    def of(self, backbone: Any) -> Self:
        """The same denoiser of another network that takes the place of this one's.

        Args:
            backbone: With the same classes, channels and time input.
        """
        other = copy.copy(self)
        other.backbone = backbone
        return other

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        scales = self.scales(t)
        pre: Preconditioning | OutputFactors
        if scales.single:  # numbers: no copy to the device, no synchronisation
            pre = scales.numbers(self, self._factors, OutputFactors._make)
            label = torch.full((1,), pre.noise_label, device=x_t.device)
        else:
            pre = precondition(self.process, self.parameterization, scales).like(x_t)
            label = time_input(pre.noise_label, x_t)
        scaled = x_t if isinstance(pre, OutputFactors) and pre.input_scale == 1 else x_t * pre.input_scale
        x_in = _as(scaled, getattr(self.backbone, "dtype", x_t.dtype))
        output, fraction = split_variance(_as(self.call_backbone(x_in, label, cond), x_t.dtype), x_t.shape[1])
        if isinstance(pre, OutputFactors) and fraction is None and scales.floats.sigma > 0:
            return Denoised.of_output(x_t, output, pre, scales)
        return Denoised(
            x_t,
            pre.a * x_t + pre.b * output,
            scales.like(x_t),
            fraction,
            clean_eps=self._clean_eps(output, x_t, scales),
        )

    def _factors(self, k: Scales) -> tuple[Tensor, ...]:
        pre = precondition(self.process, self.parameterization, k)
        determinant = pre.q * k.alpha - pre.p * k.sigma
        return pre.noise_label, pre.input_scale, pre.a, pre.b, -pre.p / determinant, k.alpha / determinant

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
        return self.backbone(x, noise_label, _as(cond.embedding, x.dtype))


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), with less overhead where x is of it."""
    return x if x.dtype is dtype else x.to(dtype)


def time_input(noise_label: Tensor, x: Tensor) -> Tensor:
    """A network's time input on x's device: (1,) of one time, (B,) of one a sample."""
    if noise_label.ndim:
        return upload(noise_label, x.device)
    # A 0-dimensional CPU tensor enters a kernel as a number: no copy to the device, no synchronisation.
    return torch.zeros(1, device=x.device) + noise_label


def _clean(k: Scales) -> bool:
    """Whether k is one time, on the CPU, with sigma = 0: no other is read back from a device."""
    return k.single and k.floats.sigma == 0
