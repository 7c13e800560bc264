"""A pipeline's call from labels to decoded images, and feature extractors, on a device that is not the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from meta import META, ReadBackError, meta_device

import dinit
from dinit import Pipeline, list_pipelines
from dinit.compat import ensure_torchvision
from dinit.evaluation import EXTRACTORS
from dinit.models.dit import DiT
from dinit.training.autoencoder import AutoencoderRecipe, make_autoencoder


def latent_pipeline() -> Pipeline:
    """On latents with a scale for each channel."""
    vae = make_autoencoder(AutoencoderRecipe(widths=(8, 8)), 3, 16)
    made = Pipeline(
        DiT.preset("tiny", image_size=8, in_channels=4),
        process="flow",
        parameterization="velocity",
        vae=vae,
        latent_normalization={"mean": [0.5] * 4, "std": [2.0] * 4},
        defaults={"sampler": "euler", "steps": 3},
        class_names=[f"class {k}" for k in range(10)],
    )
    return made.to(META)


def call(pipe: Pipeline, labels: Any, **options: Any) -> Any:
    """The images of a call that may neither read back nor wait for the device."""
    pipe.set_progress_bar_config(disable=True)
    with meta_device(refuse_waits=True) as watch:
        images = pipe(labels, **{"steps": 3, "output_type": "raw", **options}).images
    assert watch.read_backs == watch.waits == []
    assert images.device == META
    return images


@pytest.mark.parametrize("name", list_pipelines())
def test_shipped_pipelines(name: str) -> None:
    """As they ship, with their default sampler, grid and guidance."""
    pipe = Pipeline.from_pretrained(name).to(META)
    images = call(pipe, [1, 0, 1], steps=2)
    assert images.shape == (3, pipe.backbone.in_channels, pipe.image_size, pipe.image_size)


def test_latents_and_decoded_images() -> None:
    pipe = latent_pipeline()
    assert call(pipe, ["class 3", None], output_type="latent").shape == (2, 4, 8, 8)
    assert call(pipe, torch.tensor([3, 9]), guidance=[4.0, "cads"], seed=[5, 6]).shape == (2, 3, 16, 16)
    assert call(pipe, None, num_images=3, batch_size=2, end="clean").shape == (3, 3, 16, 16)
    network = pipe.to(torch.bfloat16)
    assert call(network, 3, sampler="dpmpp-2m").dtype == torch.float32, "the state, and what is decoded of it"


def test_labels_are_checked_on_the_host() -> None:
    pipe = latent_pipeline()
    with meta_device(refuse_waits=True), pytest.raises(ValueError, match="11"):
        pipe([3, 11], output_type="raw")


def test_step_by_step_and_callbacks() -> None:
    pipe = latent_pipeline()
    seen = []
    call(pipe, [3, 4], callback_on_step_end=lambda step: seen.append(step.x_s.device))
    assert seen == [META] * 3
    with meta_device(refuse_waits=True):
        assert {step.x0.device for step in pipe.iterate(pipe.prepare([3, 4]))} == {META}


@pytest.mark.parametrize("form", ["pt", "pil"])
def test_pictures_are_read_back_once_and_last(form: str) -> None:
    """They are checked for NaN there; 'raw' and 'latent' are not."""
    pipe = latent_pipeline()
    pipe.set_progress_bar_config(disable=True)
    seen = []
    with meta_device() as watch, pytest.raises(ReadBackError):
        pipe([3], output_type=form, callback_on_step_end=seen.append)
    assert (len(seen), len(watch.read_backs)) == (3, 1)


# Weights of the others are not on this disk. Those of 'clean' resizes take Pillow, which works on the host.
SHAPES = {"digits-classifier": (1, 8, 8), "glyphs-classifier": (3, 32, 32), "classifier": (1, 28, 28)}
WEIGHTS = {"classifier": str(Path(dinit.__file__).parent / "pretrained" / "fashion-classifier")}
ELSEWHERE = {"inception-v3", "inception-v3-clean", "dinov2-vit-l-14", "clip-vit-l-14-336px", "none"}


def test_feature_extractors() -> None:
    ensure_torchvision()
    assert set(EXTRACTORS) == SHAPES.keys() | ELSEWHERE
    for name, shape in SHAPES.items():
        extractor = EXTRACTORS.create({"name": name, "weights": WEIGHTS.get(name)})
        network = extractor.network(META, spatial=True)
        assert {p.device for p in extractor.classifier.parameters()} == {torch.device("cpu")}, "which others share"
        images = torch.zeros(2, *shape, dtype=torch.uint8, device=META)
        with torch.no_grad(), meta_device(refuse_waits=True):
            found = network(extractor.prepare(images))
        assert {part.device for part in vars(found).values() if part is not None} == {META}


def test_inceptions_resize() -> None:
    from dinit.evaluation.features.inception_network import resize_tensorflow

    with meta_device():
        assert resize_tensorflow(torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=META)).shape[2:] == (299, 299)
