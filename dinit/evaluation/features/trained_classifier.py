"""Classifiers of `dinit classifier` as feature extractors: found by folder, by name, by hash, or by the data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.data import ImageData
from dinit.data.pixels import from_uint8
from dinit.evaluation.features.base import EXTRACTORS, SPATIAL_CHANNELS, Extracted, Extractor
from dinit.evaluation.features.image_classifier import (
    ImageClassifier,
    ImageClassifierConfig,
    is_classifier,
    load_image_classifier,
    predict,
    read_config,
)
from dinit.files import user_path
from dinit.registry import suggest

KIND = "classifier"
OF_USER = Path("classifiers")  # where `dinit classifier` puts those of folders and data sets
_SHIPPED = Path(__file__).parents[2] / "pretrained"


@EXTRACTORS.register(KIND)
@dataclass(frozen=True)
class TrainedExtractor(Extractor):
    """Classifier of `dinit classifier` as an extractor of its pooled features and labels.

    Args:
        weights: its folder.

    Raises:
        ValueError: no folder was given.
    """

    resize: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        if self.weights is None:
            raise ValueError(
                "the features 'classifier' need a folder: --features FOLDER, which `dinit classifier` made"
            )

    @property
    def folder(self) -> Path:
        """Folder of the classifier."""
        return user_path(self.weights or "")

    @property
    def classifier(self) -> ImageClassifier:
        """The classifier, read once. ValueError for another folder, or a changed one."""
        return load_image_classifier(self.folder)

    @property
    def name(self) -> str:
        """Name of the features and of their protocol, by the classifier's hash: classifier-1a2b3c4d."""
        return protocol_name(self.classifier.hash)

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        model = copy.deepcopy(self.classifier).to(device)  # the shared one stays where its other users expect it

        def run(images: Tensor) -> Extracted:
            last = model.last_map(from_uint8(images))
            pooled = last.mean(dim=(2, 3))
            places = last[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1) if spatial else None
            return Extracted(pooled, model.head(pooled), places)

        return run

    def weights_path(self) -> Path:
        _ = self.classifier
        return self.folder

    def weights_hash(self) -> str:
        return self.classifier.hash

    def prepare(self, images: Tensor) -> Tensor:
        shape = self.classifier.shape
        if tuple(images.shape[1:]) != shape:
            raise ValueError(
                f"{self.folder} classifies pictures of {described(self.classifier.config)}, got "
                f"(C, H, W) = {tuple(images.shape[1:])}; train one of these: `dinit classifier RUN`, or "
                f"with size= as in `dinit classifier folder:path=photos,size=64`"
            )
        return images

    def class_names(self) -> tuple[str, ...]:
        return self.classifier.config.class_names

    def read_labels(self, images: Tensor) -> Tensor:
        return predict(self.classifier, images).argmax(dim=1)


def protocol_name(weights: str) -> str:
    """Name of the protocol by a classifier of this hash."""
    return f"{KIND}-{weights[:8]}"


def described(config: ImageClassifierConfig) -> str:
    """Size and colour, as in 28×28 grey."""
    return f"{config.image_size}×{config.image_size} {'grey' if config.channels == 1 else 'RGB'}"


def resolved(features: Any) -> Any:
    """Features with a classifier's folder or name in place of its extractor; anything else unchanged.

    Args:
        features: name, mapping, object or function, as an `EvaluationSpec` has it; a folder of `dinit classifier`,
            the name of one in classifiers/ or of a shipped one, or classifier-HASH.

    Raises:
        ValueError: a text that is none of these.
    """
    if isinstance(features, Mapping) and set(features) == {"name"}:
        features = features["name"]
    if not isinstance(features, str | Path) or str(features) in EXTRACTORS:
        return features
    if ":" in str(features) and str(features).partition(":")[0] in EXTRACTORS:
        return features
    for place in (user_path(features), OF_USER / features, _SHIPPED / features):
        if is_classifier(place):
            return TrainedExtractor(place)
        if is_classifier(place / KIND):  # a run
            return TrainedExtractor(place / KIND)
    if str(features).startswith(f"{KIND}-"):
        return by_protocol(str(features))
    known = [*EXTRACTORS.names(), *(place.name for place in known_folders())]
    path = user_path(features)
    if path.exists():
        raise ValueError(f"{features} holds no classifier; `dinit classifier DATA --out {features}` makes one")
    raise ValueError(f"unknown feature extractor {str(features)!r}{suggest(str(features), known)}")


