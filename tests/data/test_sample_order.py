import numpy as np
import pytest

from dinit.data.order import epoch_order, mix, sample_indices, sample_key, stratified

GOLDEN = 0x9E3779B97F4A7C15


def test_mix_gives_the_published_splitmix64_stream() -> None:
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(GOLDEN)
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_an_epoch_reads_every_image_once_and_epochs_differ() -> None:
    orders = [epoch_order(seed, epoch, 500) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(500))
    for i in range(4):
        for j in range(i):
            assert np.mean(orders[i] == orders[j]) < 0.02  # chance is 1 / 500


def test_every_image_is_as_likely_in_every_place() -> None:
    n, epochs = 8, 4000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), epoch_order(7, epoch, n)] += 1
    chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    assert chi_square < 90  # 49 degrees of freedom: mean 49, 99.9 % below 85


def test_the_order_never_changes() -> None:
    assert epoch_order(0, 0, 10).tolist() == [0, 7, 8, 2, 5, 9, 4, 6, 3, 1]
    assert epoch_order(3, 2, 10).tolist() == [9, 5, 7, 3, 2, 0, 8, 1, 6, 4]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 13, 700])
@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_any_slice_of_the_run_is_the_run_read_in_one_go(start: int, count: int) -> None:
    n, seed = 7, 5
    run = [int(i) for epoch in range(110) for i in epoch_order(seed, epoch, n)]
    assert sample_indices(seed, start, count, n) == run[start : start + count]


def test_keys_of_samples_differ() -> None:
    assert len({sample_key(2, position) for position in range(40)}) == 40


def test_stratified_takes_the_same_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 100])
    marked = stratified(labels, 0.3, seed=0)
    assert [int(marked[labels == c].sum()) for c in range(3)] == [3, 6, 30]
    assert (marked == stratified(labels, 0.3, seed=0)).all()
    assert (marked != stratified(labels, 0.3, seed=1)).any()


@pytest.mark.parametrize(("start", "count", "n"), [(-1, 1, 5), (0, -1, 5), (0, 1, 0)])
def test_positions_that_do_not_exist_are_refused(start: int, count: int, n: int) -> None:
    with pytest.raises(ValueError, match="got"):
        sample_indices(0, start, count, n)
