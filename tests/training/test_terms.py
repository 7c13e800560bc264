"""Terms of the loss against numbers worked out by hand, and the minimum that the contrastive one moves."""

from __future__ import annotations

import math

import pytest
import torch

from dinit.diffusion.continuous import LinearFlow
from dinit.diffusion.parameterization import Velocity
from dinit.training import Objective
from dinit.training.losses.terms import Contrastive, Direction
from dinit.training.losses.times import UniformTimes
from dinit.training.losses.weighting import SNRWeighting
from dinit.training.objective import NetworkOutput

OUTPUT = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, -2.0]])[:, None, None]
TARGET = torch.tensor([[1.0, 1.0], [3.0, 4.0], [0.0, 1.0]])[:, None, None]


def test_direction_is_one_minus_the_cosine() -> None:
    expected = 2.0 * torch.tensor([1 - math.sqrt(0.5), 0.0, 2.0])
    torch.testing.assert_close(Direction(2.0).loss(OUTPUT, TARGET), expected)
    torch.testing.assert_close(Direction(2.0).loss(7 * OUTPUT, 0.1 * TARGET), expected)


def test_contrastive_looks_at_the_other_of_a_pair() -> None:
    """Row 0 against target 1: ((1 - 3)^2 + (0 - 4)^2) / 2 = 10; row 1 against 0: (4 + 9) / 2; row 2 has none."""
    torch.testing.assert_close(Contrastive(0.1).loss(OUTPUT, TARGET), torch.tensor([-1.0, -0.65, 0.0]))


def test_contrastive_of_even_parts_is_that_of_the_whole() -> None:
    output, target = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = [Contrastive().loss(output[rows], target[rows]) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), Contrastive().loss(output, target))


def test_contrastive_minimum_leaves_the_mean_of_all() -> None:
    """For one output y: min of |y - u|^2 - w |y - u'|^2 over independent u, u' is at (E u - w E u') / (1 - w)."""
    u = torch.randn(4096, 1, 1, 1, generator=torch.Generator().manual_seed(0)) + 2.0
    y = torch.zeros(1, requires_grad=True)
    term = Contrastive(0.3)
    loss = lambda: ((y - u).square().flatten(1).mean(1) + term.loss(y.expand(u.shape), u)).mean()  # noqa: E731
    (slope,) = torch.autograd.grad(loss(), y)
    assert float(slope) == pytest.approx(2 * (0.3 - 1) * float(u.mean()), rel=1e-5)


def test_terms_count_with_the_weight_of_their_time() -> None:
    plain, with_term = (
        Objective(LinearFlow(), Velocity(), SNRWeighting(), UniformTimes(), terms=terms)
        for terms in ((), (Direction(),))
    )
    t, zero = torch.tensor([0.25, 0.5], dtype=torch.float64), torch.zeros(2, 1, 1, 2)
    x0, eps = torch.ones(2, 1, 1, 2), torch.tensor([[2.0, 1.0], [3.0, 1.0]])[:, None, None]
    network = lambda *_: NetworkOutput(torch.tensor([1.0, 1.0]).expand_as(zero))  # noqa: E731
    added = [o.losses(network, x0, torch.zeros(2).long(), t, eps) for o in (with_term, plain)]
    # Targets eps - x0 are along (1, 0). x0 = x_t - sigma velocity, so 'snr' weighs snr sigma^2 = alpha^2.
    torch.testing.assert_close(added[0] - added[1], (1 - math.sqrt(0.5)) * torch.tensor([0.75**2, 0.5**2]))


@pytest.mark.parametrize("build", [lambda: Direction(0.0), lambda: Contrastive(1.0), lambda: Contrastive(0.0)])
def test_weights_out_of_range_are_refused(build) -> None:
    with pytest.raises(ValueError, match="weight must be"):
        build()
