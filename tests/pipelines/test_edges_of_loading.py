"""Edges of opening: which options go to the hub, what a card's head is, and what of a scheduler is overridden."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from dinit.checkpoints.from_diffusers import denoiser_from_diffusers
from dinit.cli.info import _without_front_matter
from dinit.diffusion.continuous import VP
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.parameterization import X0, Epsilon
from dinit.pipelines.loading import LoadOptions, load_options

HUB = {"cache_dir": "c", "force_download": True, "local_files_only": True, "token": "t", "revision": "r"}
ELSEWHERE = ("torch_dtype", "use_safetensors")  # read, and not handed on


@pytest.mark.parametrize("name", sorted(set(LoadOptions.__annotations__) - set(ELSEWHERE)))
def test_an_option_of_the_hub_goes_there_and_any_other_to_the_pipeline(name: str) -> None:
    value = HUB.get(name, "value")
    given, hub, dtype = load_options({"t_max": 0.5, "revision": "r", name: value}, None)
    assert hub == {"revision": "r", **({name: value} if name in HUB else {})}
    assert given == {"t_max": 0.5, **({} if name in HUB else {name: value})}
    assert dtype is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_type_under_either_name_is_one(dtype: torch.dtype) -> None:
    assert load_options({"torch_dtype": dtype}, None) == ({}, {}, dtype)
    assert load_options({}, dtype) == ({}, {}, dtype)
    assert load_options({"torch_dtype": dtype, "use_safetensors": True}, dtype) == ({}, {}, dtype)
    with pytest.raises(ValueError, match="differ; give one of them"):
        load_options({"torch_dtype": dtype}, torch.float16)


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("---\nlicense: mit\n---\n# Title\n", "# Title\n"),
        ("---\ntags: [a---b]\n---\n# Title\n\n---\n\nafter a rule\n", "# Title\n\n---\n\nafter a rule\n"),
        ("# Title\n\n---\n\nafter a rule\n", "# Title\n\n---\n\nafter a rule\n"),
        ("", ""),
    ],
)
def test_a_card_is_shown_without_its_head_and_with_its_rules(text: str, body: str) -> None:
    assert _without_front_matter(text) == body


@pytest.fixture(scope="module")
def foreign() -> Any:
    small: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DModel(4, 1, 1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **small)
    return SimpleNamespace(unet=unet, scheduler=DDIMScheduler(num_train_timesteps=50))


@pytest.mark.parametrize("process", [None, VP(), VPDiscrete("squared-cosine", num_steps=20)], ids=repr)
@pytest.mark.parametrize("parameterization", [None, X0()], ids=repr)
def test_what_is_given_wins_over_the_scheduler_each_alone(
    foreign: Any, process: Any, parameterization: Any
) -> None:
    denoiser: Any = denoiser_from_diffusers(foreign, process=process, parameterization=parameterization, t_max=0.9)
    assert denoiser.parameterization == (parameterization or Epsilon())
    if process is None:
        assert denoiser.process.num_steps == 50
    else:
        assert denoiser.process == process
    assert denoiser.t_max == 0.9
