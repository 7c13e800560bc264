"""Calls with a cache and edits: what they compute, record, replay and refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dinit import Pipeline
from dinit.cli.app import app
from dinit.models.base import BACKBONES
from dinit.pipelines.call import Call
from dinit.pipelines.outputs.replay import replay
from dinit.reuse import CACHES, EDITS, DeepCache, FreeU
from dinit.samplers import SAMPLERS, NoiseSource
from dinit.samplers.guidance import CFG

CALL: dict[str, Any] = {"sampler": "dpmpp-2m", "steps": 6, "guidance": "cfg:scale=2", "seed": 3}


def tiny(backbone: str = "unet") -> Any:
    torch.manual_seed(0)
    network = BACKBONES[backbone].preset("tiny")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    pipe = Pipeline(network, {"name": "vp"}, {"name": "v"}, defaults={"sampler": "ddim", "steps": 4})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny()


def test_a_call_samples_the_edited_network_with_the_cache_below_guidance(pipe: Any) -> None:
    images = pipe([1, 2], cache="deepcache:interval=2", edits=["freeu", "skip-tuning:bottom=0.7"], **CALL)
    denoiser = pipe.denoiser([1, 2])
    for one in ("freeu", "skip-tuning:bottom=0.7"):
        denoiser = EDITS.create(one).wrap(denoiser)
    denoiser = CFG(2.0).wrap(CACHES.create("deepcache:interval=2").wrap(denoiser))
    source = NoiseSource(images.call.keys)
    noise = source.normal("initial", 0, torch.empty(2, 1, 8, 8))
    with torch.no_grad():
        expected = SAMPLERS.create("dpmpp-2m").sample(
            denoiser, noise, 6, grid=images.call.grid, noise_source=source, labels=[1, 2]
        )
    latent = pipe.run(images.call, "latent").images
    assert torch.equal(latent, expected)
    plain = pipe([1, 2], output_type="latent", **CALL).images
    assert not torch.allclose(latent, plain, atol=1e-3)
    same = pipe([1, 2], output_type="latent", cache="deepcache:interval=1", edits=[], **CALL).images
    assert torch.equal(same, plain)


def test_images_do_not_depend_on_the_batch(pipe: Any) -> None:
    options = {**CALL, "cache": "taylor:interval=2", "output_type": "raw", "sampler": "ddpm"}
    together = pipe([0, 1, 2], **options).images
    in_two = pipe([0, 1, 2], batch_size=2, **options).images
    assert torch.allclose(together, in_two, atol=1e-5)


def test_a_record_has_both_and_makes_the_call_again(pipe: Any) -> None:
    call = pipe.prepare([1], cache=DeepCache(interval=2, branch=1), edits=FreeU(b1=1.3), **CALL)
    config = call.to_config()
    assert config["cache"]["name"] == "deepcache"
    assert config["cache"]["branch"] == 1
    assert [one["b1"] for one in config["edits"]] == [1.3]
    assert Call.from_config(config) == call
    plain = pipe.prepare([1], **CALL).to_config()
    assert not {"cache", "edits"} & set(plain)  # older records read as they were
    config["cache"]["interval"] = "two"
    with pytest.raises(ValueError, match="interval"):
        Call.from_config(config)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cache": "deepcahe"}, "did you mean 'deepcache'"),
        ({"cache": "deepcache:interval=0"}, "interval must be at least 1"),
        ({"cache": "freeu"}, "unknown cache"),
        ({"cache": 3}, "cache"),
        ({"edits": "freu"}, "did you mean 'freeu'"),
        ({"edits": [3]}, "edit"),
        ({"cache": "deepcache"}, "needs a network with skip connections, and DiT has none"),
        ({"edits": "freeu"}, "needs a network with skip connections, and DiT has none"),
    ],
)
def test_what_cannot_run_is_refused_before_the_network(
    options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny("dit")
    monkeypatch.setattr(type(pipe.backbone), "forward", _refuse_numbers(type(pipe.backbone).forward))
    with pytest.raises(ValueError, match=says):
        pipe([1], **options)


def _refuse_numbers(forward: Any) -> Any:
    def checked(self: Any, x: torch.Tensor, *args: Any) -> torch.Tensor:
        assert x.is_meta, "the network was evaluated"
        return forward(self, x, *args)

    return checked


def test_the_command_records_and_replays_them(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("small")
    line = "generate small --labels 1,2 --steps 4 --cache encoder-reuse:interval=2 --edits freeu --out a.png"
    app(args=line.split(), standalone_mode=False)
    assert replay("a.png").same
    app(args=["generate", "small", "--labels", "1,2", "--steps", "4", "--out", "b.png"], standalone_mode=False)
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()
