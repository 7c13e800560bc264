"""A part of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.inverse.operators.base import OPERATORS, LinearOperator, Shape, image_shape
from dinit.inverse.operators.svd import SVD, TransformSVD, constant


@OPERATORS.register("mask")
@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """The image with 0 where it is hidden; y has the shape of the image, and its hidden values do not matter.

    Give one of image, box, random and hidden. Each describes what is hidden and is to be filled.

    Args:
        image: A file of the image's height and width: white (brighter than half) is hidden, black is kept.
        box: Top, left, bottom and right of a hidden rectangle in pixels, counted from 0; the bottom row and the
            right column themselves are seen.
        random: The share of hidden pixels, above 0 and below 1.
        seed: Of the random pixels; with random only.
        hidden: (H, W) or (C, H, W), 1 or True where hidden.

    Raises:
        ValueError: Not exactly one of the four, one out of its range, or a file that is no image; from what takes
            images, a mask of another size, or one that hides everything.
    """

    image: str | None = None
    box: tuple[int, ...] | None = None
    random: float | None = None
    seed: int | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.image, self.box, self.random, self.hidden)) != 1:
            raise ValueError("mask takes one of image (a file), box, random and hidden (a tensor)")
        if self.box is not None and not (
            len(self.box) == 4 and 0 <= self.box[0] < self.box[2] and 0 <= self.box[1] < self.box[3]
        ):
            raise ValueError(f"box must be top, left, bottom and right of a rectangle, got {list(self.box)}")
        if self.random is not None and not 0 < self.random < 1:
            raise ValueError(f"random is the share of hidden pixels, above 0 and below 1, got {self.random}")
        if self.seed is not None and self.random is None:
            raise ValueError("seed belongs to random pixels: give their share, random, too")
        if self.hidden is not None:
            if self.hidden.ndim not in (2, 3):
                raise ValueError(f"hidden must be (H, W) or (C, H, W), got {shown(self.hidden)}")
            object.__setattr__(self, "hidden", self.hidden.detach().cpu() > 0.5)
        if self.image is not None:
            object.__setattr__(self, "_picture", _white(self.image))

    def without_file(self) -> Mask:
        """The same mask with the picture itself in place of its file's name, which may be of another one later."""
        return self if self.image is None else Mask(hidden=vars(self)["_picture"])

    def known(self, shape: Shape) -> Tensor:
        """Where the image is seen.

        Args:
            shape: Of one image, (C, H, W).

        Returns:
            (C, H, W) bool on the CPU.

        Raises:
            ValueError: The mask is of another size, or hides everything.
        """
        shape = image_shape(self, shape)
        kept: dict[Shape, Tensor] = vars(self).setdefault("_known", {})
        if shape not in kept:
            seen = ~self._hidden(shape).expand(shape)
            if not bool(seen.any()):
                raise ValueError(f"the mask hides every pixel of images of shape {shape}")
            kept[shape] = seen
        return kept[shape]

    def output_shape(self, shape: Shape) -> Shape:
        return tuple(self.known(shape).shape)

    def size(self, shape: Shape) -> int:
        return int(self.known(shape).sum())

    def apply(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        return x * constant(self, shape, lambda: self.known(shape), x.device, x.dtype)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        self.check(shape)
        return self.apply(y)

    def pseudo_inverse(self, y: Tensor, shape: Shape) -> Tensor:
        return self.adjoint(y, shape)

    def clean(self, y: Tensor, shape: Shape) -> Tensor:
        return self.apply(y)

    def decomposition(self, shape: Shape) -> SVD:
        return _SelectionSVD(self.known(shape))

    def _hidden(self, shape: Shape) -> Tensor:
        """Broadcastable to the shape, bool."""
        _, height, width = shape
        if self.box is not None:
            top, left, bottom, right = self.box
            if bottom > height or right > width:
                raise ValueError(
                    f"the box {list(self.box)} (top, left, bottom, right) does not fit in {height} x {width} pixels"
                )
            hidden = torch.zeros(height, width, dtype=torch.bool)
            hidden[top:bottom, left:right] = True
            return hidden
        if self.random is not None:
            generator = torch.Generator().manual_seed(self.seed or 0)
            order = torch.randperm(height * width, generator=generator)
            return (order < round(self.random * height * width)).reshape(height, width)
        given: Tensor = self.hidden if self.hidden is not None else vars(self)["_picture"]
        if given.shape[-2:] != (height, width) or (given.ndim == 3 and given.shape[0] not in (1, shape[0])):
            where = f" {self.image}" if self.image is not None else ""
            raise ValueError(
                f"the mask{where} has the shape {tuple(given.shape)}, and the images {tuple(shape)}: give one of "
                "their height and width"
            )
        return given


class _SelectionSVD(TransformSVD):
    """Of a choice of entries, in their places."""

    def __init__(self, known: Tensor) -> None:
        values = known.flatten().double()
        super().__init__(values, torch.arange(len(values)), len(values))

    def analyse(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return coefficients


def _white(path: str) -> Tensor:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return torch.from_numpy(np.asarray(file.convert("L")) > 127)
    except FileNotFoundError as error:
        raise ValueError(f"there is no picture {path}, the mask") from error
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"the mask {path} cannot be read as an image: {error}") from error
