"""Image classifier: a small residual network for pictures of one size, with its folder of weights and figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dinit.cards import CardMetadata, write_card
from dinit.data.pixels import from_uint8
from dinit.files import user_path, whole_folder

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
POOR = 0.7  # held-out accuracy below which a classifier measures little
SMALLEST, LARGEST = 8, 256  # pixels of a side
_NEAR, _FAR = 16, 8  # sides, at most, of the two maps on which the residual blocks work


@dataclass(frozen=True)
class ImageClassifierConfig:
    """Sizes and classes of an ImageClassifier.

    Attributes:
        image_size: height = width in pixels, 8 to 256.
        channels: 1 (grey) or 3 (RGB).
        class_names: one for each class, at least two, in the order of the outputs.
        width: channels of the first blocks; twice as many afterwards, and as features.

    Raises:
        ValueError: values outside these ranges, or two classes of one name.
    """

    image_size: int
    channels: int
    class_names: tuple[str, ...]
    width: int = 32

    def __post_init__(self) -> None:
        if not SMALLEST <= self.image_size <= LARGEST:
            raise ValueError(
                f"a classifier reads pictures of {SMALLEST} to {LARGEST} pixels, got {self.image_size}; "
                f"give another size, as in folder:path=photos,size=64"
            )
        if self.channels not in (1, 3):
            raise ValueError(f"a classifier reads pictures of 1 or 3 channels, got {self.channels}")
        if len(self.class_names) < 2:
            names = ", ".join(map(repr, self.class_names)) or "none"
            raise ValueError(f"a classifier needs at least two classes, got {names}: there is nothing to classify")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"two classes have the same name: {', '.join(self.class_names)}")
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")


@dataclass(frozen=True)
class ClassifierCard:
    """Facts of a classifier's training, as its config.json has them.

    Attributes:
        data: name of the pictures: of their folder, or of the data set.
        fingerprint: of the pictures that it was trained on.
        images: number of pictures that it was trained on.
        per_class: the same for each class.
        held_out_rule: how the held-out pictures were chosen.
        held_out: number of held-out pictures.
        accuracy: share of them that is classified rightly, in [0, 1].
        low: lower end of its 95 % interval.
        high: upper end of it.
        class_accuracy: accuracy of each class; None for a class without held-out pictures.
        training: seed, steps, batch size, augmentation and seconds.
    """

    data: str = "unknown"
    fingerprint: str = ""
    images: int = 0
    per_class: tuple[int, ...] = ()
    held_out_rule: str = "none"
    held_out: int = 0
    accuracy: float = 0.0
    low: float = 0.0
    high: float = 1.0
    class_accuracy: tuple[float | None, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to their input. He et al. 2016. width: channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) of a map of the same shape."""
        hidden = F.relu(self.norms[0](self.convolutions[0](x)))
        return F.relu(x + self.norms[1](self.convolutions[1](hidden)))


