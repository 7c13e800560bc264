"""What a call is given of its images: one to start from, a mask of what changes, a measurement of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.base import Operator, Shape
from dinit.inverse.operators.combined import Compose, Stack
from dinit.inverse.operators.mask import Mask
from dinit.models.codec import Codec, IdentityCodec
from dinit.pipelines.plain import from_spec, to_spec

KEYS = ("image", "strength", "mask", "measurement")
"""Keys of a call's record that are of this module."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a call is given besides labels. Each tensor has one row, of all images, or a row for each.

    Args:
        image: (1 or B, C, H, W) in [-1, 1]; None for none.
        strength: Share of the steps that are taken from `image`, in [0, 1].
        mask: (1, 1, H, W) bool, true where `image` is repainted; the rest is kept.
        measurement: Of the decoded images, [-1, 1]; None for none. What its operator has read from files is kept
            in place of their names.

    Raises:
        ValueError: A strength outside [0, 1].
    """

    image: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    measurement: Measurement | None = None
    _config: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is the share of the steps that are taken, in [0, 1]; got {self.strength}")
        known = self.measurement
        if known is not None and (contained := _without_files(known.a)) is not known.a:
            object.__setattr__(self, "measurement", replace(known, operator=contained))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(str(self.to_config()))

    @property
    def starts_from_image(self) -> bool:
        """Whether a run starts from the image: not where a mask leaves all of the steps to noise."""
        return self.image is not None and not (self.mask is not None and self.strength == 1)

    @property
    def count(self) -> int | None:
        """Number of images that it has rows of; None where one row is that of all."""
        y = None if self.measurement is None else self.measurement.y
        return next((len(one) for one in (self.image, y) if one is not None and len(one) > 1), None)

    def steps(self, total: int) -> int:
        """How many of the steps are taken: the last int(total * strength), as in diffusers.

        Args:
            total: Of the call.

        Raises:
            ValueError: None, though strength is not 0.
        """
        if not self.starts_from_image:
            return total
        taken = min(int(total * self.strength), total)
        if not taken and self.strength:
            raise ValueError(
                f"strength = {self.strength} of {total} steps is less than one step: take "
                f"{int(1 / self.strength) + 1} steps, or a strength of 0, which gives the image itself"
            )
        return taken

    def rows(self, part: slice) -> Given:
        """What is given of some of the images.

        Args:
            part: Which.
        """

        def cut(values: Tensor | None) -> Tensor | None:
            return values if values is None or len(values) == 1 else values[part]

        measured = None if self.measurement is None else self.measurement.rows(part)
        return replace(self, image=cut(self.image), measurement=measured)

    def check(self, count: int, shape: Shape) -> None:
        """Refusal of what does not fit the images.

        Args:
            count: Number of images.
            shape: Of one, decoded, (C, H, W).

        Raises:
            ValueError: Another number of rows than one or `count`; another shape; a mask without an image.
        """
        y = None if self.measurement is None else self.measurement.y
        if self.mask is not None and len(self.mask) != 1:
            raise ValueError(f"one mask is that of all images, got {len(self.mask)}")
        for name, values in (("image", self.image), ("measurement", y)):
            if values is not None and len(values) not in (1, count):
                raise ValueError(f"{name} has {len(values)} rows for {count} images: give one, or one for each")
        if self.image is not None and tuple(self.image.shape[1:]) != tuple(shape):
            raise ValueError(
                f"image has the shape {tuple(self.image.shape[1:])}, and images of this pipeline {shape}"
            )
        if self.mask is not None and self.image is None:
            raise ValueError("mask= marks the pixels of an image that are repainted: give image= too")
        if self.mask is not None and tuple(self.mask.shape[1:]) != (1, *shape[1:]):
            raise ValueError(
                f"mask has the shape {tuple(self.mask.shape[1:])}, and must have {(1, *shape[1:])}, as the image"
            )
        if self.mask is not None and self.measurement is not None:
            raise ValueError("mask= is a measurement of its own: give mask=, or measurement= with an operator")
        if self.mask is not None:
            Mask(hidden=self.mask[0]).check(shape)
        if self.measurement is not None:
            self.measurement.check(shape, count)

    def measured(self, codec: Codec, shape: Shape) -> Measurement | None:
        """The measurement of what the denoiser predicts: of pixels in its own range, or of latents.

        On latents the operator acts on decoded ones, and is no longer linear.

        Args:
            codec: Between these and images in [-1, 1].
            shape: Of one of them, (C, H, W).
        """
        known = self.measurement
        if self.mask is not None:
            assert self.image is not None, "see check"
            known = Measurement(Mask(hidden=self.mask[0]), self.image)
        if known is None:
            return None
        identity = isinstance(codec, IdentityCodec)
        if identity and (codec.low, codec.high) == (-1, 1):
            return known
        if not identity or not known.a.linear:
            return replace(known, operator=Decoded(known.a, codec))
        # x = (z - d) / c on a range with centre d and half-width c: A z = c y + A(d 1), with c times the noise.
        c, d = (codec.high - codec.low) / 2, (codec.high + codec.low) / 2
        shift = known.a.apply(torch.full((1, *shape), d, dtype=known.y.dtype))
        return replace(known, y=c * known.y + shift, noise_std=c * known.noise_std)

    def to_config(self) -> dict[str, Any]:
        """Plain values, with digests for tensors. `from_config` makes it again, given the tensors."""
        if not self._config:
            self._config.update(self._plain({}))
        return dict(self._config)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its digest."""
        found: dict[str, Tensor] = {}
        self._plain(found)
        return found

    def _plain(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if self.image is not None:
            values |= {"image": to_spec(self.image, tensors), "strength": self.strength}
        if self.mask is not None:
            values["mask"] = to_spec(self.mask, tensors)
        if self.measurement is not None:
            known = self.measurement
            values["measurement"] = {
                "operator": to_spec(known.a, tensors),
                "y": to_spec(known.y, tensors),
                "noise_std": known.noise_std,
            }
        return values

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Given | None:
        """What `to_config` wrote; None where the record has nothing of it.

        Args:
            config: A record of a call.
            tensors: By digest.

        Raises:
            ValueError: A tensor is missing; a value that cannot be used.
        """
        found = from_spec({key: config[key] for key in KEYS if key in config}, tensors)
        if not found:
            return None
        if "measurement" in found:
            found["measurement"] = Measurement(**found["measurement"])
        return cls(**found)


def _without_files(operator: Operator) -> Operator:
    """The operator with what it has read from files in place of their names, so that a record has all of it."""
    if isinstance(operator, Mask):
        return operator.without_file()
    if isinstance(operator, Compose | Stack):
        parts = tuple(_without_files(one) for one in operator.parts)
        return operator if parts == operator.parts else replace(operator, operators=parts)
    return operator


def repainted(x: Tensor, given: Given, encode: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What a mask keeps of its image, or shows of a measurement without noise, in the place of the generated.

    Args:
        x: (B, C, H, W), of a run.
        given: Of the same images.
        encode: From images to the range of x; None where it is theirs.
    """
    known = given.measurement
    if given.mask is not None and given.image is not None:
        hidden, image = given.mask, given.image
    elif known is not None and known.noise_std == 0 and isinstance(known.a, Mask):
        hidden, image = ~known.a.known(tuple(known.y.shape[1:])), known.y
    else:
        return x
    image = upload(image, x.device, x.dtype)
    return torch.where(upload(hidden, x.device), x, image if encode is None else encode(image))


@dataclass(frozen=True, eq=False)
class Decoded(Operator):
    """An operator on the decoded images of latents.

    Args:
        operator: On images.
        codec: Of the latents.
    """

    operator: Operator
    codec: Codec

    def apply(self, x: Tensor) -> Tensor:
        return self.operator.apply(self.codec.decode(x))

    def output_shape(self, shape: Shape) -> Shape:
        _, height, width = shape
        side = self.codec.downscale
        return self.operator.output_shape((self.codec.image_channels, height * side, width * side))
