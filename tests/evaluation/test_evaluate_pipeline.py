from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dinit.data.digits import Digits
from dinit.evaluation import Report
from dinit.pipelines.evaluate import balanced_labels, evaluate, generate


class RealDigits:
    """A stand-in for a pipeline: it answers with real training digits of the asked class."""

    def __init__(self) -> None:
        data = Digits("train")
        self.images = (torch.stack([image for image, _ in data]) + 1) / 2
        self.labels = data.labels
        self.calls: list[dict[str, Any]] = []

    def __call__(self, labels: list[int], *, seed: int, output_type: str, **call: Any) -> SimpleNamespace:
        self.calls.append({"labels": labels, "seed": seed, "output_type": output_type, **call})
        rng = np.random.default_rng(seed)
        chosen = [int(rng.choice(np.flatnonzero(self.labels == label))) for label in labels]
        return SimpleNamespace(images=self.images[chosen])


def test_a_pipeline_that_gives_real_digits_scores_as_real_digits(tmp_path: Path) -> None:
    pipe = RealDigits()
    path = tmp_path / "new" / "report.json"
    report = evaluate(pipe, 300, seed=4, output=path, cuda=False, steps=7, sampler="ddim", guidance=[1.0])
    assert Report.read_json(path) == report
    assert report.model.metrics["class_accuracy"] > 0.99
    assert report.model.metrics["fid"] < 2 * report.real.metrics["fid"]
    assert abs(report.model.metrics["kid"]) < 0.03
    assert report.protocol.labels == "balanced"
    assert report.made_by == {
        "pipeline": "RealDigits",
        "seed": 4,
        "steps": 7,
        "sampler": "ddim",
        "guidance": "[1.0]",
    }
    assert pipe.calls[0]["output_type"] == "pt"
    assert np.bincount(pipe.calls[0]["labels"]).tolist() == [30] * 10


def test_calls_share_no_noise_and_keep_the_order() -> None:
    pipe = RealDigits()
    labels = balanced_labels(2300, 10)
    images = generate(pipe, labels, seed=5, batch_size=64)
    assert [call["seed"] for call in pipe.calls] == [5, 1005, 2005]
    assert [len(call["labels"]) for call in pipe.calls] == [1000, 1000, 300]
    assert [label for call in pipe.calls for label in call["labels"]] == labels.tolist()
    assert images.shape == (2300, 1, 8, 8)
    assert images.dtype == torch.uint8


def test_pixels_are_rounded_to_the_nearest_byte() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2, -0.1]).view(6, 1, 1, 1)
    images = generate(lambda *_, **__: SimpleNamespace(images=values), torch.zeros(6), seed=0)
    assert images.flatten().tolist() == [0, 0, 1, 255, 255, 0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((10, 1, 8, 8), float("nan")), "NaN"),
        (torch.zeros(9, 1, 8, 8), r"should give \(10, C, H, W\)"),
        (np.zeros((10, 8, 8, 1)), "got ndarray"),
    ],
)
def test_what_a_pipeline_should_not_give_is_refused(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(lambda *_, **__: SimpleNamespace(images=images), 10, cuda=False)


def test_bad_requests_are_refused_before_anything_is_generated(tmp_path: Path) -> None:
    pipe = RealDigits()
    (tmp_path / "file").write_text("")
    for options, message in (
        ({"num_samples": 7}, ">= 8, got 7"),
        ({"num_samples": 10.0}, "whole number"),
        ({"metrics": ["fdi"]}, "unknown metric"),
        ({"dataset_name": "digitz"}, "did you mean 'digits'"),
        ({"features": "digits-clasifier"}, "did you mean 'digits-classifier'"),
        ({"output": tmp_path}, "is a folder"),
        ({"output": tmp_path / "file" / "report.json"}, "cannot be made"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(pipe, **{"num_samples": 10, "cuda": False, **options})
    assert pipe.calls == []
