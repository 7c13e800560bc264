"""Base classes of networks without diffusers, in a process that generates and does nothing else.

The import of diffusers takes longer than a sheet of small images. `dinit generate` therefore makes the classes of a
small pipeline in pixels of these bases, see `dinit.compat.without_diffusers`; their methods are those of diffusers
that opening and calling such a pipeline need. Everywhere else, in Python above all, the bases are diffusers' own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import nn


class Config(dict[str, Any]):
    """Arguments of an object, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class ConfigMixin:
    """Base class of objects that record the arguments that they were made of."""

    _internal_dict: Config

    @property
    def config(self) -> Config:
        """The arguments."""
        return self._internal_dict

    def register_to_config(self, **values: Any) -> None:
        """Enters values into the config.

        Args:
            values: by the names of the arguments.
        """
        self._internal_dict = Config({**getattr(self, "_internal_dict", {}), **values})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """An object of these arguments.

        Args:
            config: as recorded; what is no argument is left out.
        """
        names = inspect.signature(cls.__init__).parameters
        return cls(**{key: value for key, value in config.items() if key in names})


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Decorator of an `__init__` whose arguments and their defaults are the config.

    Args:
        init: the method.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        self.register_to_config(**{name: one for name, one in given.arguments.items() if name != "self"})
        init(self, *args, **kwargs)

    return recorded


class ModelMixin(nn.Module):
    """Base class of networks."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device
