"""What every backbone is: a diffusers model that embeds labels and maps (x, noise label, condition) to output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from dinit.registry import Registry, suggest

if TYPE_CHECKING:
    Init = TypeVar("Init", bound=Callable[..., None])

    def register_to_config(init: Init) -> Init:
        """diffusers' decorator of a constructor, which is untyped: a type checker would accept any argument."""
        ...
else:
    from diffusers.configuration_utils import register_to_config as register_to_config

BACKBONES: Registry[type[Backbone]] = Registry("backbone", "dinit.models", subfolders=False)


class Backbone(ModelMixin, ConfigMixin):
    """Base class. A subclass has `@register_to_config` on `__init__` and sets the attributes below.

    in_channels: channels of x. out_channels: in_channels, or twice that where a variance is learned.
    num_classes: labels run 0 .. num_classes - 1 and `num_classes` is the null label; 0 is unconditional.
    null_class: False where the published weights know no null label (ADM); embed() has no row for it then.
    image_size: height = width that it was configured for. size_multiple: any height and width must be
    a multiple of this.
    token_stages: names of the lists of blocks that work on tokens (B, N, D), in the order they run, each of
    blocks or of further lists; none where blocks work on feature maps. prefix: tokens before those of the patches.
    adds_blocks: whether the caller adds what a block gives to the residual stream.
    block_hook: where it is set, hook(run, block, x, *args) is called in place of every block(x, *args), and
    run(x, *args) is the block. Token routing and probes are such hooks; whoever sets one takes it off again.
    """

    _supports_gradient_checkpointing: ClassVar[bool] = True
    channels_last: ClassVar[bool] = False  # whether it is a conv net, which runs fastest in that memory format
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    token_stages: ClassVar[tuple[str, ...]] = ()
    adds_blocks: ClassVar[bool] = False

    in_channels: int
    out_channels: int
    num_classes: int
    null_class: bool = True
    image_size: int
    size_multiple: int = 1
    prefix: int = 0
    block_hook: Callable[..., Tensor] | None = None

    def embed(self, labels: Tensor) -> Tensor:
        """Embeds labels, (B,) int64 in 0..num_classes (num_classes is null), to the condition (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,) float, cond (B, D) -> (B, out_channels, H, W)."""
        raise NotImplementedError

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Backbone:
        """The published size `name`. overrides replace single arguments. ValueError for an unknown name."""
        if name not in cls.presets:
            raise ValueError(f"unknown {cls.__name__} preset {name!r}{suggest(name, list(cls.presets))}")
        return cls(**{**cls.presets[name], **overrides})

    def null_labels(self, batch: int, device: torch.device | None = None) -> Tensor:
        """(batch,) int64 filled with the null label. ValueError where there is none."""
        if not self.null_class:
            raise ValueError(f"this {type(self).__name__} was made without a null class: give labels")
        return torch.full((batch,), self.num_classes, dtype=torch.int64, device=device)
