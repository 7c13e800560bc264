"""What is drawn for a seed, recorded: another stream would have the right distribution and be another run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dinit.data.order import epoch_order, hash_words, sample_key, stratified
from dinit.data.webdataset import windowed_order
from dinit.evaluation.protocols import PROTOCOLS
from dinit.pipelines.evaluate import draw_labels
from dinit.pipelines.outputs.sets import class_of
from dinit.training import randomness

SEED, START = 3, 5
DRAWN = {
    "noise": ([-0.243505, 1.337474, 0.763115, 0.201443], randomness.noise(SEED, START, (2, 2))),
    "condition": ([0.901181, 0.002024, 0.266302, 1.031846], randomness.condition_noise(SEED, START, (2, 2))),
    "uniform condition": (
        [0.500089, -0.607257, -0.94755, -0.601736],
        randomness.condition_noise(SEED, START, (2, 2), uniform=True),
    ),
    "scores of tokens": ([0.321917, 0.957542, 0.179036, 0.801859], randomness.token_scores(SEED, START, (2, 2))),
    "times": (
        [0.333706, 0.790335, 0.902537],
        torch.rand(3, generator=randomness.time_generator(SEED, START), dtype=torch.float64),
    ),
    "dropped labels": (
        [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1],
        randomness.dropped_labels(SEED, START, 16, 0.5).int(),
    ),
}


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_training_draws_the_same_numbers_as_ever(name: str) -> None:
    recorded, drawn = DRAWN[name]
    assert isinstance(drawn, Tensor)
    assert drawn.flatten().tolist() == pytest.approx(recorded, abs=2e-6)  # written with six digits


def test_whole_numbers_are_the_same_as_ever() -> None:
    assert [randomness.network_seed(SEED, rank) for rank in (0, 1)] == [6852278399191411437, 2319800379148031969]
    assert (sample_key(SEED, START), hash_words(1, 2, 3)) == (12896760575459769443, 16914669369030367833)
    assert epoch_order(SEED, 1, 8).tolist() == [5, 3, 6, 7, 4, 1, 0, 2]
    assert windowed_order(SEED, 1, [2, 3, 2], 2).tolist() == [0, 5, 1, 6, 3, 4, 2]
    assert np.flatnonzero(stratified(np.array([0, 1] * 5), 0.4, 0)).tolist() == [0, 3, 4, 9]


def test_classes_of_a_set_and_of_an_evaluation_are_the_same_as_ever() -> None:
    assert [class_of(k, range(10), "random", SEED) for k in range(10)] == [4, 9, 2, 4, 5, 2, 4, 1, 1, 5]
    drawn = draw_labels(PROTOCOLS["adm"], 8, 10, SEED)
    assert drawn is not None
    assert drawn.tolist() == [6, 8, 7, 7, 0, 0, 0, 5]
