"""Glyphs classifier: a small network that reads the character, font, rotation, scale and colours of a glyph.

FID on glyphs is measured with its features. `python -m dinit.evaluation.features.glyphs_classifier --out FOLDER`
trains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.data.glyphs import FONTS, Factors, Glyphs
from dinit.data.pixels import from_uint8
from dinit.evaluation.features.classifier_folder import fit, read_classifier, save_classifier, train_and_save

SHIPPED = Path(__file__).parents[2] / "pretrained" / "glyphs-classifier"
SIDE = 32
_NUMBERS = 7  # rotation, scale, background, and the cosine and sine of two hues
ROTATION_UNIT, SCALE_MEAN, SCALE_RATE = 8.8, 62 / 128, 21  # of `standardised`


@dataclass(frozen=True)
class GlyphsClassifierConfig:
    """Sizes of a GlyphsClassifier. widths: of the five convolutions. class_names, fonts: outputs of the heads."""

    widths: tuple[int, ...] = (32, 48, 80, 80, 112)
    class_names: tuple[str, ...] = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    fonts: tuple[str, ...] = FONTS


@dataclass(frozen=True)
class Reading:
    """Outputs of the network for B images.

    Attributes:
        characters: logits (B, 36).
        fonts: logits (B, 10).
        numbers: (B, 7), standardised factors; see `standardised`.
    """

    characters: Tensor
    fonts: Tensor
    numbers: Tensor


class GlyphsClassifier(nn.Module):
    """Classifier of glyphs: five convolutions with batch norm, at 16×16, 16×16, 8×8, 8×8 and 4×4, average pooling.

    Args:
        config: its sizes; by default those of the shipped one.
    """

    def __init__(self, config: GlyphsClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config or GlyphsClassifierConfig()
        widths = self.config.widths
        self.convolutions = nn.ModuleList()
        for depth, (a, b) in enumerate(zip((3, *widths), widths, strict=False)):
            side = 5 if depth == 0 else 3  # 5×5 covers a stroke and both its edges
            self.convolutions.append(nn.Conv2d(a, b, side, 2 - depth % 2, side // 2, bias=False))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths)
        self.head = nn.Linear(widths[-1], len(self.config.class_names))
        self.font_head = nn.Linear(widths[-1], len(self.config.fonts))
        self.number_head = nn.Linear(widths[-1], _NUMBERS)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 112) of images (B, 3, S, S) in [-1, 1]. ValueError unless S is a multiple of 32."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature map of each convolution, (B, C, H, W) at 16, 16, 8, 8 and 4; images as for `features`."""
        found = [shrink(images)]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            found.append(F.relu(norm(convolution(found[-1]))))
        return found[1:]

    def read(self, images: Tensor) -> Reading:
        """Outputs of all heads; images as for `features`."""
        found = self.features(images)
        return Reading(self.head(found), self.font_head(found), self.number_head(found))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the characters, (B, classes); images as for `features`."""
        return self.head(self.features(images))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into a folder, each whole or not at all."""
        save_classifier(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path = SHIPPED) -> GlyphsClassifier:
        """Classifier in a folder of `save_pretrained`, in evaluation mode. ValueError for another folder."""

        def make(config: Mapping[str, Any]) -> GlyphsClassifier:
            return cls(GlyphsClassifierConfig(**{key: tuple(value) for key, value in config.items()}))

        return read_classifier(folder, make, "glyphs", "dinit.evaluation.features.glyphs_classifier")


