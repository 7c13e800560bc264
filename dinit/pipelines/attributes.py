"""Attributes of a pipeline that may be assigned: components and defaults of its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dinit.compat import is_light
from dinit.models.base import BACKBONES
from dinit.pipelines.advice import unknown_attribute
from dinit.pipelines.call import DEFAULT_KEYS

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
else:
    from dinit.pipelines.light import DiffusionPipeline

if TYPE_CHECKING:
    from dinit.models.codec import Codec

# Attributes that diffusers' own methods assign.
_OF_DIFFUSERS = ("backbone", "vae", "hf_device_map", "quantization_config")


class Attributes(DiffusionPipeline):
    """A DiffusionPipeline that refuses an attribute which it does not have, and names the nearest one."""

    if TYPE_CHECKING:

        def _make_codec(self) -> Codec | None: ...

    def register_modules(self, **kwargs: Any) -> None:
        """As in diffusers; a registered backbone is entered as ("dinit", class), whichever file it is in."""
        super().register_modules(**kwargs)
        for name, module in kwargs.items():
            self._enter(name, module)

    def _enter(self, name: str, module: Any) -> None:
        if type(module) in [BACKBONES[entry] for entry in BACKBONES]:
            self.register_to_config(**{name: ("dinit", type(module).__name__)})

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigns a component or a default. AttributeError, with the nearest name, for any other attribute."""
        known = hasattr(type(self), name) or name in _OF_DIFFUSERS or name.startswith("_")
        if not known or name == "_interrupt":
            raise unknown_attribute(name, ("backbone", "vae", "scheduler", *DEFAULT_KEYS))
        super().__setattr__(name, value)
        if "_codec" in vars(self):  # otherwise __init__ is not over
            if name == "backbone":
                self._enter(name, value)
            elif name == "vae":
                self._codec = self._make_codec()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]
        except AttributeError:
            if name.startswith("_"):
                raise
            public = [one for one in dir(type(self)) if not one.startswith("_")]
            raise unknown_attribute(name, ("backbone", "vae", *public)) from None
