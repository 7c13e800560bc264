"""Skip connections of a U-shaped network, with hooks where what passes over them is replaced or changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from dinit.models.base import Backbone

Features = TypeVar("Features", Tensor, tuple[Tensor, ...])


class SkipHook(Protocol):
    """What a backbone's `skip_hook` is. Each method returns what takes the place of what it is given."""

    def keep(self, skip: Tensor) -> Tensor:
        """A skip that the way down leaves for the way up."""
        ...

    def take(self, x: Features, skip: Tensor) -> tuple[Features, Tensor]:
        """The features of the way up, and the skip that they are about to be joined with."""
        ...


class Skips:
    """The skips of one forward pass, last in first out.

    Args:
        model: whose `skip_hook`, where it is set, sees every one.
    """

    def __init__(self, model: Backbone) -> None:
        self._hook = model.skip_hook
        self._kept: list[Tensor] = []

    def keep(self, skip: Tensor) -> None:
        """Leave features for the way up."""
        self._kept.append(skip if self._hook is None else self._hook.keep(skip))

    def take(self, x: Features) -> tuple[Features, Tensor]:
        """The features x (all that goes on from here) and the newest skip, which the caller joins."""
        skip = self._kept.pop()
        return (x, skip) if self._hook is None else self._hook.take(x, skip)
