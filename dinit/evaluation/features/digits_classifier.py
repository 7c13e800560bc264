"""Digits classifier: a small network for 8×8 digits, whose features FID on digits is measured with.

`python -m dinit.evaluation.features.digits_classifier --out FOLDER` trains it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.data.digits import Digits
from dinit.data.order import sample_indices
from dinit.evaluation.features.classifier_folder import fit, read_classifier, save_classifier, train_and_save

SHIPPED = Path(__file__).parents[2] / "pretrained" / "digits-classifier"


@dataclass(frozen=True)
class ClassifierConfig:
    """Sizes of a DigitsClassifier. width: channels at 8×8; twice as many at 4×4, and as features."""

    width: int = 36
    num_classes: int = 10


class DigitsClassifier(nn.Module):
    """Classifier of digits: four 3×3 convolutions with batch norm, two at 8×8 and two at 4×4, and average pooling.

    Args:
        config: its sizes; by default those of the shipped one.
    """

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config or ClassifierConfig()
        near, far = self.config.width, 2 * self.config.width
        widths = ((1, near), (near, near), (near, far), (far, far))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b in widths)
        self.head = nn.Linear(far, self.config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 2 · width) of images (B, 1, 8, 8), float in [-1, 1]. ValueError for another shape."""
        return self.last_map(images).mean(dim=(2, 3))

    def last_map(self, images: Tensor) -> Tensor:
        """Last feature map, before average pooling.

        Args:
            images: (B, 1, 8, 8), float in [-1, 1].

        Returns:
            (B, 2 · width, 4, 4).

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1:] != (1, 8, 8):
            raise ValueError(f"the digits classifier reads (B, 1, 8, 8) images, got {tuple(images.shape)}")
        x = images
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.relu(norm(convolution(x)))
            if depth == 1:
                x = F.max_pool2d(x, 2)  # (B, width, 4, 4)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 1, 8, 8), float in [-1, 1]."""
        return self.head(self.features(images))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into a folder, each whole or not at all."""
        save_classifier(self, self.config, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path = SHIPPED) -> DigitsClassifier:
        """Classifier in a folder of `save_pretrained`, in evaluation mode. ValueError for another folder."""
        return read_classifier(
            folder,
            lambda config: cls(ClassifierConfig(**config)),
            "digits",
            "dinit.evaluation.features.digits_classifier",
        )


@lru_cache(maxsize=2)
def load_classifier(folder: Path = SHIPPED) -> DigitsClassifier:
    """Classifier in `folder`, read once and shared; do not train it."""
    return DigitsClassifier.from_pretrained(folder)


@torch.no_grad()
def classify(images: Tensor, model: DigitsClassifier | None = None) -> tuple[Tensor, Tensor]:
    """Classes of digits, and their probabilities.

    Args:
        images: (N, 1, 8, 8), float in [-1, 1].
        model: the classifier; by default the shipped one.

    Returns:
        Labels (N,) int64 and probabilities (N, 10).

    Raises:
        ValueError: integer images or another shape.
    """
    if not images.is_floating_point():
        raise ValueError(f"classify reads float images in [-1, 1], got {images.dtype}; see dinit.data.from_uint8")
    model = model or load_classifier()
    device = next(model.parameters()).device
    pieces = images.to(device, torch.float32).split(1024)
    probs = torch.cat([model(piece).softmax(dim=1) for piece in pieces]) if len(images) else torch.empty(0, 10)
    return probs.argmax(dim=1).to(images.device), probs.to(images.device)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images rotated by up to 12°, scaled by up to 10 %, shifted by up to 1 pixel, with noise. Same shape."""
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
    """Train a digits classifier on the train split.

    Half of every batch is augmented, so that it learns clean and shifted digits. AdamW, one-cycle rate, label
    smoothing 0.05.

    Args:
        seed: of initialisation, order and augmentation.
        epochs: passes over the train split.
        batch_size: images of a step.
        learning_rate: maximum of the schedule.

    Returns:
        The classifier, in evaluation mode and frozen.
    """
    data = Digits("train")
    images = torch.stack([data.image(i) for i in range(len(data))])
    labels = torch.from_numpy(data.labels)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsClassifier()

    def loss(step: int) -> Tensor:
        chosen = sample_indices(seed, step * batch_size, batch_size, len(data))
        clean, half = images[chosen], batch_size // 2
        batch = torch.cat([augment(clean[:half], generator), clean[half:]])
        return F.cross_entropy(model(batch), labels[chosen], label_smoothing=0.05)

    return fit(model, loss, epochs * len(data) // batch_size, learning_rate)


def accuracy(model: DigitsClassifier, split: str = "test") -> float:
    """Accuracy of the classifier on a split of the digits, in [0, 1]."""
    data = Digits(split)
    images = torch.stack([data.image(i) for i in range(len(data))])
    return float((classify(images, model)[0] == torch.from_numpy(data.labels)).double().mean())


def _accuracies(model: DigitsClassifier) -> str:
    return f"train {accuracy(model, 'train'):.4f}, test {accuracy(model):.4f}"


if __name__ == "__main__":
    train_and_save(train_classifier, "epochs", 60, _accuracies)
