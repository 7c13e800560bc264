"""Every argument of a Pipeline away from its default: it changes what it should, is saved, and comes back.

A new argument needs a row in OTHER or a reason in ELSEWHERE.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference  # pyright: ignore[reportMissingImports]
from test_codec import tiny_vae  # pyright: ignore[reportMissingImports]

from dinit.models.codec import IdentityCodec
from dinit.models.dit import DiT
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.convert import convert


def network() -> tuple[DiT, list[float]]:
    """A network whose weights all matter, and the times that it gets."""
    torch.manual_seed(0)
    made, seen = (
        DiT(image_size=8, in_channels=1, num_classes=3, patch_size=4, hidden_size=8, depth=1, num_heads=1),
        [],
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    made.register_forward_pre_hook(lambda module, given: seen.extend(given[1].flatten().tolist()))
    return made, seen


PLAIN: dict[str, Any] = {
    "process": {"name": "vp-discrete"},
    "parameterization": {"name": "v"},
    "defaults": {"sampler": "ddim", "steps": 4},
}
OTHER: dict[str, Any] = {
    "process": {"name": "vp-discrete", "schedule": "scaled-linear"},
    "parameterization": {"name": "epsilon"},
    "defaults": {"sampler": "heun", "steps": 3},
    "t_max": 0.5,
    "pixel_range": [0.0, 1.0],
}
ELSEWHERE = {
    "backbone": "test_generate.py: two backbones give other images, and a saved one the same",
    "vae": "test_encode.py and tests/models/test_codec.py",
    "vae_reference": "test_convert.py: without the autoencoder there are latents only",
    "latent_normalization": "test_latent_training.py and the test of it below",
    "class_names": "the test of it below",
    "compile": "test_compile.py; it is not saved",
}


def test_every_argument_has_another_value() -> None:
    assert set(OTHER) | set(ELSEWHERE) == set(inspect.signature(Pipeline.__init__).parameters) - {"self"}


def made(**options: Any) -> tuple[Pipeline, list[float]]:
    backbone, seen = network()
    pipe = Pipeline(backbone, **{**PLAIN, **options})
    pipe.set_progress_bar_config(disable=True)
    return pipe, seen


def images(pipe: Pipeline) -> Tensor:
    return pipe([0, 1], output_type="raw").images


@pytest.mark.parametrize("argument", sorted(OTHER))
def test_an_argument_changes_the_images_and_is_saved(argument: str, tmp_path: Path) -> None:
    pipe = made(**{argument: OTHER[argument]})[0]
    found = images(pipe)
    assert not torch.equal(found, images(made()[0]))
    pipe.save_pretrained(tmp_path / "p")
    again = Pipeline.from_pretrained(tmp_path / "p")
    again.set_progress_bar_config(disable=True)
    written = json.loads((tmp_path / "p" / "model_index.json").read_text())[argument]
    given = OTHER[argument]
    assert (
        {key: written[key] for key in given} == given
        if isinstance(given, dict) and argument != "defaults"
        else True
    )
    assert torch.equal(images(again), found)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "euler-maruyama", "dpmpp-2m", "ddpm"])
@pytest.mark.parametrize(("t_max", "largest"), [(1.0, 999.0), (0.5, 499.0)])
def test_no_network_sees_a_time_beyond_the_pipelines_own(sampler: str, t_max: float, largest: float) -> None:
    pipe, seen = made(t_max=t_max)
    pipe([0], sampler=sampler, steps=4)
    assert max(seen) == pytest.approx(largest)
    assert pipe.denoiser().t_max == t_max
    assert pipe.denoiser([0]).t_max == t_max


def test_names_of_classes_are_their_numbers_in_order() -> None:
    pipe = made(class_names=["cat", "dog", "owl"])[0]
    assert pipe.prepare(["owl", "cat", 1], steps=1).labels == (2, 0, 1)


@pytest.mark.parametrize(("layout", "low"), [("ncsnpp-ve-discrete", 0.0), ("ncsnpp-vp", -1.0)])
def test_a_converted_network_keeps_the_range_of_its_pixels(layout: str, low: float, tmp_path: Path) -> None:
    """score_sde's VE networks were trained on [0, 1], its VP networks on [-1, 1]."""
    file = Reference(GOLDEN / "ncsnpp_ve_discrete.safetensors")
    torch.save({key: tensor.contiguous() for key, tensor in file.state.items()}, tmp_path / "a.pt")
    known = inspect.signature(type(file.build())).parameters
    options = {name: value for name, value in file.build().config.items() if name in known}
    if layout == "ncsnpp-vp":
        options |= {"scale_by_sigma": False, "centered": True}
    convert(tmp_path / "a.pt", tmp_path / "p", layout=layout, options=options)
    codec = Pipeline.from_pretrained(tmp_path / "p").codec
    assert isinstance(codec, IdentityCodec)
    assert (codec.low, codec.high) == (low, 1.0)
    assert codec.decode(torch.tensor([low, 1.0])).tolist() == [-1.0, 1.0]


def test_latents_are_decoded_by_the_pipelines_own_normalization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = DiT(image_size=4, in_channels=4, num_classes=3, patch_size=2, hidden_size=8, depth=1, num_heads=1)
    own = {"mean": [0.5, -1.0, 2.0, 0.0], "std": [0.5, 1.0, 2.0, 4.0]}
    pipe = Pipeline(backbone, **PLAIN, vae=tiny_vae(), latent_normalization=own)
    pipe.save_pretrained(tmp_path / "p")
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(own[key]).view(4, 1, 1) for key in ("mean", "std"))
    expected = tiny_vae().decode(z * std + mean).sample  # pyright: ignore[reportAttributeAccessIssue]
    for one in (pipe, Pipeline.from_pretrained(tmp_path / "p")):
        torch.testing.assert_close(one.codec.decode(z), expected, rtol=1e-4, atol=1e-5)
        assert one.image_size == 16
