"""CMMD and FDD: metrics with encoders of their own, CLIP and DINOv2."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.evaluation.features.base import EXTRACTORS, Extracted, Extractor
from dinit.evaluation.features.published import CLIP, PublishedFile
from dinit.evaluation.image_features import ImageFeatures, ImageSource, extract
from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured
from dinit.evaluation.metrics.frechet import frechet_distance, self_test
from dinit.files import user_path

_SIGMA, _SCALE = 10.0, 1000.0
_ROWS = 2048
_USUAL = {"cmmd": "clip-vit-l-14-336px", "fdd": "dinov2-vit-l-14"}


@dataclass(frozen=True)
class CallableExtractor(Extractor):
    """Function of (B, C, H, W) uint8 images to (B, D) features as an extractor.

    Its hash is that of the parameters where it is a module, otherwise of its source.

    Attributes:
        embed: the function.
        label: its name in protocols; by default the function's own.
    """

    embed: Callable[..., Any] = torch.Tensor.float
    label: str = ""

    resize: ClassVar[str] = "as the given function does"
    any_size: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name in protocols."""
        return self.label or getattr(self.embed, "__name__", type(self.embed).__name__)

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        return lambda images: Extracted(self.embed(images))

    def prepare(self, images: Tensor) -> Tensor:
        return images

    def weights_hash(self) -> str:
        digest = hashlib.sha256(self.name.encode())
        if isinstance(self.embed, torch.nn.Module):
            for name, tensor in self.embed.state_dict().items():
                digest.update(
                    name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                )
        else:
            try:
                digest.update(inspect.getsource(self.embed).encode())
            except (OSError, TypeError):
                digest.update(repr(type(self.embed)).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class OnDisk(Extractor):
    """Extractor whose weights are a file, given by `weights` or an environment variable; RGB of any size."""

    any_size: ClassVar[bool] = True
    published: ClassVar[PublishedFile]

    def weights_path(self) -> Path:
        named = self.weights or os.environ.get(self.published.variable)
        if not named or not user_path(named).is_file():
            raise ValueError(self.published.missing(named))
        return user_path(named)

    def prepare(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"{type(self).__name__} reads grey or RGB images, got {images.shape[1]} channels")
        return images.expand(-1, 3, -1, -1)


@EXTRACTORS.register("clip-vit-l-14-336px")
@dataclass(frozen=True)
class Clip(OnDisk):
    """CLIP ViT-L/14 at 336 pixels as torch-fidelity runs it; CMMD is defined on it.

    Args:
        weights: the file; by default that of the variable DINIT_CLIP_WEIGHTS.
    """

    fidelity_name: ClassVar[str] = "clip-vit-l-14-336px"
    resize: ClassVar[str] = "bilinear to 336×336 as TensorFlow 1 does, grey repeated to RGB"
    published: ClassVar[PublishedFile] = CLIP


def mmd_rbf(x: NDArray[np.float64], y: NDArray[np.float64], sigma: float = _SIGMA) -> float:
    """Squared MMD of (N, D) and (M, D) with the kernel exp(-|x - y|² / 2σ²), each mean over all pairs.

    The biased estimate, which includes pairs of an image with itself, as CMMD's authors compute it: 0 for a set and
    itself.
    """
    return _mean_kernel(x, x, sigma) + _mean_kernel(y, y, sigma) - 2 * _mean_kernel(x, y, sigma)


def _mean_kernel(x: NDArray[np.float64], y: NDArray[np.float64], sigma: float) -> float:
    squares, total = (y**2).sum(axis=1), 0.0
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        distances = (rows**2).sum(axis=1)[:, None] + squares - 2 * rows @ y.T
        total += float(np.exp(-distances.clip(min=0) / (2 * sigma**2)).sum())
    return total / (len(x) * len(y))


@METRICS.register("cmmd")
def cmmd(inputs: MetricInputs) -> dict[str, float]:
    """1000 times the squared MMD of CLIP's embeddings, Gaussian kernel of σ = 10. Jayasumana et al. 2024."""
    ours, theirs = _encode(inputs, "cmmd")
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True).clip(min=1e-12) for part in (ours, theirs)]
    return {"cmmd": _SCALE * mmd_rbf(unit[0], unit[1])}


@METRICS.register("fdd")
def fdd(inputs: MetricInputs) -> dict[str, float]:
    """Fréchet distance of DINOv2's features. Stein et al. 2023."""
    self_test()
    ours, theirs = (ImageFeatures(len(part), pooled=part).gaussian for part in _encode(inputs, "fdd"))
    assert ours is not None
    assert theirs is not None
    return {"fdd": frechet_distance(ours, theirs)}


def _encode(inputs: MetricInputs, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features of both sets by the metric's own encoder; the reference's are computed once for all rows."""
    if inputs.samples.images is None or inputs.reference.images is None:
        raise NotMeasured("it has an encoder of its own and needs the images of both sets")
    if len(inputs.reference.images) < inputs.reference.count:
        raise NotMeasured("it needs the reference's images, and a file of statistics holds a few only; give --data")
    encoder = _encoder(inputs, metric)
    if metric not in inputs.shared:
        inputs.shared[metric] = f"{metric}: {_name(encoder)} ({encoder.weights_hash()}), {encoder.resize}"
        inputs.shared["features of", metric] = _features(inputs.reference.images, encoder, inputs.cuda)
    return _features(inputs.samples.images, encoder, inputs.cuda), inputs.shared["features of", metric]


def _encoder(inputs: MetricInputs, metric: str) -> Extractor:
    given: Any = inputs.encoders.get(metric, _USUAL[metric])
    if callable(given):
        return CallableExtractor(embed=given)
    encoder: Extractor = EXTRACTORS.create(given)
    if not isinstance(encoder, CallableExtractor):
        try:
            encoder.weights_path()
        except ValueError as error:
            raise NotMeasured(str(error)) from error
    return encoder


def _name(encoder: Extractor) -> str:
    return getattr(encoder, "name", None) or getattr(type(encoder), "registry_name", type(encoder).__name__)


def _features(images: ImageSource, encoder: Extractor, cuda: bool | None) -> NDArray[np.float64]:
    found = extract(images, encoder, cuda=cuda).pooled
    assert found is not None
    return found
