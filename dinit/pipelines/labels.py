"""Labels and noise keys of a call: which images are made."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dinit.data.class_names import class_number

Label = int | str | None
Labels = Label | Sequence[Label] | Tensor
Seeds = int | Sequence[int] | Tensor
Generators = torch.Generator | Sequence[torch.Generator]


def make_keys(
    seed: Seeds | None, count: int, start_index: int = 0, generator: Generators | None = None
) -> tuple[tuple[int, int], ...]:
    """The keys of the images' noise, one (seed, image index) an image; see NoiseSource.

    Args:
        seed: one seed, whose images count from start_index; a seed an image, each of image 0; or None, which draws
            one seed from torch's default generator.
        count: number of images.
        start_index: index of the first image of one seed.
        generator: in place of seed. Each generator gives one draw, a whole number in [0, 2^63 - 1), and is advanced
            by it. The draw of one generator is the one seed; those of a list are a seed an image. The same state
            therefore gives the same images, two calls in a row give different ones, and the images are not those
            that diffusers makes of this generator.

    Raises:
        ValueError: another number of seeds than images; both seed and generator; not whole numbers.
    """
    if generator is not None:
        if not (isinstance(seed, int) and seed == 0):
            raise ValueError("seed and generator both decide the noise; give one of them")
        seed = _seeds_of(generator)
    if seed is None:
        seed = _draw_seed(None)
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if start_index:
            raise ValueError(f"start_index = {start_index} goes with one seed, not with a seed an image")
        if len(seed) != count:
            raise ValueError(f"give one seed, or one for each of {count} images; got {len(seed)}")
        return tuple((_integer("seed", one), 0) for one in seed)
    if isinstance(seed, torch.Generator):
        raise ValueError("seed takes whole numbers; give a torch.Generator as generator=")
    first = _integer("start_index", start_index)
    if first < 0:
        raise ValueError(f"start_index must be 0 or more, got {first}")
    return tuple((_integer("seed", seed), first + k) for k in range(count))


def _seeds_of(generator: Generators) -> int | list[int]:
    if isinstance(generator, torch.Generator):
        return _draw_seed(generator)
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(
            f"generator must be a torch.Generator or a list of them, got {generator!r}; see also seed="
        )
    return [_draw_seed(one) for one in generator]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def resolve_labels(
    labels: Label | Sequence[Label] | Tensor,
    num_images: int | None,
    num_classes: int,
    class_names: Sequence[str] | None,
) -> tuple[int | None, ...]:
    """Class numbers, one an image; None is the null class.

    A text is the name of a class, in either form of Unicode. One that is no name is read as a class's number where
    it can be nothing else: "3" where no class is called by a number, or where classes have no names.

    Args:
        labels: A number or a name, or a sequence of them. One alone is repeated num_images times; None is no class.
        num_images: Number of images; None for one a label.
        num_classes: Of the pipeline; 0 for an unconditional one.
        class_names: Of the pipeline, by number; None where it has none.

    Raises:
        ValueError: An unknown name, or one of several classes; a number out of range; another number of labels
            than of images.
    """
    if num_images is not None:
        num_images = whole_number("num_images", num_images)
    if hasattr(labels, "tolist"):
        labels = labels.tolist()  # type: ignore[union-attr]
    if labels is None or isinstance(labels, str | bytes) or not isinstance(labels, Sequence):
        one = class_number(labels, num_classes, class_names)  # type: ignore[arg-type]
        return (one,) * (1 if num_images is None else num_images)
    if num_images is not None and num_images != len(labels):
        raise ValueError(f"num_images = {num_images} contradicts {len(labels)} labels; leave num_images out")
    if not labels:
        raise ValueError("labels are empty; give at least one, or None with num_images for no class")
    return tuple(class_number(label, num_classes, class_names) for label in labels)


def whole_number(what: str, value: Any) -> int:
    """An int of at least 1. ValueError for anything else."""
    number = _integer(what, value)
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number


def _integer(what: str, value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be a whole number, got {value!r}") from None
