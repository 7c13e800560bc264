"""What a sample is trained with depends on its position in the run alone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinit.data import sample_indices, sample_key
from dinit.data.base import InMemory
from dinit.training import randomness
from dinit.training.batches import Share, batches


def dataset(count: int = 10, horizontal_flip: bool = False) -> InMemory:
    pixels = np.random.default_rng(0).uniform(-1, 1, (count, 1, 4, 4)).astype(np.float32)
    return InMemory(pixels, np.arange(count) % 3, ("a", "b", "c"), horizontal_flip)


def collect(share: Share, first: int = 1, last: int = 5, flip: bool = False) -> list[tuple[Tensor, Tensor]]:
    return list(batches(dataset(horizontal_flip=flip), 7, share, first, last, workers=0))


@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_the_stream_of_the_seed(flip: bool) -> None:
    data = dataset(horizontal_flip=flip)
    images = torch.cat([x for x, _ in collect(Share(6), flip=flip)])
    labels = torch.cat([y for _, y in collect(Share(6), flip=flip)])
    order = sample_indices(7, 0, 30, 10)
    expected = [data.sample(index, sample_key(7, k)) for k, index in enumerate(order)]
    assert torch.equal(images, torch.stack([x for x, _ in expected]))
    assert labels.tolist() == [y for _, y in expected]
    flipped = sum(not torch.equal(x, data.image(i)) for (x, _), i in zip(expected, order, strict=True))
    assert (0 < flipped < 30) == flip


@pytest.mark.parametrize("flip", [False, True])
def test_resumed_batches_go_on(flip: bool) -> None:
    whole, rest = collect(Share(6), flip=flip), collect(Share(6), first=4, flip=flip)
    for (x, y), (resumed_x, resumed_y) in zip(whole[3:], rest, strict=True):
        assert torch.equal(x, resumed_x)
        assert torch.equal(y, resumed_y)


def test_processes_and_parts_split_one_global_batch() -> None:
    whole = [x for x, _ in collect(Share(12))]
    ranks = [[x for x, _ in collect(Share(12, parts=3, processes=2, rank=rank))] for rank in range(2)]
    for step in range(5):
        pieces = [ranks[rank][3 * step + part] for part in range(3) for rank in range(2)]
        assert torch.equal(torch.cat(pieces), whole[step])


class _Dying(InMemory):
    """Images whose reader is killed once, at one of them."""

    flag: Path
    at: int

    def sample(self, index: int, key: int) -> tuple[Tensor, int]:
        if key == self.at and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(index, key)


@pytest.mark.parametrize("position", [0, 13, 23])
def test_a_killed_reader_s_batches_go_on_where_it_was(tmp_path: Path, position: int) -> None:
    # At position 0 no batch lies half sent when the reader dies: its connection does not break, and nothing but
    # a look at whether it is alive ends the wait.
    dying: Any = dataset(horizontal_flip=True)
    dying.__class__, dying.flag, dying.at = _Dying, tmp_path / "died", sample_key(7, position)
    with pytest.warns(UserWarning, match="they are started again"):
        given = list(batches(dying, 7, Share(4), 1, 6, workers=1))
    assert dying.flag.exists()
    whole = list(batches(dataset(horizontal_flip=True), 7, Share(4), 1, 6, workers=0))
    assert len(given) == len(whole) == 6
    for (x, y), (kept_x, kept_y) in zip(given, whole, strict=True):
        assert torch.equal(x, kept_x)
        assert torch.equal(y, kept_y)


class _Slow(InMemory):
    """Images that come late."""

    def sample(self, index: int, key: int) -> tuple[Tensor, int]:
        time.sleep(4)
        return super().sample(index, key)


def test_readers_that_give_nothing_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinit.training.batches.PATIENCE", 0.5)
    monkeypatch.setattr("dinit.training.batches.CHECK", 0.25)
    slow = dataset(horizontal_flip=True)
    slow.__class__ = _Slow
    with pytest.raises(TimeoutError, match="is the disk or network of the data set reachable"):
        next(batches(slow, 7, Share(4), 1, 2, workers=1))


def test_indivisible_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of gradient_accumulation × processes = 2 × 3"):
        Share(10, parts=2, processes=3)


def test_noise_is_keyed_by_position() -> None:
    whole = randomness.noise(3, 100, (8, 1, 4, 4))
    assert torch.equal(whole[5:], randomness.noise(3, 105, (3, 1, 4, 4)))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, randomness.noise(4, 100, (8, 1, 4, 4)))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    randomness.noise(3, 0, (4, 1, 4, 4))
    assert torch.equal(state, torch.get_rng_state())


def test_noise_is_standard_normal() -> None:
    x = randomness.noise(0, 0, (1000, 1, 8, 8)).flatten(1)
    n = x.numel()
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.square().mean()) - 1) < 4 * (2 / n) ** 0.5
    neighbours = float((x[1:] * x[:-1]).mean())  # seeds of neighbours differ little, their noise must not
    assert abs(neighbours) < 4 / n**0.5


def test_labels_are_dropped_at_the_stated_rate_and_apart_from_times() -> None:
    dropped: Any = torch.cat([randomness.dropped_labels(0, step, 100, 0.1) for step in range(200)])
    assert abs(float(dropped.float().mean()) - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert not randomness.dropped_labels(0, 1, 1000, 0.0).any()
    times = torch.rand(100, generator=randomness.time_generator(0, 5))
    labels = torch.rand(100, generator=torch.Generator().manual_seed(randomness._seed(0, 103, 5)))
    assert not torch.equal(times, labels)
