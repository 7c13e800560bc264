"""The metrics, computed by torch-fidelity. Nothing here implements a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before torch_fidelity, which imports torchvision

import torch_fidelity  # noqa: E402

from dinit.evaluation.features import Extractor  # noqa: E402
from dinit.registry import suggest  # noqa: E402

METRICS = ("fid", "kid", "precision", "recall", "inception-score", "class-accuracy")
_RESULTS = {
    "fid": {"fid": torch_fidelity.KEY_METRIC_FID},
    "kid": {"kid": torch_fidelity.KEY_METRIC_KID_MEAN, "kid_std": torch_fidelity.KEY_METRIC_KID_STD},
    "precision": {"precision": torch_fidelity.KEY_METRIC_PRECISION},
    "recall": {"recall": torch_fidelity.KEY_METRIC_RECALL},
    "inception-score": {
        "inception_score": torch_fidelity.KEY_METRIC_ISC_MEAN,
        "inception_score_std": torch_fidelity.KEY_METRIC_ISC_STD,
    },
}
MIN_IMAGES = 8
_FULL = 1000  # images from which on the usual KID subsets and Inception-score splits fit


@dataclass(frozen=True)
class Settings:
    """What the metrics need beyond two sets of images, equal for every row of a report."""

    kid_subset_size: int
    kid_subsets: int
    isc_splits: int
    prc_neighborhood: int
    seed: int

    @classmethod
    def for_counts(cls, counts: Sequence[int], seed: int) -> Settings:
        """The usual settings (KID: 100 subsets of 1,000; Inception score: 10 splits), or smaller ones where
        the smallest set has fewer than 1,000 images. ValueError for fewer than 8 images.
        """
        smallest = min(counts)
        if smallest < MIN_IMAGES:
            raise ValueError(f"metrics need at least {MIN_IMAGES} images in each set, got {smallest}")
        small = smallest < _FULL
        # Half of the set: subsets drawn from few more images than they hold would all be the same.
        return cls(smallest // 2 if small else _FULL, 100, 1 if small else 10, 3, seed)


class Images(Dataset[Tensor]):
    """The images of one tensor, for torch-fidelity."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def check_metrics(metrics: Sequence[str]) -> None:
    """ValueError for an unknown metric (with the nearest known), or none at all."""
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics must be a list of names out of {', '.join(METRICS)}, got {metrics!r}")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{suggest(str(name), list(METRICS))}")


def measure(
    samples: Tensor,
    reference: Tensor,
    extractor: Extractor,
    settings: Settings,
    metrics: Sequence[str],
    cuda: bool | None = None,
) -> dict[str, float]:
    """The metrics of `samples` against `reference`, both (N, C, H, W) uint8; not class accuracy.

    fid: Heusel et al. 2017; kid: Bińkowski et al. 2018, cubic kernel; precision, recall: Kynkäänniemi et al.
    2019; inception_score: Salimans et al. 2016. cuda: where to extract features; None: a GPU if there is one.
    """
    wanted = [name for name in metrics if name in _RESULTS]
    if not wanted:
        return {}
    found = torch_fidelity.calculate_metrics(
        input1=Images(extractor.prepare(samples)),
        input2=Images(extractor.prepare(reference)),
        feature_extractor=extractor.fidelity_name,
        feature_extractor_weights_path=str(extractor.weights_path()),
        fid="fid" in wanted,
        kid="kid" in wanted,
        isc="inception-score" in wanted,
        prc="precision" in wanted or "recall" in wanted,
        kid_subset_size=settings.kid_subset_size,
        kid_subsets=settings.kid_subsets,
        isc_splits=settings.isc_splits,
        prc_neighborhood=settings.prc_neighborhood,
        rng_seed=settings.seed,
        cuda=torch.cuda.is_available() if cuda is None else cuda,
        save_cpu_ram=True,  # no loader processes: the images are in memory already
        cache=False,  # its cache is unpickled without restriction, and is keyed by name, not content
        verbose=False,
    )
    scores = {key: float(found[theirs]) for name in wanted for key, theirs in _RESULTS[name].items()}
    if settings.isc_splits == 1:
        scores.pop("inception_score_std", None)  # the spread over one split says nothing
    return scores
