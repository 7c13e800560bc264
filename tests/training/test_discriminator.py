"""The discriminator's recipe, against two Gaussians whose log-ratio is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinit.diffusion.continuous import VP, LinearFlow
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers.guidance.discriminator import Discriminator
from dinit.samplers.ode.ddim import DDIM
from dinit.training.discriminator import DiscriminatorRecipe, NoisyDiscriminator, accuracy_by_time

SHAPE = (1, 4, 4)
Images = tuple[Tensor, Tensor]


def gaussian(mean: float, std: float, count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(count, *SHAPE, generator=generator), torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize("process", [VP(), LinearFlow()], ids=lambda p: type(p).__name__)
def test_guided_by_the_trained_network_samples_come_nearer_to_the_data(process) -> None:
    """The model generates N(0.4, 0.5^2), the data is N(0, 0.5^2)."""
    recipe = DiscriminatorRecipe(steps=150, batch_size=64, width=16)
    network = recipe.train(process, gaussian(0.0, 0.5, 2000, 1), gaussian(0.4, 0.5, 2000, 2), num_classes=1)
    model = GaussianDenoiser(process, 0.4, 0.5, SHAPE)
    noise = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(3))
    labels = [0] * 256
    plain = DDIM().sample(model, noise, 20, labels=labels)
    guided = DDIM().sample(Discriminator(1.0, network).wrap(model), noise, 20, labels=labels)
    assert abs(float(plain.mean()) - 0.4) < 0.03
    assert abs(float(guided.mean())) < 0.15
    early, *_, late = (share for _, share in accuracy_by_time(network, process, *_test_sets()))
    assert early > 0.85 > late


def _test_sets() -> tuple[Images, Images]:
    return gaussian(0.0, 0.5, 500, 5), gaussian(0.4, 0.5, 500, 6)


def test_an_untrained_network_changes_nothing() -> None:
    network = NoisyDiscriminator(1, 1, width=8)
    model = GaussianDenoiser(VP(), 0.4, 0.5, SHAPE)
    x = torch.randn(3, *SHAPE)
    cond = model.condition([0, 0, 1], 3)
    for t in (0.4, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)):
        assert torch.equal(Discriminator(5.0, network).wrap(model)(x, t, cond).x0, model(x, t, cond).x0)


def test_one_time_is_that_time_for_every_sample() -> None:
    torch.manual_seed(0)
    network = NoisyDiscriminator(1, 2, width=8)
    torch.nn.init.normal_(network.head.weight)
    x, labels = torch.randn(3, *SHAPE), torch.tensor([0, 1, 2])
    one = network(x, LinearFlow().scales(0.3), labels)
    each = network(x, LinearFlow().scales(torch.full((3,), 0.3)), labels)
    assert torch.allclose(one, each, atol=1e-6)
    assert network(x, LinearFlow().scales(1.0), labels).isfinite().all()


def test_the_same_seed_gives_the_same_network() -> None:
    sets = gaussian(0.0, 0.5, 50, 1), gaussian(0.4, 0.5, 50, 2)
    recipe = DiscriminatorRecipe(steps=3, batch_size=8, width=8)
    before = torch.random.get_rng_state()
    one, two = (recipe.train(VP(), *sets, num_classes=1).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DiscriminatorRecipe(steps=0)
    with pytest.raises(ValueError, match="learning_rate"):
        DiscriminatorRecipe(learning_rate=0.0)
    real, fake = gaussian(0.0, 0.5, 5, 1), (torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="one shape"):
        DiscriminatorRecipe().train(VP(), real, fake, num_classes=1)
