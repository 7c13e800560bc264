"""Edges around the loop: rates and draws of small trainings, what merging leaves alone, trackers that are ended."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dinit.data.arrays import NpzImages
from dinit.diffusion.continuous import VP
from dinit.models.base import BACKBONES
from dinit.pipelines import launch
from dinit.training import autoencoder, parse_recipe
from dinit.training.autoencoder import AutoencoderRecipe, train_autoencoder
from dinit.training.discriminator import DiscriminatorRecipe
from dinit.training.finetune.adapters import adapt_difffit, adapt_lora, merged
from dinit.training.finetune.transfer import Pretrained, default_recipe


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each step of AdamW."""
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return seen


def images(folder: Path, count: int = 10) -> NpzImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "a.npz", images=pixels, labels=np.arange(count) % 2)
    return NpzImages(folder / "a.npz", layout="nchw")


def test_a_discriminators_rate_falls_by_a_cosine(rates: list[float]) -> None:
    pair = torch.zeros(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)
    DiscriminatorRecipe(steps=5, batch_size=2, width=4, learning_rate=0.01).train(VP(), pair, pair, 2)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * k / 5)) for k in range(5)])


def test_an_autoencoders_rate_falls_and_no_draw_is_used_twice(
    rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []
    noise = autoencoder.randomness.noise

    def watched(seed: int, position: int, shape: tuple[int, ...]) -> torch.Tensor:
        drawn.append((position, shape[0]))
        return noise(seed, position, shape)

    monkeypatch.setattr(autoencoder.randomness, "noise", watched)
    recipe = AutoencoderRecipe(latent_channels=1, widths=(4,), steps=6, batch_size=3, learning_rate=0.01)
    train_autoencoder(images(tmp_path), recipe)
    assert len(rates) == 6
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.1 * max(rates) <= 0.001
    assert drawn == [*((3 * step, 3) for step in range(6)), (0, 10)]  # the last for the scale of the latents


@pytest.mark.parametrize(
    "adapt", [adapt_difffit, lambda backbone: adapt_lora(backbone, 2, 3.0)], ids=["difffit", "lora"]
)
def test_merging_leaves_the_network_in_training_alone(adapt: Any) -> None:
    torch.manual_seed(0)
    network: Any = BACKBONES["dit"].preset("tiny")
    adapt(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0])

    def out(one: Any) -> torch.Tensor:
        with torch.no_grad():
            return one(x, label, one.embed(torch.tensor([0, 1])))

    before, modules = out(network), [type(module) for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = merged(network), merged(network)
    assert modules == [type(module) for module in network.modules()]
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(out(network), before)
    for one in (first, second, merged(first)):
        assert one.state_dict().keys() == BACKBONES["dit"].preset("tiny").state_dict().keys()
        torch.testing.assert_close(out(one), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"lr": 1e-4}),
        ({"optimizer": None}, {"lr": 1e-4}),
        ({"optimizer": {"lr": 3e-4}}, {"lr": 1.5e-4}),
        ({"optimizer": {"kind": "lion"}}, {"kind": "lion", "lr": 1e-4}),
        ({"optimizer": {"kind": "muon", "lr": "2e-2", "eps": 1e-6}}, {"kind": "muon", "lr": 1e-2, "eps": 1e-6}),
    ],
)
def test_fine_tuning_takes_half_the_rate_of_the_training(own: dict[str, Any], expected: dict[str, Any]) -> None:
    pretrained = Pretrained("old", Path("runs/old"), {}, BACKBONES["dit"], {}, own)
    assert default_recipe(pretrained, {"name": "digits"})["optimizer"] == expected


class Tracker:
    def __init__(self) -> None:
        self.finished = 0

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("error", [None, ValueError("a mistake"), KeyboardInterrupt()], ids=repr)
def test_trackers_are_finished_and_memory_freed_on_every_way_out(
    error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trackers, freed = [Tracker(), Tracker()], []
    made = SimpleNamespace(trackers=trackers, free_memory=lambda: freed.append(True))
    monkeypatch.setattr(launch, "make_accelerator", lambda *_: made)
    recipe = parse_recipe(
        "data: digits\nbackbone: {name: dit, hidden_size: 8, num_heads: 1}\ntraining: {steps: 1}\n"
    )
    try:
        with launch.training_processes(recipe, tmp_path) as accelerator:
            assert accelerator is made
            if error is not None:
                raise error
    except BaseException as found:
        assert found is error
    assert ([one.finished for one in trackers], freed) == ([1, 1], [True])
