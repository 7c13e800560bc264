"""Condition-embedding perturbation: its scale in numbers, and that it is the sample's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.training import RecipeError, parse_recipe
from dinit.training.build import make_backbone, make_data, make_network
from dinit.training.network import TrainingNetwork
from dinit.training.regularizers.condition_noise import ConditionNoise

RECIPE = """\
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2}
condition_noise: {gamma: 2.0}
training: {steps: 10}
"""


class Embedding(torch.nn.Module):
    """A backbone that gives its condition back."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(4, 64)

    def embed(self, labels: Tensor) -> Tensor:
        return self.table(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        return cond


def noise_on(network: TrainingNetwork, labels: Tensor, position: int | None) -> Tensor:
    x = torch.zeros(len(labels), 1, 1, 1)
    return network(x, torch.zeros(len(labels)), labels, position).prediction - network.backbone.embed(labels)


def test_length_and_shape_of_the_noise() -> None:
    """The mean square of gamma / sqrt(D) N(0, 1) is gamma^2 / D; that of the uniform is a third of it."""
    shape = (400, 256)
    for gamma in (0.5, 2.0):
        gaussian, uniform = (ConditionNoise(gamma, kind).draw(0, 0, shape) for kind in ("gaussian", "uniform"))
        unit = gamma / math.sqrt(shape[1])
        assert float(gaussian.square().mean()) == pytest.approx(unit**2, rel=0.02)
        assert float((gaussian / unit).pow(4).mean()) == pytest.approx(3, rel=0.05)
        assert float(uniform.square().mean()) == pytest.approx(unit**2 / 3, rel=0.02)
        assert float(uniform.abs().max()) == pytest.approx(unit, rel=1e-3)
        assert abs(float(gaussian.mean())) < 0.01 * unit
        assert abs(float(uniform.mean())) < 0.01 * unit


def test_noise_is_the_sample_s_own() -> None:
    """Rows of any part of the batch get what they get in the whole; other rows, steps and seeds get other noise."""
    network = TrainingNetwork(Embedding(), seed=5, condition_noise=ConditionNoise(1.0))  # type: ignore[arg-type]
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    whole = noise_on(network, labels, 600)
    torch.testing.assert_close(
        torch.cat([noise_on(network, labels[:2], 600), noise_on(network, labels[2:], 602)]), whole
    )
    everything = torch.cat([whole, noise_on(network, labels, 606)])
    network.seed = 6
    everything = torch.cat([everything, noise_on(network, labels, 600)])
    assert len(everything.unique(dim=0)) == 18
    assert bool((noise_on(network, labels, None) == 0).all())


def test_recipe_switches_it_on() -> None:
    recipe = parse_recipe(RECIPE)
    backbone = make_backbone(recipe, make_data(recipe))
    assert make_network(recipe, backbone).condition_noise == ConditionNoise(2.0, "gaussian")
    off = parse_recipe(RECIPE, ["condition_noise=null"])
    assert make_network(off, backbone).condition_noise is None
    assert parse_recipe(RECIPE, ["condition_noise.kind=uniform"]).condition_noise != recipe.condition_noise


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("condition_noise.gamma=0", "condition_noise.gamma: input should be greater than 0, got 0"),
        ("condition_noise.gama=1", "condition_noise.gama: unknown key; did you mean 'gamma'?"),
        ("condition_noise.kind=normal", "condition_noise.kind"),
    ],
)
def test_mistakes_are_told(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE, [override])
    assert message in str(caught.value)
