"""Order is a pure function: a permutation, alike at any world size, different every epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import counter
from pipeline.order import permute, rank_positions, steps_per_epoch


@given(
    num_records=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6)
)
def test_every_record_comes_once_an_epoch(num_records, seed, epoch):
    order = permute(np.arange(num_records), num_records=num_records, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(num_records))


@given(num_records=st.integers(2, 10**9), positions=st.lists(st.integers(0, 10**9), max_size=20))
def test_a_position_is_answered_alone_as_among_others(num_records, positions):
    positions = np.array([p % num_records for p in positions], np.int64)
    together = permute(positions, num_records=num_records, seed=1, epoch=2)
    alone = [permute(p[None], num_records=num_records, seed=1, epoch=2)[0] for p in positions]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < num_records)).all()


def test_epochs_and_seeds_differ():
    kwargs = {"num_records": 1000}
    base = permute(np.arange(1000), seed=0, epoch=0, **kwargs)
    for seed, epoch in [(0, 1), (1, 0), (1, 1)]:
        other = permute(np.arange(1000), seed=seed, epoch=epoch, **kwargs)
        assert (other == base).sum() < 10


@pytest.mark.parametrize("num_records", [7, 24, 100])
def test_each_record_falls_on_each_position_equally_often(num_records):
    """Chi-square over all (record, position) cells, within six standard deviations."""
    epochs = 40 * num_records
    counts = np.zeros((num_records, num_records))
    positions = np.arange(num_records)
    for epoch in range(epochs):
        order = permute(positions, num_records=num_records, seed=3, epoch=epoch)
        counts[positions, order] += 1
    expected = epochs / num_records
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (num_records - 1) ** 2
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


def test_neighbors_in_the_file_do_not_stay_neighbors():
    """Files are stored identity by identity: a good shuffle leaves no trace of that."""
    n = 100_000
    order = permute(np.arange(n), num_records=n, seed=0, epoch=0)
    steps = np.diff(order)
    assert np.mean(np.abs(steps) < 100) == pytest.approx(200 / n, rel=0.3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.02


@given(world_size=st.integers(1, 16), per_rank=st.integers(1, 64), position=st.integers(0, 10**9))
def test_ranks_share_a_global_batch_without_overlap(world_size, per_rank, position):
    shares = [
        rank_positions(
            position, global_batch=world_size * per_rank, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {per_rank}
    together = np.concatenate(shares)
    assert together.tolist() == list(range(position, position + world_size * per_rank))


def test_a_batch_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="global batch of 128 does not fit 100 records"):
        steps_per_epoch(100, 128)
    with pytest.raises(ValueError, match="64 does not split evenly over 3 ranks"):
        rank_positions(0, global_batch=64, rank=0, world_size=3)


def test_uniform_draws_are_uniform_and_independent_of_their_neighbors():
    a = counter.uniform(counter.key(1, 2, "flip"), np.arange(100_000))
    b = counter.uniform(counter.key(1, 2, "light"), np.arange(100_000))
    assert a.min() >= 0
    assert a.max() < 1
    counts, _ = np.histogram(a, bins=100, range=(0, 1))
    assert np.abs(counts - 1000).max() < 6 * np.sqrt(1000)
    for other in (b, np.roll(a, 1)):
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.02


def test_mixing_is_a_bijection_that_flips_half_of_the_bits():
    words = np.arange(4096, dtype=np.uint64)
    assert len(np.unique(counter.mix(words))) == 4096
    flipped = counter.mix(words) ^ counter.mix(words ^ np.uint64(1))
    ones = np.unpackbits(flipped.view(np.uint8)).mean()
    assert ones == pytest.approx(0.5, abs=0.01)
