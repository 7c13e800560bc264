"""Edits, the contract: a denoiser of the same weights whose features are changed on their way through it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import BackboneDenoiser, Condition, Denoiser
from dinit.models.layers.skips import SkipHook
from dinit.registry import Registry
from dinit.reuse.body import Body, body_of, of_network

EDITS: Registry[type[Edit]] = Registry("edit", "dinit.reuse.edits")


class Edit(ABC):
    """Settings of an edit: subclasses are frozen dataclasses, and have a neutral setting, which is no edit.

    It goes into the network's own denoiser, below caches and guidance. Several are applied one after another.
    """

    @property
    @abstractmethod
    def neutral(self) -> bool:
        """Whether the network is as it was."""

    @abstractmethod
    def apply(self, denoiser: BackboneDenoiser, body: Body) -> BackboneDenoiser:
        """The denoiser with this edit.

        Args:
            denoiser: of the network.
            body: of the network.

        Raises:
            ValueError: the network lacks what this edit needs.
        """

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser with this edit; itself where the edit is neutral.

        Args:
            denoiser: of a network, without guidance or cache; it is not changed.

        Raises:
            ValueError: a denoiser of something else, a network that lacks what this edit needs.
        """
        if self.neutral:
            return denoiser
        return of_network(
            denoiser, lambda network: self.apply(network, body_of(network.backbone)), type(self).__name__
        )


class SkipEdit(Edit):
    """An edit of what the skip connections of a U-shaped network join."""

    @abstractmethod
    def changed(self, x: Tensor, skip: Tensor, level: int, levels: int, form: FeatureForm) -> tuple[Tensor, Tensor]:
        """Features of the way up and the skip that they are joined with, changed.

        Args:
            x: from below, feature maps (B, C, H, W) or tokens (B, N, D).
            skip: from the way down.
            level: of the skip, 0 at the lowest resolution that has one.
            levels: how many there are.
            form: makes maps of tokens.
        """

    def apply(self, denoiser: BackboneDenoiser, body: Body) -> BackboneDenoiser:
        body.deep(0, type(self).__name__)
        sizes = [body.events[index].size for index in body.takes]
        order = sorted(set(sizes))
        levels = [order.index(size) for size in sizes]
        if isinstance(denoiser, _Edited):
            return _Edited(denoiser.below, (*denoiser.edits, self), levels)
        return _Edited(denoiser, (self,), levels)


class FeatureForm:
    """How tokens lie in an image.

    Args:
        prefix: tokens before those of the patches.
        height: of the image.
        width: of the image.
    """

    def __init__(self, prefix: int, height: int, width: int) -> None:
        self.prefix, self.height, self.width = prefix, height, width

    def on_maps(self, features: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of feature maps, applied to feature maps or to the tokens of the patches.

        Args:
            features: (B, C, H, W) or (B, N, D).
            function: from (B, C, H, W) to the same shape.
        """
        if features.ndim == 4:
            return function(features)
        first, tokens = features[:, : self.prefix], features[:, self.prefix :]
        rows = math.isqrt(tokens.shape[1] * self.height // self.width)
        maps = function(tokens.transpose(1, 2).unflatten(2, (rows, -1)))
        return torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1)


class _Edited(BackboneDenoiser):
    """A network's denoiser each of whose forward passes has a hook on its skips."""

    def __init__(self, denoiser: BackboneDenoiser, edits: tuple[SkipEdit, ...], levels: list[int]) -> None:
        vars(self).update(vars(denoiser))
        self.below, self.edits, self._levels = denoiser, edits, levels

    def call_backbone(self, x: Tensor, noise_label: Tensor, cond: Condition) -> Tensor:
        network = copy.copy(self.backbone)  # for this pass alone: threads may share the denoiser
        form = FeatureForm(network.prefix, *x.shape[2:])
        network.skip_hook = _SkipPass(self.edits, self._levels, form, network.skip_hook)
        return self.below.of(network).call_backbone(x, noise_label, cond)


class _SkipPass:
    """The hook of one pass: what the network's own hook gives, edited by one after another."""

    def __init__(
        self, edits: tuple[SkipEdit, ...], levels: list[int], form: FeatureForm, before: SkipHook | None
    ) -> None:
        self.edits, self.levels, self.form, self.before = edits, levels, form, before
        self.taken = 0

    def keep(self, skip: Tensor) -> Tensor:
        return skip if self.before is None else self.before.keep(skip)

    def take(self, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        if self.before is not None:
            x, skip = self.before.take(x, skip)
        level = self.levels[self.taken]
        self.taken += 1
        hidden = x[-1] if isinstance(x, tuple) else x  # of a residual stream, the branch that is joined
        for edit in self.edits:
            hidden, skip = edit.changed(hidden, skip, level, max(self.levels) + 1, self.form)
        return ((*x[:-1], hidden) if isinstance(x, tuple) else hidden), skip
