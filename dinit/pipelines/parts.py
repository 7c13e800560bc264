"""Checks of the parts that a pipeline is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dinit.arguments import shown
from dinit.compat import is_light
from dinit.diffusion import Denoiser
from dinit.models.base import Backbone
from dinit.registry import Registry

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
else:
    from dinit.pipelines.light import DiffusionPipeline

Part = TypeVar("Part")


def check_parts(backbone: Any, vae: Any, class_names: Any, t_max: Any) -> None:
    """ValueError for arguments of `Pipeline` of another kind than it takes."""
    if isinstance(backbone, Denoiser | DiffusionPipeline):
        what = "denoiser" if isinstance(backbone, Denoiser) else "Pipeline"
        raise ValueError(f"backbone is the network itself, got a {what}: give its .backbone")
    if isinstance(backbone, type):
        name = backbone.__name__
        raise ValueError(f"backbone is an object, got the class {name}: make one, {name}(...)")
    parts = ("num_classes", "in_channels", "embed")  # a compiled Backbone is of another class, and has these
    if not isinstance(backbone, Backbone) and not all(hasattr(backbone, part) for part in parts):
        raise ValueError(f"backbone must be a Backbone, as of BACKBONES.create('dit'); got {shown(backbone)}")
    if vae is not None and not isinstance(vae, torch.nn.Module):
        raise ValueError(f"vae must be an AutoencoderKL, as AutoencoderKL.from_pretrained opens; got {shown(vae)}")
    if class_names is not None and (isinstance(class_names, str) or not isinstance(class_names, Sequence)):
        raise ValueError(f"class_names must be a list of texts, got {shown(class_names)}")
    if isinstance(t_max, bool) or not isinstance(t_max, int | float):
        raise ValueError(f"t_max must be a number, got {shown(t_max)}")


def made(registry: Registry[Any], kind: type[Part], spec: Any) -> Part:
    """A process or a parameterization. ValueError where the spec is another object."""
    part = registry.create(spec)
    if not isinstance(part, kind):
        raise ValueError(f"{registry.kind} must be a {kind.__name__}, a name or a mapping, got {shown(part)}")
    return part