def shrink(images: Tensor) -> Tensor:
    """Images (B, 3, S, S) averaged over squares to (B, 3, 32, 32). ValueError unless S is a multiple of 32."""
    side = images.shape[-1]
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != side or side % SIDE or not side:
        wanted = f"(B, 3, {SIDE}, {SIDE}), or a multiple of that size"
        raise ValueError(f"the glyphs classifier reads images of {wanted}, got {tuple(images.shape)}")
    return images if side == SIDE else F.avg_pool2d(images, side // SIDE)


@lru_cache(maxsize=2)
def load_glyphs_classifier(folder: Path = SHIPPED) -> GlyphsClassifier:
    """Classifier in `folder`, read once and shared; do not train it."""
    return GlyphsClassifier.from_pretrained(folder)


@torch.no_grad()
def read_glyphs(images: Tensor, model: GlyphsClassifier | None = None) -> Reading:
    """Outputs of the classifier for images (N, 3, S, S), uint8 or float in [-1, 1], computed in batches.

    model: by default the shipped one. Results are on the CPU. ValueError for another shape or dtype, or no images.
    """
    if not len(images):
        raise ValueError("there are no images to read, got a batch of 0")
    model = model or load_glyphs_classifier()
    device = next(model.parameters()).device
    pieces = []
    for piece in images.split(512):
        floats = piece if piece.is_floating_point() else from_uint8(piece)
        pieces.append(model.read(floats.to(device, torch.float32)))
    parts = zip(*((p.characters, p.fonts, p.numbers) for p in pieces), strict=True)
    return Reading(*(torch.cat(part).cpu() for part in parts))


def standardised(factors: Factors) -> Tensor:
    """Targets of the number head, (N, 7) float32, each of about unit variance over the data set.

    Rotation / 8.8°, (scale - 62/128) · 21, (background - 127.5) / 90, then √2 times the cosine and sine of the hue
    of the ink and of the background.
    """
    hue, ground = (torch.deg2rad(torch.as_tensor(h).double()) for h in (factors.hue, factors.background_hue))
    root = math.sqrt(2)
    columns = (
        torch.as_tensor(factors.rotation) / ROTATION_UNIT,
        (torch.as_tensor(factors.scale) - SCALE_MEAN) * SCALE_RATE,
        (torch.as_tensor(factors.background) - 127.5) / 90,
        *(root * turn for angle in (hue, ground) for turn in (angle.cos(), angle.sin())),
    )
    return torch.stack([column.float() for column in columns], dim=-1)


def train_glyphs_classifier(
    seed: int = 0,
    steps: int = 1500,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    config: GlyphsClassifierConfig | None = None,
) -> GlyphsClassifier:
    """Train a glyphs classifier on the train split, every image once; half of each batch is noisy.

    The loss is the cross-entropy of the character (label smoothing 0.05), half that of the font, and the squared
    error of the numbers. AdamW, one-cycle rate.

    Args:
        seed: of initialisation and noise.
        steps: optimiser steps.
        batch_size: images of a step.
        learning_rate: maximum of the schedule.
        config: sizes of the network; by default those of the shipped one.

    Returns:
        The classifier, in evaluation mode and frozen.
    """
    config = config or GlyphsClassifierConfig()
    data = Glyphs("train", count=steps * batch_size, characters="".join(config.class_names), fonts=config.fonts)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GlyphsClassifier(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss(step: int) -> Tensor:
        chosen = list(range(step * batch_size, (step + 1) * batch_size))
        made = data.factor_arrays(chosen)
        images = from_uint8(data.uint8_images(chosen))
        size = 0.3 * torch.rand(batch_size, 1, 1, 1, generator=generator)
        size[::2] = 0
        images = (images + size * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
        found = model.read(images.to(memory_format=torch.channels_last))
        characters = F.cross_entropy(found.characters, torch.from_numpy(made.label), label_smoothing=0.05)
        fonts = F.cross_entropy(found.fonts, torch.from_numpy(made.font))
        return characters + 0.5 * fonts + F.mse_loss(found.numbers, standardised(made))

    return fit(model, loss, steps, learning_rate)


def accuracy(model: GlyphsClassifier, data: Glyphs) -> float:
    """Accuracy of the characters on a data set, in [0, 1]."""
    found = read_glyphs(data.uint8_images(), model).characters.argmax(1)
    return float((found == torch.from_numpy(data.labels)).double().mean())


if __name__ == "__main__":
    train_and_save(
        train_glyphs_classifier, "steps", 1500, lambda model: f"test {accuracy(model, Glyphs('test')):.4f}"
    )
