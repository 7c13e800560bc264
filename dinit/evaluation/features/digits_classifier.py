"""A small classifier of 8×8 digits: it reads generated digits, and its features are the space of our FID.

Its recipe is this file: `python -m dinit.evaluation.features.digits_classifier --out FOLDER` makes it again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.data.digits import Digits
from dinit.data.order import sample_indices
from dinit.evaluation.features.classifier_folder import read_classifier, save_classifier

SHIPPED = Path(__file__).parents[2] / "pretrained" / "digits-classifier"


@dataclass(frozen=True)
class ClassifierConfig:
    """width: channels at 8×8; twice as many at 4×4, and as features."""

    width: int = 36
    num_classes: int = 10


class DigitsClassifier(nn.Module):
    """Four 3×3 convolutions with batch norm, two at 8×8 and two at 4×4, then the mean over places."""

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config or ClassifierConfig()
        near, far = self.config.width, 2 * self.config.width
        widths = ((1, near), (near, near), (near, far), (far, far))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)
        self.head = nn.Linear(far, self.config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) float in [-1, 1] -> (B, 2 · width). ValueError for another shape."""
        return self.last_map(images).mean(dim=(2, 3))

    def last_map(self, images: Tensor) -> Tensor:
        """The features before the mean over places, (B, 2 · width, 4, 4), from images as in `features`."""
        if images.ndim != 4 or images.shape[1:] != (1, 8, 8):
            raise ValueError(f"the digits classifier reads (B, 1, 8, 8) images, got {tuple(images.shape)}")
        x = images
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            if depth == 1:
                x = F.max_pool2d(x, 2)  # (B, width, 4, 4)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) float in [-1, 1] -> logits (B, num_classes)."""
        return self.head(self.features(images))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model.safetensors and config.json, each whole or not at all."""
        save_classifier(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path = SHIPPED) -> DigitsClassifier:
        """Reads what `save_pretrained` wrote, in evaluation mode. ValueError for anything else."""
        return read_classifier(
            folder,
            lambda said: cls(ClassifierConfig(**said)),
            "digits",
            "dinit.evaluation.features.digits_classifier",
        )


@lru_cache(maxsize=2)
def load_classifier(folder: Path = SHIPPED) -> DigitsClassifier:
    """The classifier in `folder`, read once and shared. Do not train it."""
    return DigitsClassifier.from_pretrained(folder)


@torch.no_grad()
def classify(images: Tensor, model: DigitsClassifier | None = None) -> tuple[Tensor, Tensor]:
    """Reads digits. images: (N, 1, 8, 8) float in [-1, 1]. Labels (N,) int64 and probabilities (N, 10).

    model: the shipped one by default. ValueError for another shape, or integer images.
    """
    if not images.is_floating_point():
        raise ValueError(f"classify reads float images in [-1, 1], got {images.dtype}; see dinit.data.from_uint8")
    model = model or load_classifier()
    device = next(model.parameters()).device
    pieces = images.to(device, torch.float32).split(1024)
    probs = torch.cat([model(piece).softmax(dim=1) for piece in pieces]) if len(images) else torch.empty(0, 10)
    return probs.argmax(dim=1).to(images.device), probs.to(images.device)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotated by up to 12°, scaled by up to 10 %, moved by up to 1 pixel, with a little noise. Same shape."""
    batch = len(images)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(batch, generator=generator) - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    shift = 2 / images.shape[-1]  # one pixel, in the [-1, 1] coordinates of affine_grid
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack([cos, -sin, uniform(shift), sin, cos, uniform(shift)], dim=1)
    grid = F.affine_grid(rows.view(batch, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside the image is black, -1
    noise = torch.randn(images.shape, generator=generator) * 0.1 * torch.rand(batch, 1, 1, 1, generator=generator)
    return (moved + noise).clamp(-1, 1)


def train_classifier(
    seed: int = 0, epochs: int = 60, batch_size: int = 128, learning_rate: float = 4e-3
) -> DigitsClassifier:
    """Trains on the digits' train split alone. Half of every batch is augmented, so that the classifier knows
    both clean and shifted digits. AdamW, one-cycle rate, label smoothing 0.05; returns evaluation mode.
    """
    data = Digits("train")
    images = torch.stack([data.image(i) for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    steps = epochs * len(data) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    model.train()
    for step in range(steps):
        chosen = sample_indices(seed, step * batch_size, batch_size, len(data))
        clean, target = images[chosen], labels[chosen]
        half = batch_size // 2
        batch = torch.cat([augment(clean[:half], generator), clean[half:]])
        loss = F.cross_entropy(model(batch), target, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def accuracy(model: DigitsClassifier, split: str = "test") -> float:
    """The share of the split's digits that the classifier reads as their label."""
    data = Digits(split)
    images = torch.stack([data.image(i) for i in range(len(data))])
    return float((classify(images, model)[0] == torch.from_numpy(data.labels)).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits classifier that evaluation uses.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and config.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    started = time.perf_counter()
    model = train_classifier(options.seed, options.epochs)
    seconds = time.perf_counter() - started
    model.save_pretrained(options.out)
    print(f"{seconds:.0f} s; accuracy: train {accuracy(model, 'train'):.4f}, test {accuracy(model):.4f}")


if __name__ == "__main__":
    main()
