"""Keyed noise: standard normal, a function of its key alone, and different for different keys."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dinit.samplers import NoiseSource, RecordedNoise, noise

LIKE = torch.empty(4, 1, 8, 8)


def test_draws_depend_on_the_key_and_not_on_the_batch() -> None:
    whole = NoiseSource.from_seed(3, 4).normal("step", 7, LIKE)
    part = NoiseSource.from_seed(3, 2, start=2).normal("step", 7, LIKE[:2])
    assert torch.equal(whole[2:], part)
    assert torch.equal(whole, NoiseSource.from_seed(3, 4).normal("step", 7, LIKE))


@pytest.mark.parametrize("other", [(4, 0, "step", 7), (3, 1, "step", 7), (3, 0, "cads", 7), (3, 0, "step", 8)])
def test_every_part_of_the_key_counts(other: tuple[int, int, str, int]) -> None:
    seed, index, stream, number = other
    a = NoiseSource(((3, 0),)).normal("step", 7, LIKE[:1])
    b = NoiseSource(((seed, index),)).normal(stream, number, LIKE[:1])
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.5


def test_seeds_that_differ_beyond_32_bits_differ() -> None:
    a = NoiseSource.from_seed([5, 5 + 2**32, 5 + 2**64, -5], 4).normal("initial", 0, LIKE)
    assert len({tuple(row.flatten().tolist()) for row in a}) == 4


def test_standard_normal() -> None:
    x = NoiseSource.from_seed(0, 2000).normal("initial", 0, torch.empty(2000, 1, 8, 8)).flatten()
    n = len(x)
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / n) ** 0.5


def test_dtype_changes_nothing_but_the_dtype() -> None:
    source = NoiseSource.from_seed(1, 4)
    assert torch.equal(source.normal("step", 0, LIKE.double()).float(), source.normal("step", 0, LIKE))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("three_threads")
def test_threads_share_a_large_draw() -> None:
    """5 images of 2^14 numbers: together above the limit, alone below it. A fork, which has no threads, too."""
    like = torch.empty(5, 1, 128, 128)
    alone = torch.cat([NoiseSource(((3, i),)).normal("step", 7, like[:1]) for i in range(5)])
    assert torch.equal(NoiseSource.from_seed(3, 5).normal("step", 7, like), alone)
    assert noise._pools
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends a child that waits for threads; PyTorch's own operations would, here
        drawn = NoiseSource.from_seed(3, 5).normal("step", 7, like).numpy()
        os._exit(0 if np.array_equal(drawn, alone.numpy()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="has 3 keys, for as many images; got 4"):
        NoiseSource.from_seed(1, 3).normal("step", 0, LIKE)
    with pytest.raises(ValueError, match="one for each of 4 images; got 2"):
        NoiseSource.from_seed([1, 2], 4)
    recorded = RecordedNoise(step=[torch.zeros(2, 1)])
    with pytest.raises(ValueError, match="no draw 1 was recorded for 'step'; it holds 1"):
        recorded.normal("step", 1, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"shape \(2, 1\), the state has \(3, 1\)"):
        recorded.normal("step", 0, torch.zeros(3, 1))


def test_a_seed_an_image_is_image_0_of_each_wherever_the_batch_starts() -> None:
    assert NoiseSource.from_seed([3, 8], 2, start=5).keys == ((3, 0), (8, 0))
    assert NoiseSource.from_seed(3, 2, start=5).keys == ((3, 5), (3, 6))