def known_folders(places: Sequence[Path] = ()) -> Iterator[Path]:
    """Folders of classifiers: the given places, those in classifiers/ here, and the shipped ones."""
    yield from (place for place in places if is_classifier(place))
    for parent in (OF_USER, _SHIPPED):
        if parent.is_dir():
            yield from (place for place in sorted(parent.iterdir()) if is_classifier(place))


def by_protocol(name: str, places: Sequence[Path] = ()) -> TrainedExtractor:
    """Extractor of the classifier with this protocol's name.

    Args:
        name: classifier-HASH.
        places: folders to look in besides classifiers/ and the shipped ones.

    Raises:
        ValueError: none is of this hash; the message names those that are there.
    """
    found = {protocol_name(read_config(place)[2]): place for place in reversed(list(known_folders(places)))}
    if name not in found:
        there = ", ".join(f"{one} ({place})" for one, place in found.items()) or "none"
        raise ValueError(
            f"the classifier of the protocol {name!r} is not here (here: {there}); give its folder, "
            f"--features FOLDER. Another classifier gives other scores, which are not comparable"
        )
    return TrainedExtractor(found[name])


def of_data(
    data: ImageData, name: str, places: Sequence[Path] = (), elsewhere: bool = True
) -> TrainedExtractor | None:
    """Extractor of the classifier of a data set, if there is one.

    Args:
        data: the data set.
        name: of the data, see `classifier_training.data_name`.
        places: folders in which a classifier is taken as that of the data, as a run's own; others, in classifiers/
            and shipped, must be of data of this name, size and classes.
        elsewhere: whether to look in those others.

    Returns:
        Its extractor; of a place whose classifier does not fit the data, too: `check_fits` refuses it.
    """
    for place in places:
        if is_classifier(place):
            return TrainedExtractor(place)
    for place in known_folders() if elsewhere else ():
        config, card, _ = read_config(place)
        if card.data == name and not misfits(config, tuple(data.class_names), data.channels, data.image_size):
            return TrainedExtractor(place)
    return None


def misfits(
    config: ImageClassifierConfig, class_names: Sequence[str], channels: int | None, image_size: int | None
) -> list[str]:
    """Reasons why a classifier does not fit data of these classes and sizes; None is any."""
    found = []
    theirs = (config.channels if channels is None else channels, image_size or config.image_size)
    if theirs != (config.channels, config.image_size):
        kind = "grey" if theirs[0] == 1 else f"{theirs[0]} channels"
        found.append(
            f"it classifies {described(config)} pictures, these are {theirs[1]}×{theirs[1]} "
            f"{'RGB' if theirs[0] == 3 else kind}"
        )
    ours, names = config.class_names, tuple(class_names)
    if ours == names or not names:
        return found
    missing, more = [n for n in names if n not in ours], [n for n in ours if n not in names]
    if missing or more:
        parts = [f"it has no {_some(missing)}"] if missing else []
        parts += [f"it has {_some(more)}, which these have not"] if more else []
        found.append(f"its classes are others: {'; '.join(parts)}")
    else:
        found.append(f"its classes are in another order: {_some(ours)}, not {_some(names)}")
    return found


def check_fits(
    extractor: Extractor, class_names: Sequence[str], channels: int | None = None, image_size: int | None = None
) -> None:
    """ValueError where a classifier is of other classes or sizes than the data. Other extractors fit."""
    if not isinstance(extractor, TrainedExtractor):
        return
    reasons = misfits(extractor.classifier.config, class_names, channels, image_size)
    if reasons:
        raise ValueError(
            f"the classifier in {extractor.folder} does not fit: {'; '.join(reasons)}. Train one on these "
            f"pictures, `dinit classifier RUN` or `dinit classifier DATA`, or choose other features by --features"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown
