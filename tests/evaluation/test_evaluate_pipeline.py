from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dinit.data.digits import Digits
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.evaluation import Report
from dinit.models.dit import DiT
from dinit.pipelines.evaluate import evaluate, generate
from dinit.pipelines.generate import Pipeline


class RealDigits:
    """A stand-in for a pipeline: it answers with real training digits of the asked class."""

    def __init__(self, num_classes: int = 10) -> None:
        data = Digits("train")
        self.images = (torch.stack([image for image, _ in data]) + 1) / 2
        self.labels = data.labels
        self.backbone = SimpleNamespace(num_classes=num_classes)
        self.calls: list[dict[str, Any]] = []

    def prepare(self, labels: Any, *, num_images: int, seed: int, **call: Any) -> SimpleNamespace:
        if "guidence" in call:
            raise ValueError("unknown option 'guidence'")
        config = {"sampler": {"name": "ddim"}, "steps": 7, "grid": {"name": "uniform"}, "guidance": []}
        return SimpleNamespace(to_config=lambda: {**config, "labels": labels, **call})

    def __call__(self, labels: Any, *, num_images: int, seed: int, start_index: int, **call: Any) -> Any:
        asked = None if labels is None else labels.tolist()
        self.calls.append({"labels": asked, "seed": seed, "start_index": start_index, **call})
        chosen = []
        for k in range(num_images):
            rng = np.random.default_rng([seed, start_index + k])
            pool = np.arange(len(self.labels)) if asked is None else np.flatnonzero(self.labels == asked[k])
            chosen.append(int(rng.choice(pool)))
        return SimpleNamespace(images=self.images[chosen], nfe=7)


class Gives(RealDigits):
    def __init__(self, images: Any) -> None:
        super().__init__()
        self.given = images

    def __call__(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(images=self.given, nfe=1)


def test_a_pipeline_that_gives_real_digits_scores_as_real_digits(tmp_path: Path) -> None:
    pipe = RealDigits()
    path = tmp_path / "new" / "report.json"
    report = evaluate(pipe, 300, seed=4, output=path, cuda=False, steps=9)
    assert Report.read_json(path) == report
    assert report.model.metrics["class_accuracy"] > 0.99
    assert report.model.metrics["fid"] < 2 * report.real.metrics["fid"]
    assert abs(report.model.metrics["kid"]) < 0.03
    assert report.protocol.labels == "balanced"
    assert report.made_by == {
        "pipeline": "RealDigits",
        "seed": 4,
        "nfe": 7,
        "sampler": {"name": "ddim"},
        "steps": 9,
        "grid": {"name": "uniform"},
        "guidance": [],
    }
    assert pipe.calls[0]["output_type"] == "pt"
    assert np.bincount(pipe.calls[0]["labels"]).tolist() == [30] * 10


def test_calls_share_no_noise_and_keep_the_order() -> None:
    pipe = RealDigits()
    labels = torch.arange(2300) * 7 // 11 % 10  # of no period that fits a call
    images = generate(pipe, 2300, labels, seed=5, batch_size=64).images
    assert [(call["seed"], call["start_index"]) for call in pipe.calls] == [(5, 0), (5, 1000), (5, 2000)]
    assert [label for call in pipe.calls for label in call["labels"]] == labels.tolist()
    assert images.shape == (2300, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal(generate(pipe, 1500, labels[:1500], seed=5).images, images[:1500])


def test_an_unconditional_pipeline_is_asked_for_no_classes() -> None:
    pipe = RealDigits(num_classes=0)
    report = evaluate(pipe, 100, cuda=False)
    assert pipe.calls[0]["labels"] is None
    assert report.protocol.labels == "none"
    assert "class_accuracy" not in report.model.metrics


def test_a_real_pipeline_is_evaluated_from_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = DiT(image_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=10)
    process, parameterization = PROCESSES.create("flow"), PARAMETERIZATIONS.create("velocity")
    Pipeline(backbone, process, parameterization).save_pretrained(tmp_path / "pipe")
    # zero output: the flow's velocity is 0 everywhere, so the image is the noise
    report = evaluate(tmp_path / "pipe", 60, sampler="ddim", steps=3, cuda=False)
    assert report.made_by["sampler"]["name"] == "ddim"
    assert report.model.name == report.made_by["pipeline"] == "pipe"
    assert (report.made_by["steps"], report.made_by["nfe"]) == (3, 3)
    assert report.model.metrics["fid"] > 10 * report.real.metrics["fid"]


def test_pixels_are_rounded_to_the_nearest_byte() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2, -0.1]).view(6, 1, 1, 1)
    assert generate(Gives(values), 6, None, seed=0).images.flatten().tolist() == [0, 0, 1, 255, 255, 0]


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
        evaluate(Gives(images), 10, cuda=False)


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
        ({"guidence": 1}, "unknown option"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(pipe, **{"num_samples": 10, "cuda": False, **options})
    with pytest.raises(ValueError, match="7 classes, the data set 10"):
        evaluate(RealDigits(num_classes=7), 10, cuda=False)
    assert pipe.calls == []
