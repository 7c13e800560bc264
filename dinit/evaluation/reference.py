"""Reference statistics in a file: of `dinit stats`, with their protocol, or as the ADM evaluator has them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dinit
from dinit.contents import wrong_content
from dinit.data import ImageData, epoch_order
from dinit.data.arrays import channels_first, mapped
from dinit.data.sources import named
from dinit.data.value_range import warn_of_dark_bytes
from dinit.evaluation.features.base import Extractor
from dinit.evaluation.image_features import ImageFeatures, ImageSource, extract, spread_out
from dinit.evaluation.metrics.frechet import frechet_distance, self_test
from dinit.evaluation.metrics.gaussian import Gaussian, gaussian_of
from dinit.evaluation.protocols import NamedProtocol
from dinit.evaluation.samples import ArrayImages
from dinit.files import user_path, write_atomically

FORMAT = 1
_ROWS = 10_000  # images whose features are kept, for KID, precision and recall: as many as ADM's references hold
_PICTURES = 256  # images kept for pages and for sanity checks
_FACTS: dict[str, Any] = {  # of the meta of a file of `dinit stats`
    **dict.fromkeys(("protocol", "features", "weights", "resize", "dataset"), str),
    "count": int,
    "halves_fid": (int, float),
    "class_names": list,
}
_MEAN, _COVARIANCE = ("mu", "sigma"), ("mu_s", "sigma_s")


class DataImages:
    """Data set as an `ImageSource`, which makes its images on demand."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any, /) -> Any:
        chosen = range(*rows.indices(len(self.data))) if isinstance(rows, slice) else rows
        return self.data.uint8_images(list(chosen))


