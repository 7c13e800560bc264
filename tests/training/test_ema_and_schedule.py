"""The averaged weights and the learning rate, step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dinit.training.averaging.ema import EMA, ema_decay
from dinit.training.optimizer import learning_rate, make_optimizer
from dinit.training.recipe.model import OptimizerSection, ScheduleSection


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


def test_ema_closed_form() -> None:
    """Constant decay d and weights w_1 .. w_n: d^n w_0 + sum (1 - d) d^(n - i) w_i."""
    network = Tiny()
    ema = EMA(network, decay=0.8, warmup=False)
    weights = [torch.tensor([1.0, -2.0])] + [torch.randn(2) for _ in range(7)]
    for step, value in enumerate(weights[1:], 1):
        with torch.no_grad():
            network.weight.copy_(value)
        ema.update(step)
    shares = [0.8**7] + [0.2 * 0.8 ** (7 - i) for i in range(1, 8)]
    expected = sum(share * value for share, value in zip(shares, weights, strict=True))
    torch.testing.assert_close(ema.network.weight.detach(), expected)


def test_ema_warms_up() -> None:
    assert ema_decay(1, 0.999) == 2 / 11
    assert ema_decay(90, 0.999) == pytest.approx(0.91)
    assert ema_decay(10**6, 0.999) == 0.999
    assert ema_decay(1, 0.999, warmup=False) == 0.999
    decays = [ema_decay(step, 0.999) for step in range(1, 20_000, 100)]
    assert decays == sorted(decays)


def test_ema_copies_buffers_and_leaves_the_network_alone() -> None:
    network = Tiny().to(torch.bfloat16)
    before = copy.deepcopy(network.state_dict())
    ema = EMA(network, decay=0.5)
    network.seen += 3
    ema.update(1)
    assert int(ema.network.seen) == 3
    assert ema.network.weight.dtype == torch.float32
    assert torch.equal(network.weight, before["weight"])
    assert network.weight.requires_grad
    assert not ema.network.weight.requires_grad
    assert network.weight.data_ptr() != ema.network.weight.data_ptr()


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_ema_refuses_other_decays(decay: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        EMA(Tiny(), decay)


def test_cosine_schedule() -> None:
    schedule = ScheduleSection(kind="cosine", warmup_steps=4, floor=0.1)
    rates = [learning_rate(step, 24, 2.0, schedule) for step in range(1, 25)]
    assert rates[:4] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert rates[13] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half of the way down, step 14
    assert rates[-1] == pytest.approx(0.2)
    assert max(rates) < 2.0


def test_constant_schedule() -> None:
    schedule = ScheduleSection(warmup_steps=1)
    assert [learning_rate(step, 5, 3.0, schedule) for step in (1, 2, 5)] == pytest.approx([1.5, 3.0, 3.0])
    assert learning_rate(1, 5, 3.0, ScheduleSection()) == 3.0


def test_optimizer_is_adamw_with_the_recipes_settings() -> None:
    section = OptimizerSection(lr=0.1, betas=(0.8, 0.9), weight_decay=0.5, eps=1e-6)
    network = Tiny()
    optimizer = make_optimizer(network, section)
    network.weight.grad = torch.tensor([3.0, -4.0])
    optimizer.step()
    # First step of AdamW: decoupled decay, then lr times the sign of the gradient.
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(network.weight.detach(), expected)
