"""Networks and backbones: diffusers models whose annotated fields are their arguments and their config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

import torch
from torch import Tensor

from dinit.compat import is_light
from dinit.models.layers.checks import check_divides, check_input, check_positive
from dinit.models.layers.skips import SkipHook
from dinit.registry import Registry, suggest

if TYPE_CHECKING or not is_light():
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
else:
    from dinit.models.light import ConfigMixin, ModelMixin, register_to_config

BACKBONES: Registry[type[Backbone]] = Registry("backbone", "dinit.models", subfolders=False)

NetworkT = TypeVar("NetworkT", bound="Network")
Preset = Mapping[str, Any]
_WHOLE = (int, "int", "int | None")  # types of the fields that are numbers of things


@dataclass_transform(eq_default=False)
def config_from_fields(cls: type[NetworkT]) -> type[NetworkT]:
    """Class decorator for a Network: its annotated fields are the one list of its arguments and their defaults.

    `DiT(depth=12)` then sets the fields, enters all of them into the config that diffusers saves and reads, and
    calls `build`. Fields of a base class come first. Type checkers know the arguments from the fields.

    Raises:
        TypeError: a preset names an argument that is no field.
    """
    dataclass(repr=False, eq=False)(cls)
    cls.__init__ = register_to_config(cls.__init__)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for name, preset in cls.presets.items():
        for argument in preset:
            if argument not in known:
                raise TypeError(f"{cls.__name__}: preset {name!r} has {argument!r}{suggest(argument, known)}")
    return cls


class Network(ModelMixin, ConfigMixin):
    """Base class of a network on images (B, in_channels, H, W) that is made of its fields, see
    `config_from_fields`.

    A subclass has the fields image_size, in_channels, num_classes and dropout, further ones of its own, and builds
    its layers in `build`.

    Attributes:
        presets: published sizes, name to arguments. "tiny" is the smallest network that exercises every part.
        image_size: height = width in pixels that it is configured for.
        patch_size: pixels on a side of a patch; 1 for networks without patches.
        channel_mult: widths of the levels of a U-Net, whose resolution halves from level to level; () without.
        size_multiple: any height and width must be a multiple of this.
        in_channels: channels of x.
        num_classes: number of classes.
        dropout: probability of dropout, in [0, 1).
        gradient_checkpointing: whether blocks are recomputed in the backward pass.
    """

    _supports_gradient_checkpointing: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {}
    # What the config of a loaded network has besides its arguments, so that Network(**network.config) works.
    ignored_options: ClassVar[tuple[str, ...]] = (
        "_class_name",
        "_diffusers_version",
        "_name_or_path",
        "_use_default_values",
    )

    image_size: int
    in_channels: int
    num_classes: int
    dropout: float
    patch_size: int = 1
    channel_mult: Sequence[float] = ()
    size_multiple: int = 1
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # diffusers' enable_gradient_checkpointing() looks for this attribute
        name = type(self).__name__
        if self.num_classes < 0:
            raise ValueError(f"{name}: num_classes must be at least 0 (0 is unconditional), got {self.num_classes}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"{name}: dropout must be in [0, 1), got {self.dropout}")
        whole = [field.name for field in fields(self) if field.type in _WHOLE]  # type: ignore[arg-type]
        given = {argument: getattr(self, argument) for argument in whole if argument != "num_classes"}
        self.check_positive(**{argument: value for argument, value in given.items() if value is not None})
        self.size_multiple = self.smallest_size()
        if self.image_size % self.size_multiple:
            raise ValueError(
                f"{name}: image_size must be a multiple of {self.size_multiple}, got {self.image_size}"
            )
        self.build()

    def build(self) -> None:
        """Check the fields against each other and make the layers; called once, by the constructor.

        Raises:
            ValueError: sizes that do not fit together.
        """
        raise NotImplementedError

    def smallest_size(self) -> int:
        """Pixels of which height and width must be multiples: one patch at the lowest level of channel_mult."""
        return self.patch_size * 2 ** max(len(self.channel_mult) - 1, 0)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """Published size, freshly initialised.

        Args:
            name: a key of `presets`.
            overrides: arguments in place of the preset's.

        Raises:
            ValueError: an unknown name, or arguments that do not fit together.
        """
        if name not in cls.presets:
            raise ValueError(f"unknown {cls.__name__} preset {name!r}{suggest(name, list(cls.presets))}")
        return cls(**{**cls.presets[name], **overrides})

    def check_input(self, x: Tensor, noise_label: Tensor, cond: Tensor | None = None) -> None:
        """ValueError for tensors of shapes that this network does not take, see `checks.check_input`."""
        check_input(type(self).__name__, x, self.in_channels, self.size_multiple, noise_label, cond)

    def check_positive(self, **values: int) -> None:
        """ValueError for an argument below 1."""
        check_positive(type(self).__name__, **values)

    def check_divides(self, part: str, divisor: int, whole: str, value: int) -> None:
        """ValueError unless `divisor` (the argument called part) divides `value` (the one called whole)."""
        check_divides(type(self).__name__, part, divisor, whole, value)


class Backbone(Network):
    """Base class of backbones: embed(labels) gives the condition, forward(x, noise_label, cond) the output.

    A subclass has the fields of a Network and learn_sigma, and sets in `build` what of the attributes below is not
    as given here. It works on tensors only: no noise schedule, no guidance.

    Attributes:
        learn_sigma: whether the output has in_channels more channels, for a learned variance.
        out_channels: in_channels, or twice that with learn_sigma.
        num_classes: labels are 0 .. num_classes - 1, and `num_classes` is the null label; 0 is unconditional.
        null_class: False where the weights were trained without a null label (ADM; DiT without label dropout):
            embed() has no row for it then.
        channels_last: whether it is a convolutional network, which runs fastest in that memory format.
        token_stages: names of the lists of blocks that work on tokens (B, N, D), in the order they run, each of
            blocks or of further lists; none where blocks work on feature maps.
        cond_dim: features D of the condition, needed where there is no label_embedding.
        label_embedding: table of the condition of each label; None where the condition is the time alone.
        prefix: tokens before those of the patches.
        adds_blocks: whether the caller adds the output of a block to the residual stream.
        block_hook: where it is set, hook(run, block, x, *args) is called in place of every block(x, *args), and
            run(x, *args) is the block. Token routing and probes are such hooks; who sets one removes it again.
            Layers between the blocks that change the resolution pass through it too.
        skip_hook: where it is set, what the skip connections of a U-shaped network carry passes through it.

    Raises:
        ValueError: no classes and no null label, or sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = False
    token_stages: ClassVar[tuple[str, ...]] = ()
    adds_blocks: ClassVar[bool] = False

    learn_sigma: bool
    out_channels: int
    null_class: bool = True
    prefix: int = 0
    block_hook: Callable[..., Tensor] | None = None
    skip_hook: SkipHook | None = None
    cond_dim: int
    label_embedding: Callable[[Tensor], Tensor] | None

    def __post_init__(self) -> None:
        if not self.num_classes and not self.null_class:
            raise ValueError(
                f"{type(self).__name__}: null_class must be True with num_classes = 0, "
                "as null is then the only label"
            )
        self.out_channels = 2 * self.in_channels if self.learn_sigma else self.in_channels
        super().__post_init__()

    def embed(self, labels: Tensor) -> Tensor:
        """Condition of the labels: their rows of `label_embedding`, or zeros where there is no such table.

        Args:
            labels: (B,) int64 in 0..num_classes; num_classes is the null label.

        Returns:
            (B, D), in the weights' dtype.
        """
        if self.label_embedding is None:
            return torch.zeros(len(labels), self.cond_dim, dtype=self.dtype, device=labels.device)
        return self.label_embedding(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """Output of the network, whose meaning the parameterization defines.

        Args:
            x: (B, in_channels, H, W), H and W multiples of size_multiple.
            noise_label: (B,), or (1,) for all; float, in the range that the network was trained on.
            cond: (B, D), from `embed`.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: other shapes.
        """
        raise NotImplementedError
