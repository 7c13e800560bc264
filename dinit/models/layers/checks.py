"""Checks of arguments and inputs, on Python integers only, so that they cost nothing and compile away."""

from __future__ import annotations

from torch import Tensor


def check_input(
    name: str, x: Tensor, in_channels: int, size_multiple: int, noise_label: Tensor, cond: Tensor | None = None
) -> None:
    """Check the shapes of a network's inputs.

    Args:
        name: of the network, for messages.
        x: to be (B, in_channels, H, W), H and W positive multiples of size_multiple.
        in_channels: channels that the network was built for.
        size_multiple: pixels.
        noise_label: to be (B,) or (1,).
        cond: to be (B, D), floats; None where the network takes no condition.

    Raises:
        ValueError: any other shape.
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
            f"{name} takes noise labels of shape ({len(x)},) or (1,) with x of shape {tuple(x.shape)}, got "
            f"{tuple(noise_label.shape)}; give one for each image, or one for all"
        )
    if cond is not None and (cond.ndim != 2 or len(cond) != len(x) or not cond.is_floating_point()):
        raise ValueError(
            f"{name} takes the condition that its embed(labels) gives, floats of shape ({len(x)}, D), got "
            f"{tuple(cond.shape)} of {cond.dtype}; pass network.embed(labels), not the labels"
        )


def check_positive(name: str, **values: int) -> None:
    """ValueError for a value below 1. name: of the network, for the message."""
    for argument, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {value}")


def check_divides(name: str, part: str, divisor: int, whole: str, value: int) -> None:
    """ValueError unless `divisor` (the argument called part) divides `value` (the one called whole)."""
    if divisor < 1 or value % divisor:
        raise ValueError(f"{name}: {part} must divide {whole}, got {part} = {divisor} and {whole} = {value}")
