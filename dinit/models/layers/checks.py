"""Checks at the border of a backbone: on Python integers only, so that they cost nothing and compile away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from dinit.models.base import Backbone


def check_input(
    name: str, x: Tensor, in_channels: int, size_multiple: int, noise_label: Tensor, cond: Tensor | None = None
) -> None:
    """ValueError unless x is (B, in_channels, H, W) with H and W positive multiples of size_multiple, noise_label
    (B,) or (1,), and cond (B, D) floats.
    """
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"{name} was built for x of shape (B, {in_channels}, H, W), got {tuple(x.shape)}; "
            f"pass {in_channels}-channel images or build it with another in_channels"
        )
    height, width = x.shape[2:]
    if height % size_multiple or width % size_multiple or not height or not width:
        raise ValueError(
            f"{name} takes heights and widths that are multiples of {size_multiple}, got {height} x {width}; "
            "pad or resize the images"
        )
    if noise_label.ndim != 1 or len(noise_label) not in (1, len(x)):
        raise ValueError(
            f"{name} takes noise labels of shape ({len(x)},) or (1,) beside x of shape {tuple(x.shape)}, got "
            f"{tuple(noise_label.shape)}; give one for each image, or one for all"
        )
    if cond is not None and (cond.ndim != 2 or len(cond) != len(x) or not cond.is_floating_point()):
        raise ValueError(
            f"{name} takes the condition that its embed(labels) gives, floats of shape ({len(x)}, D), got "
            f"{tuple(cond.shape)} of {cond.dtype}; pass network.embed(labels), not the labels"
        )


def configure(
    model: Backbone,
    *,
    image_size: int,
    size_multiple: int,
    in_channels: int,
    num_classes: int,
    learn_sigma: bool,
    dropout: float,
    **positive: int,
) -> None:
    """Check the arguments that every backbone has and set the attributes that Backbone promises.

    positive: further arguments that must be at least 1. ValueError for what does not fit.
    """
    name = type(model).__name__
    sizes = {"image_size": image_size, "size_multiple": size_multiple, "in_channels": in_channels}
    for argument, value in {**positive, **sizes}.items():
        if value < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {value}")
    if image_size % size_multiple:
        raise ValueError(f"{name}: image_size must be a multiple of {size_multiple}, got {image_size}")
    if num_classes < 0:
        raise ValueError(f"{name}: num_classes must be at least 0 (0 is unconditional), got {num_classes}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{name}: dropout must be in [0, 1), got {dropout}")
    model.image_size, model.size_multiple = image_size, size_multiple
    model.in_channels = in_channels
    model.out_channels = 2 * in_channels if learn_sigma else in_channels
    model.num_classes = num_classes
    # diffusers' enable_gradient_checkpointing() looks for this attribute.
    model.gradient_checkpointing = False  # pyright: ignore[reportArgumentType]


def check_divides(name: str, part: str, divisor: int, whole: str, value: int) -> None:
    """ValueError unless `divisor` (the argument called part) divides `value` (the one called whole)."""
    if divisor < 1 or value % divisor:
        raise ValueError(f"{name}: {part} must divide {whole}, got {part} = {divisor} and {whole} = {value}")
