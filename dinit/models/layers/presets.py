"""Presets: the arguments that the published sizes of a family share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Arguments = Mapping[str, Any]


def imagenet_presets(
    sizes: Mapping[str, Arguments], patches: Sequence[int] = (), **common: Any
) -> dict[str, dict[str, Any]]:
    """Presets for ImageNet at 256 px in the latents of Stable Diffusion's autoencoder, with a learned variance.

    Args:
        sizes: arguments of each size, name to mapping.
        patches: patch sizes that each size comes in, entered as "XL/2"; none for a family without.
        common: further arguments of all, or others in place of the usual ones.

    Returns:
        Name of a preset to its arguments.
    """
    usual = {"image_size": 32, "in_channels": 4, "num_classes": 1000, "learn_sigma": True, **common}
    if not patches:
        return {name: {**usual, **size} for name, size in sizes.items()}
    return {f"{name}/{p}": {**usual, **size, "patch_size": p} for name, size in sizes.items() for p in patches}


def tiny_preset(**arguments: Any) -> dict[str, Any]:
    """Preset for digits of 8 x 8 pixels in ten classes, the smallest network of a family; arguments: its own."""
    return {"image_size": 8, "in_channels": 1, "num_classes": 10, **arguments}
