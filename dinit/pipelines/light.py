"""Base classes of pipelines without diffusers, in a process that generates and does nothing else.

See `dinit.models.light`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from safetensors.torch import load_file

from dinit.models.light import ConfigMixin
from dinit.pipelines.loading import BACKBONE, INDEX, backbone_class, read_json, weight_files


class DiffusionPipeline(ConfigMixin):
    """Base class of pipelines: one network, without an autoencoder."""

    backbone: Any
    vae: Any = None

    @classmethod
    def from_pretrained(cls, folder: Path, variant: str | None = None, **_: Any) -> Self:
        """Opens a checked folder; only a pipeline's own keys of its index are read.

        Args:
            folder: of a pipeline on pixels.
            variant: of the weights.
            _: of diffusers' loading.
        """
        index = read_json(folder / INDEX)
        network: Any = backbone_class(index[BACKBONE][1])
        backbone = network.from_config(read_json(folder / BACKBONE / "config.json"))
        weights = [load_file(file) for file in weight_files(folder / BACKBONE, variant)]
        backbone.load_state_dict({name: tensor for part in weights for name, tensor in part.items()})
        names = inspect.signature(cls.__init__).parameters
        given = {name: value for name, value in index.items() if name in names and name not in (BACKBONE, "vae")}
        return cls(**{BACKBONE: backbone.eval(), **given})

    def register_modules(self, **modules: Any) -> None:
        """Enters the components.

        Args:
            modules: by name.
        """
        for name, module in modules.items():
            self.register_to_config(**{name: (None, None)})
            setattr(self, name, module)

    @property
    def components(self) -> dict[str, Any]:
        """The networks, by name."""
        return {"backbone": self.backbone, "vae": self.vae}

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.backbone.device

    _execution_device = device

    def to(self, device: str | torch.device | None = None) -> Self:
        """Moves the network.

        Args:
            device: where to; None leaves it.
        """
        self.backbone.to(device)
        return self

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    @contextmanager
    def progress_bar(self, total: int) -> Iterator[Any]:
        """A bar that is not shown.

        Args:
            total: of steps.
        """
        yield SimpleNamespace(total=total, update=lambda: None)

    def set_progress_bar_config(self, **_: Any) -> None:
        """Nothing: bars are not shown here."""


class SchedulerMixin:
    """Base class of schedulers, of which there are none here."""


@dataclass
class ImagePipelineOutput:
    """Base class of the result of a call."""

    images: Any
