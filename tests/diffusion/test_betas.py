"""The chain of given betas: the same path as the formula that made them, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from dinit.diffusion import PROCESSES
from dinit.diffusion.discrete import VPBetas, VPDiscrete, beta_schedule


@pytest.mark.parametrize("zero", [False, True])
def test_a_table_is_the_formula_that_made_it(zero: bool) -> None:
    formula = VPDiscrete("scaled-linear", zero_terminal_snr=zero)
    table = VPBetas(tuple(beta_schedule("scaled-linear", 1000).tolist()), zero_terminal_snr=zero)
    t = torch.tensor([1.0, 0.9995, 0.37, 0.001], dtype=torch.float64)
    for one, other in ((formula.scales(t), table.scales(t)), (formula.scales(0.5), table.scales(0.5))):
        torch.testing.assert_close(one.alpha, other.alpha, rtol=0, atol=0)
        torch.testing.assert_close(one.sigma, other.sigma, rtol=0, atol=0)
    assert PROCESSES.create(json.loads(json.dumps(table.to_config()))) == table


def test_a_table_that_is_rescaled_already() -> None:
    once = VPDiscrete("linear", num_steps=50, zero_terminal_snr=True).alphas.square()
    betas = 1 - once / torch.cat([torch.ones(1, dtype=torch.float64), once[:-1]])
    again = VPBetas(tuple(betas.tolist()), zero_terminal_snr=True)
    torch.testing.assert_close(again.alphas.square(), once, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("betas", "zero", "message"),
    [
        ((0.1,), False, "at least 2 betas, got 1"),
        ((0.1, 0.0), False, r"must lie in \(0, 1\), got 0"),
        ((0.1, 1.0), False, "a last beta of 1 needs zero_terminal_snr"),
        ((1.0, 0.1), True, r"must lie in \(0, 1\), got 1"),
    ],
)
def test_what_is_no_table_of_betas(betas: tuple[float, ...], zero: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VPBetas(betas, zero_terminal_snr=zero)
