"""The numbers that reach a report are the definitions' numbers: features here are the pixels themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from dinit.evaluation.features.base import Extractor
from dinit.evaluation.metrics.base import DEFAULT_METRICS, METRICS, Settings, check_metrics, measure

SETTINGS = Settings(kid_subset_size=20, kid_subsets=1, isc_splits=1, prc_neighborhood=3, seed=0)


class Pixels(FeatureExtractorBase):
    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pixels",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "pixels"

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return (input.flatten(1).double(),)


register_feature_extractor("test-pixels", Pixels)


@dataclass(frozen=True)
class PixelExtractor(Extractor):
    fidelity_name: ClassVar[str] = "test-pixels"
    resize: ClassVar[str] = "none"

    def weights_path(self) -> Path:
        return Path(__file__)

    def prepare(self, images: Tensor) -> Tensor:
        return images


def score(samples: Tensor, reference: Tensor, *metrics: str, settings: Settings = SETTINGS) -> dict[str, float]:
    return measure(samples, reference, PixelExtractor(), settings, metrics, cuda=False)


def images(count: int, high: int = 100, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (count, 1, 2, 2), generator=generator, dtype=torch.uint8)


def test_fid_of_a_shift_is_its_squared_length() -> None:
    a = images(50)
    shift = torch.tensor([3, 1, 4, 1], dtype=torch.uint8).view(1, 1, 2, 2)
    assert score(a + shift, a, "fid")["fid"] == pytest.approx(27.0, abs=1e-6)
    assert score(a, a, "fid")["fid"] == pytest.approx(0.0, abs=1e-6)


def test_fid_of_a_scaling_is_the_closed_form() -> None:
    # y = 2x: means m and 2m, covariances C and 4C, so |m|² + tr(C + 4C - 2 · 2C) = |m|² + tr C
    a = images(50)
    x = a.flatten(1).double().numpy()
    expected = (x.mean(0) ** 2).sum() + np.trace(np.cov(x, rowvar=False))
    assert score(a * 2, a, "fid")["fid"] == pytest.approx(expected, rel=1e-9)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel() -> None:
    a, b = images(20, 3), images(20, 4, seed=1)
    x, y = a.flatten(1).double().numpy(), b.flatten(1).double().numpy()

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return float((u @ v / 4 + 1) ** 3)

    def within(z: np.ndarray) -> float:
        return sum(kernel(z[i], z[j]) for i in range(20) for j in range(20) if i != j) / (20 * 19)

    across = sum(kernel(u, v) for u in x for v in y) / 400
    assert score(a, b, "kid")["kid"] == pytest.approx(within(x) + within(y) - 2 * across, rel=1e-9)


def test_precision_and_recall_of_identical_and_of_distant_sets() -> None:
    a = images(30)
    both = ("precision", "recall")
    assert score(a, a, *both) == {"precision": 1.0, "recall": 1.0}
    assert score(a + 150, a, *both) == {"precision": 0.0, "recall": 0.0}


def test_precision_is_the_samples_share_and_recall_the_references() -> None:
    near, far = images(30), images(30) + 150
    mixed = torch.cat([near, far])
    assert score(near, mixed, "precision", "recall") == {"precision": 1.0, "recall": 0.5}
    assert score(mixed, near, "precision", "recall") == {"precision": 0.5, "recall": 1.0}
    assert score(mixed, near, "recall") == {"recall": 1.0}


def test_inception_score_of_certain_and_even_classes_is_their_number() -> None:
    certain = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    certain.flatten(1)[torch.arange(40), torch.arange(40) % 4] = 200  # logits
    assert score(certain, certain, "inception-score") == {"inception_score": pytest.approx(4.0)}
    undecided = torch.zeros(40, 1, 2, 2, dtype=torch.uint8)
    assert score(undecided, certain, "inception-score")["inception_score"] == pytest.approx(1.0)
    ten = Settings(20, 1, 10, 3, 0)
    assert "inception_score_std" in score(certain, certain, "inception-score", settings=ten)


def test_small_sets_get_settings_that_fit() -> None:
    assert Settings.for_counts([5000, 1000], 1) == Settings(1000, 100, 10, 3, 1)
    assert Settings.for_counts([5000, 359], 1) == Settings(179, 100, 1, 3, 1)
    with pytest.raises(ValueError, match="at least 8 images in each set, got 7"):
        Settings.for_counts([7, 100], 0)


def test_names_are_checked() -> None:
    check_metrics(METRICS.names())
    check_metrics(DEFAULT_METRICS)
    with pytest.raises(ValueError, match="did you mean 'precision'"):
        check_metrics(["precison"])
    for bad in ("fid", ()):
        with pytest.raises(ValueError, match="must be a list of names"):
            check_metrics(bad)