def make_statistics(
    images: ImageSource,
    labels: NDArray[np.int64] | None,
    extractor: Extractor,
    protocol: NamedProtocol,
    about: Mapping[str, Any],
    cuda: bool | None = None,
) -> bytes:
    """Content of a file of reference statistics.

    It also holds the features of up to 10,000 images, and the Fréchet distance between two halves of the set, which
    is the best that a model can reach.

    Args:
        images: (N, C, H, W) uint8, at least 8.
        labels: (N,) int64, or None.
        extractor: gives the features.
        protocol: of the extractor.
        about: dataset, fingerprint and class_names of the images.
        cuda: see `extract`.

    Raises:
        ValueError: fewer than 8 images.
    """
    if len(images) < 8:
        raise ValueError(f"statistics need at least 8 images, got {len(images)}")
    self_test()
    found = extract(images, extractor, spatial=True, cuda=cuda)
    gaussian = found.gaussian
    assert gaussian is not None
    assert found.pooled is not None
    order = epoch_order(0, 0, len(images))
    halves = [gaussian_of(found.pooled[part]) for part in (order[: len(order) // 2], order[len(order) // 2 :])]
    kept = np.sort(order[:_ROWS])
    arrays: dict[str, NDArray] = {"mu": gaussian.mean, "sigma": gaussian.covariance}
    if found.spatial is not None:
        arrays |= {"mu_s": found.spatial.mean, "sigma_s": found.spatial.covariance}
    arrays["features"] = found.pooled[kept]
    if found.logits is not None:
        arrays["logits"] = found.logits[kept]
    if labels is not None:
        arrays["labels"] = labels[kept]
    arrays["pictures"] = spread_out(images, _PICTURES).numpy()
    meta = {
        "format": FORMAT,
        **about,
        "count": len(images),
        "protocol": protocol.name,
        "features": protocol.features,
        "weights": extractor.weights_hash(),
        "resize": extractor.resize,
        "statistics": "mean and unbiased covariance in float64",
        "halves_fid": frechet_distance(*halves),
        "dinit": dinit.__version__,
        "content": content_hash(arrays),
    }
    stream = io.BytesIO()
    np.savez(stream, meta=np.array(json.dumps(meta)), **arrays)  # pyright: ignore[reportArgumentType]
    return stream.getvalue()


def write_statistics(path: Path, content: bytes) -> None:
    """Write what `make_statistics` gave, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def content_hash(arrays: Mapping[str, NDArray]) -> str:
    """First 32 digits of the SHA-256 over names, shapes and bytes of the arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype.str}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Reference:
    """Reference statistics that were read from a file.

    Attributes:
        path: the file.
        arrays: its arrays by name.
        meta: data set, protocol and hashes; empty for files of other programs.
    """

    path: Path
    arrays: Mapping[str, NDArray]
    meta: Mapping[str, Any]

    @property
    def features(self) -> str | None:
        """Name of the extractor that it was made with; None where the file has no such entry."""
        return self.meta.get("features")

    @property
    def dataset(self) -> str:
        """Name of the data set, or of the file."""
        return str(self.meta.get("dataset", self.path.name))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the data set; empty where the file has none."""
        return tuple(self.meta.get("class_names", ()))

    @cached_property
    def description(self) -> str:
        """Name and hash of the content, for reports."""
        if self.meta:
            return f"{self.dataset}, {self.path.name}, {self.meta['content'][:16]}"
        digest = hashlib.sha256()
        with self.path.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return f"{self.path.name}, {digest.hexdigest()[:16]}"

    def featured(
        self, protocol: NamedProtocol, extractor: Extractor, cuda: bool | None = None
    ) -> tuple[ImageFeatures, tuple[str, ...]]:
        """Features of the reference for metrics, and notes for the report.

        Args:
            protocol: of the evaluation.
            extractor: extracts features where the file holds images.
            cuda: whether to run it on a GPU; None is a GPU if there is one.

        Raises:
            ValueError: statistics of other features, weights or another resize.
        """
        self._check(protocol, extractor)
        statistics, spatial = self._gaussian(*_MEAN), self._gaussian(*_COVARIANCE)
        if self.meta:
            pooled, logits = self.arrays["features"], self.arrays.get("logits")
            pictures = ArrayImages(self.arrays["pictures"])
            labels = self.arrays.get("labels")
            found = ImageFeatures(int(self.meta["count"]), pictures, labels, pooled, logits, statistics, spatial)
            half = int(self.meta["count"]) // 2
            return found, (
                f"two halves of the reference, {half:,} images each, are at FID {self.meta['halves_fid']:.4g}",
            )
        if "arr_0" not in self.arrays:
            return ImageFeatures(0, statistics=statistics, spatial=spatial), ()
        with named(self.path):
            images = ArrayImages(channels_first(self.arrays["arr_0"], None))
        warn_of_dark_bytes(images.array, self.path)
        found = extract(images, extractor, spatial=spatial is None, cuda=cuda)
        notes = (f"statistics of {self.path.name}; precision, recall and KID against its {len(images):,} images",)
        return replace(found, statistics=statistics or found.gaussian, spatial=spatial or found.spatial), notes

    def _gaussian(self, mean: str, covariance: str) -> Gaussian | None:
        if mean not in self.arrays or covariance not in self.arrays:
            return None
        parts = [self.arrays[key] for key in (mean, covariance)]
        kinds = {part.dtype.kind for part in parts}
        if not kinds <= set("fiu"):
            found = ", ".join(str(part.dtype) for part in parts)
            raise ValueError(f"{self.path}: {mean} and {covariance} must hold real numbers, got {found}")
        try:
            return Gaussian(*(np.asarray(part, np.float64) for part in parts), count=int(self.meta.get("count", 0)))
        except ValueError as error:
            raise ValueError(f"{self.path}: {mean} and {covariance}: {error}") from error

    def _check(self, protocol: NamedProtocol, extractor: Extractor) -> None:
        if not self.meta:
            return
        ours = {"features": protocol.features, "weights": extractor.weights_hash(), "resize": extractor.resize}
        other = [
            f"{key}: {self.meta[key]!r} there, {ours[key]!r} here" for key in ours if self.meta[key] != ours[key]
        ]
        if other:
            raise ValueError(
                f"{self.path} was made by another protocol ({self.meta['protocol']}); make it again with "
                "`dinit stats`, or evaluate by its protocol. They differ in\n  " + "\n  ".join(other)
            )


def load_reference(path: str | Path) -> Reference:
    """Reference statistics from a file of `dinit stats`, or an ADM reference: arr_0, or mu and sigma, or both.

    Args:
        path: a .npz; pickled contents are never read.

    Raises:
        ValueError: another file, or one whose content does not match its hash.
    """
    path = user_path(path)
    try:
        with np.load(path, allow_pickle=False) as loaded:
            big = mapped(path, "arr_0") if "arr_0" in loaded.files else None
            names = [name for name in loaded.files if name != "meta" and not (name == "arr_0" and big is not None)]
            arrays = {name: loaded[name] for name in names}
            meta = json.loads(str(loaded["meta"])) if "meta" in loaded.files else {}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; `dinit stats` makes such a file") from None
    except Exception as error:  # zip's, zlib's, numpy's and Python's own, as the damage may be
        if (wrong := wrong_content(path)) is not None:
            raise ValueError(wrong) from error
        raise ValueError(f"{path} cannot be read as statistics ({error}); {_WANTED}") from error
    if big is not None:
        arrays["arr_0"] = big
    if not isinstance(meta, dict):
        raise ValueError(f"{path} cannot be read as statistics (its meta is no object); {_WANTED}")
    if meta and content_hash(arrays) != meta.get("content"):
        raise ValueError(f"{path} was changed after it was made: its content has another hash; make it again")
    if meta:
        missing = [key for key in _FACTS if not isinstance(meta.get(key), _FACTS[key])]
        missing += [key for key in ("features", "pictures") if key not in arrays]
        if not missing and len(arrays["features"]) != min(meta["count"], _ROWS):
            missing = ["count"]
        if missing:
            raise ValueError(
                f"{path} is damaged: it has no {', '.join(missing)} as `dinit stats` writes it; make it again"
            )
    if not ({"mu", "sigma"} <= set(arrays) or "arr_0" in arrays):
        raise ValueError(f"{path} has the arrays {', '.join(arrays) or '(none)'}; {_WANTED}")
    return Reference(path, arrays, meta)


_WANTED = "wanted: a .npz of `dinit stats`, or with arr_0 (images) or mu and sigma (and mu_s, sigma_s)"
