"""Frozen encoders for representation alignment: callables from images to feature maps."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.devices import upload
from dinit.files import user_path
from dinit.registry import Registry
from dinit.training.recipe.model import Named

Encoder = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [-1, 1], as the data set gives them -> features (B, F, h, w), or tokens (B, n, F)."""

ENCODERS: Registry[Callable[..., Encoder]] = Registry("encoder", "dinit.training.regularizers")


def make_encoder(named: Named) -> Encoder:
    """The encoder of a recipe: an entry of the registry, or 'module:function', a function of options to an encoder.

    ValueError for a name, module or function that is not there, or options that it does not take.
    """
    if ":" not in named.name:
        return ENCODERS.create(named.spec())
    module, _, function = named.name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
        return factory(**named.options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(
            f"encoder {named.name!r} cannot be made: {error}. It names a module that can be imported, and a "
            "function in it that takes the options after the name and returns a callable from images to features"
        ) from error


class Reader(nn.Module):
    """An encoder that moves between devices with its network. read: (network, images) -> features."""

    def __init__(self, network: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.read = network, read

    def forward(self, images: Tensor) -> Tensor:
        return self.read(self.network, images)


@ENCODERS.register("digits-classifier")
def digits_classifier(folder: str | None = None) -> Encoder:
    """The last feature map of the 8×8 digits classifier.

    folder: of another classifier than the shipped one.
    """
    from dinit.evaluation.features.digits_classifier import SHIPPED, DigitsClassifier

    classifier = DigitsClassifier.from_pretrained(user_path(folder) if folder else SHIPPED)
    return Reader(classifier, lambda network, images: network.last_map(images))


@ENCODERS.register("glyphs-classifier")
def glyphs_classifier(folder: str | None = None, layer: int = 3) -> Encoder:
    """A feature map of the glyphs classifier, at 16, 16, 8, 8 or 4 pixels.

    layer: 0 to 4. folder: of another classifier than the shipped one.
    ValueError for another layer.
    """
    from dinit.evaluation.features.glyphs_classifier import SHIPPED, GlyphsClassifier

    if not 0 <= layer <= 4:
        raise ValueError(f"the glyphs classifier has the layers 0 to 4, got layer = {layer}")
    classifier = GlyphsClassifier.from_pretrained(user_path(folder) if folder else SHIPPED)
    return Reader(classifier, lambda network, images: network.maps(images)[layer])


@ENCODERS.register("dinov2")
def dinov2(weights: str, side: int = 224) -> Encoder:
    """DINOv2's patch tokens after the last norm, as published for REPA. Oquab et al. 2023.

    weights: a published file, as dinov2_vitb14_pretrain.pth. side: pixels that images are resized to, bicubic, a
    multiple of the patch's; grey is repeated to RGB. ValueError for a file that holds no such weights.
    """
    from dinit.evaluation.features.dinov2 import MEAN, STD, read_weights, tokens

    on: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): read_weights(user_path(weights), "cpu")}

    def encode(images: Tensor) -> Tensor:
        if images.device not in on:
            on[images.device] = {name: value.to(images.device) for name, value in next(iter(on.values())).items()}
        mean, std = (upload(torch.tensor(v).view(3, 1, 1), images.device) for v in (MEAN, STD))
        x = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
        return tokens(on[images.device], ((x.expand(-1, 3, -1, -1) + 1) / 2 - mean) / std)[:, 1:]

    return encode