class ImageClassifier(nn.Module):
    """Residual classifier of square pictures: strided convolutions to 16 pixels or fewer, then three blocks.

    Args:
        config: its sizes and classes.
        card: facts of its training, where it has been trained.
    """

    def __init__(self, config: ImageClassifierConfig, card: ClassifierCard | None = None) -> None:
        super().__init__()
        self.config, self.card, self.hash = config, card or ClassifierCard(), ""
        near, far = config.width, 2 * config.width
        stem: list[nn.Module] = []
        channels, side = config.channels, config.image_size
        while not stem or side > _NEAR:
            stride = 2 if side > _NEAR else 1
            side = -(-side // stride)
            out = near if side <= _NEAR else max(8, near // 2)
            reach = 3 if stem else 5  # 5×5 covers a stroke and both its edges
            stem += [
                nn.Conv2d(channels, out, reach, stride, reach // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        self.stem = nn.Sequential(*stem)
        self.near = ResidualBlock(near)
        stride = 2 if side > _FAR // 2 else 1
        self.down = nn.Sequential(nn.Conv2d(near, far, 3, stride, 1, bias=False), nn.BatchNorm2d(far), nn.ReLU())
        self.far = nn.Sequential(ResidualBlock(far), ResidualBlock(far))
        self.head = nn.Linear(far, len(config.class_names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures that it reads."""
        return self.config.channels, self.config.image_size, self.config.image_size

    def last_map(self, images: Tensor) -> Tensor:
        """Last feature map, before average pooling.

        Args:
            images: (B, C, S, S), float in [-1, 1].

        Returns:
            (B, 2 · width, H, W), of 4 to 8 pixels a side.

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"this classifier reads images (B, {_shown(self.shape)}), got {tuple(images.shape)}")
        return self.far(self.down(self.near(self.stem(images))))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 2 · width) of images (B, C, S, S), float in [-1, 1]. ValueError for another shape."""
        return self.last_map(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, S, S), float in [-1, 1]."""
        return self.head(self.features(images))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, config.json and a card into a folder, which is replaced whole or not at all."""
        content = save({name: tensor.contiguous() for name, tensor in self.state_dict().items()})
        self.hash = content_hash(content, self.config)
        config = {
            "format": FORMAT,
            "hash": self.hash,
            "network": {**asdict(self.config), "class_names": list(self.config.class_names)},
            "trained": asdict(self.card),
        }
        with whole_folder(user_path(folder)) as temporary:
            (temporary / WEIGHTS).write_bytes(content)
            text = json.dumps(config, indent=2, ensure_ascii=False)
            (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
            write_card(temporary, _card_text(self, user_path(folder).name))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImageClassifier:
        """Classifier in a folder of `save_pretrained`, in evaluation mode and frozen.

        Args:
            folder: with both files.

        Raises:
            ValueError: another folder, a damaged file, or weights or classes that were changed afterwards.
        """
        place = user_path(folder)
        network, trained, stated = read_config(place)
        try:
            content = (place / WEIGHTS).read_bytes()
        except OSError as error:
            raise ValueError(f"{place / WEIGHTS} cannot be read ({error.strerror}); {_MAKE}") from error
        if content_hash(content, network) != stated:
            raise ValueError(
                f"{place} was changed after its training: its weights or its classes "
                f"({_some(network.class_names)}) "
                f"are not those of its hash {stated}; copy the folder again, or {_MAKE}"
            )
        try:
            model = cls(network, trained)
            model.load_state_dict(load(content))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{place / WEIGHTS} does not fit {CONFIG} ({error}); {_MAKE}") from error
        model.hash = stated
        return model.eval().requires_grad_(False)


_MAKE = "`dinit classifier DATA --out FOLDER` makes such a folder"


def read_config(folder: Path) -> tuple[ImageClassifierConfig, ClassifierCard, str]:
    """Network, facts of the training and hash in a classifier's config.json; its weights are not read.

    ValueError for a folder without it, or with another one.
    """
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        network = dict(content["network"])
        network["class_names"] = tuple(map(str, network["class_names"]))
        trained: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content["trained"].items()
        }
        return ImageClassifierConfig(**network), ClassifierCard(**trained), str(content["hash"])
    except OSError as error:
        raise ValueError(f"{folder} holds no classifier: no {CONFIG} in it; {_MAKE}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not that of a classifier of `dinit classifier` ({error}); {_MAKE}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used ({error}); {_MAKE}") from error


def is_classifier(folder: Path) -> bool:
    """Whether a folder is one of `ImageClassifier.save_pretrained`, by its config.json."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"network", "trained", "hash"} <= content.keys()


def content_hash(weights: bytes, config: ImageClassifierConfig) -> str:
    """First 16 digits of the SHA-256 over the weights' file and the config: sizes, and classes in their order."""
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(asdict(config), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def load_image_classifier(folder: Path) -> ImageClassifier:
    """Classifier in `folder`, read once and shared; do not train it. ValueError for another folder."""
    config = user_path(folder).resolve() / CONFIG
    return _loaded(config.parent, config.stat().st_mtime_ns if config.is_file() else 0)


@lru_cache(maxsize=4)
def _loaded(folder: Path, _written: int) -> ImageClassifier:
    return ImageClassifier.from_pretrained(folder)


@torch.no_grad()
def predict(model: ImageClassifier, images: Tensor) -> Tensor:
    """Logits (N, classes) of images (N, C, S, S) uint8, computed in batches on the model's device.

    ValueError for another shape.
    """
    device = model.head.weight.device
    pieces = [model(from_uint8(piece).to(device)).cpu() for piece in images.split(512)]
    return torch.cat(pieces) if pieces else torch.empty(0, len(model.config.class_names))


def _shown(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", and {len(names) - 8} more" if len(names) > 8 else "")


def _card_text(model: ImageClassifier, name: str) -> str:
    card, config = model.card, model.config
    head = CardMetadata(
        ("classification", "evaluation"),
        pipeline_tag="image-classification",
        datasets=(card.data,),
        metrics=("accuracy",),
    )
    colour = "grey" if config.channels == 1 else "RGB"
    parameters = sum(one.numel() for one in model.parameters())
    flips = "mirrored at random" if card.training.get("flip") else "never mirrored"
    how = card.training
    lines = [
        f"{head.front_matter()}# {name}",
        "",
        f"A classifier of {len(config.class_names)} classes of {config.image_size}×{config.image_size} {colour} "
        "pictures, by `dinit classifier`. `dinit evaluate` measures class accuracy, FID, precision and recall with "
        f"it, by the protocol `classifier-{model.hash[:8]}`, which no other classifier has.",
        "",
        "| | |",
        "|---|---|",
        f"| classes, in order | {', '.join(config.class_names)} |",
        f"| data | {card.data}, {card.images:,} pictures ({min(card.per_class, default=0):,} to "
        f"{max(card.per_class, default=0):,} a class), fingerprint {card.fingerprint[:16]} |",
        f"| held out | {card.held_out_rule}: {card.held_out:,} pictures, not trained on |",
        f"| held-out accuracy | {card.accuracy:.2%}, 95 % interval {card.low:.2%} to {card.high:.2%} |",
        f"| network | residual, {parameters:,} parameters, {2 * config.width} features |",
        f"| training | {how.get('steps', 0):,} steps of {how.get('batch_size', 0)}, seed {how.get('seed', 0)}; "
        f"moved by up to {how.get('shift', 0)} pixels, {flips}; AdamW, one-cycle rate, label smoothing 0.05 |",
        f"| time | {how.get('seconds', 0):.0f} s on {how.get('device', 'cpu')} |",
        "",
        "Limits: it has no class for pictures of anything else, so a high class accuracy means that pictures are "
        "of their class, not that they look real: use it together with FID, precision and recall. Scores in its "
        "features are comparable with each other only.",
    ]
    return "\n".join(lines) + "\n"
