"""Reference statistics of a user's images: from a folder, a pack or a data set to a file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinit.data import DATASETS, ImageData
from dinit.data.class_names import sorted_names
from dinit.data.scan import is_added
from dinit.evaluation.evaluate import make_extractor, protocol_of
from dinit.evaluation.features.base import Extractor
from dinit.evaluation.features.trained_classifier import check_fits, resolved
from dinit.evaluation.image_features import ImageSource
from dinit.evaluation.reference import DataImages, load_reference, make_statistics, write_statistics
from dinit.evaluation.samples import is_samples, read_samples
from dinit.files import user_path
from dinit.progress import stage


def write_reference(
    what: str | Path | Mapping[str, Any] | ImageData,
    out: str | Path,
    *,
    protocol: str | None = None,
    features: str | Mapping[str, Any] | Extractor | None = None,
    cuda: bool | None = None,
) -> Mapping[str, Any]:
    """Write the statistics of real images to `out` and return the metadata in the file.

    what: a folder of pictures or a pack (.npz, .npy), used as they are; or a data set by its spec, every image of
    it. protocol, features, cuda: as for `dinit.evaluation.evaluate_images`; for a folder or a pack without either,
    the features are Inception's. ValueError for images that the features cannot read, and fewer than 8.
    """
    images: ImageSource
    if isinstance(what, str | Path) and is_samples(what):
        path = user_path(what)
        inside = [entry.name for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []
        names = sorted_names(name for name in inside if not name.startswith(".") and not is_added(name))
        with stage(f"reading the images of {path}"):
            read = read_samples(path, names)
        for note in read.notes:
            warnings.warn(f"{path}: {note}", stacklevel=2)
        images, labels = read.images, None if read.labels is None else read.labels.numpy()
        dataset, own, class_names = path.resolve().name, None, names if labels is not None else []
    else:
        spec = DATASETS.parse(str(what)) if isinstance(what, str | Path) else what
        data: ImageData = DATASETS.create(spec)
        images, labels, own = DataImages(data), data.labels if data.num_classes else None, data.features
        dataset, class_names = getattr(data, "registry_name", type(data).__name__), list(data.class_names)
    given = resolved(features)
    named = protocol_of(protocol, given, own)
    extractor = make_extractor(named, given)
    check_fits(extractor, class_names)
    about = {"dataset": dataset, "fingerprint": fingerprint(images), "class_names": list(class_names)}
    write_statistics(user_path(out), make_statistics(images, labels, extractor, named, about, cuda))
    return load_reference(out).meta


def fingerprint(images: ImageSource) -> str:
    """SHA-256 over all pixels and the shape of the set; the start of it."""
    digest = hashlib.sha256(f"{len(images)} {tuple(images[0:1].shape[1:])}".encode())
    for start in range(0, len(images), 256):
        digest.update(np.ascontiguousarray(images[start : start + 256].numpy()).tobytes())
    return digest.hexdigest()[:32]
