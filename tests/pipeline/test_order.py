"""Order is a pure function: a permutation, alike at any world size, different every epoch."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import counter
from pipeline.order import (
    BalancedOrder,
    BlockOrder,
    GlobalOrder,
    permute,
    rank_positions,
    steps_per_epoch,
)
from pipeline.shuffle_report import report_shuffle
from tests.calls import count_calls


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


@pytest.mark.slow
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


@pytest.mark.slow
@given(
    num_records=st.integers(1, 1000),
    block=st.integers(1, 150),
    window=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
)
def test_block_order_takes_every_record_once(num_records, block, window, seed, epoch):
    order = BlockOrder(num_records, seed=seed, block=block, window=window)
    records = order(np.arange(num_records), epoch)
    assert np.array_equal(np.sort(records), np.arange(num_records))


@pytest.mark.slow
@given(positions=st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=20))
def test_block_order_answers_any_position_alone(positions):
    order = BlockOrder(10**9, seed=1, block=1000, window=50)
    positions = np.array(positions, np.int64)
    alone = [order(position[None], 3)[0] for position in positions]
    assert order(positions, 3).tolist() == alone


def test_block_order_reads_from_a_window_of_blocks_only():
    """The records of one window lie in as many pieces as it has blocks, but for the file's ends."""
    order = BlockOrder(100_000, seed=0, block=500, window=8)
    for window in (0, 7, 24):
        records = np.sort(order(np.arange(window * 4000, (window + 1) * 4000), 5))
        pieces = 1 + (np.diff(records) > 1).sum()
        assert pieces <= 9
    first, second = (order(np.arange(4000), epoch) for epoch in (0, 1))
    assert len(np.intersect1d(first, second)) < 1000, "other blocks in another epoch"


@pytest.mark.slow
def test_block_order_leaves_every_record_an_equal_chance_at_the_end():
    """Where a set is not a whole number of blocks, what is left over is another in each epoch."""
    n = 250
    last = [
        BlockOrder(n, seed=2, block=60, window=2)(np.arange(n - 10, n), epoch)
        for epoch in range(2000)
    ]
    counts = np.bincount(np.concatenate(last), minlength=n)
    expected = 2000 * 10 / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # Neighbors come together, which widens the spread.
    assert chi_square < 12 * n
    assert counts.min() > expected / 3


@pytest.mark.parametrize("options", [{"block": 0, "window": 2}, {"block": 5, "window": 0}])
def test_blocks_and_windows_have_a_size(options):
    with pytest.raises(ValueError, match="at least 1"):
        BlockOrder(10, seed=0, **options)


def sorted_labels(rng: np.random.Generator, identities: int) -> np.ndarray:
    """As files are stored: identity by identity, each with 1 to 9 images."""
    return np.repeat(np.arange(identities), rng.integers(1, 10, identities))


@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_balanced_batches_hold_k_images_of_each_identity(images):
    labels = sorted_labels(np.random.default_rng(0), 300)
    order = BalancedOrder(labels, seed=0, global_batch=32, images=images)
    counts = np.bincount(labels)
    for batch in range(30):
        records = order(np.arange(batch * 32, (batch + 1) * 32), 0)
        present, times = np.unique(labels[records], return_counts=True)
        # Where one turn ends in a batch and the next begins, an identity may be in both.
        assert (times % images == 0).all()
        assert len(present) >= 32 // images - 2
        for identity in present:
            mine = records[labels[records] == identity][:images]
            assert len(np.unique(mine)) == min(images, counts[identity])


def test_balanced_identities_and_their_images_take_turns():
    labels = np.random.default_rng(1).permutation(sorted_labels(np.random.default_rng(0), 50))
    order = BalancedOrder(labels, seed=0, global_batch=10, images=2)
    per_epoch = len(labels) // 10 * 10
    records = np.concatenate([order(np.arange(per_epoch), epoch) for epoch in range(40)])
    identities = labels[records].reshape(-1, 2)
    assert (identities[:, 0] == identities[:, 1]).all()
    turns = identities[: len(identities) // 50 * 50, 0].reshape(-1, 50)
    assert (np.sort(turns) == np.arange(50)).all(), "each once a turn"
    assert not np.array_equal(turns[0], turns[1])
    seen = np.bincount(records, minlength=len(labels))
    for identity in range(50):
        mine = seen[labels == identity]
        assert mine.max() - mine.min() <= 1, "each image once before any comes again"


def test_balanced_order_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"images=3 does not divide .*=32"):
        BalancedOrder(np.arange(100), seed=0, global_batch=32, images=3)


def test_the_shuffle_report_warns_of_windows_that_are_too_small():
    labels = np.repeat(np.arange(1000), 50)
    options = {"epoch_records": len(labels), "global_batch": 256, "seed": 0}
    ideal = report_shuffle(GlobalOrder(len(labels), seed=0), labels.take, **options)
    assert not ideal.is_poor
    assert ideal.found == pytest.approx(ideal.ideal, rel=0.02)
    small = BlockOrder(len(labels), seed=0, block=500, window=4)
    poor = report_shuffle(small, labels.take, **options)
    assert poor.found < 60  # two thousand records of fifty images each
    assert poor.is_poor
    assert "take more blocks into a window" in str(poor)
    large = BlockOrder(len(labels), seed=0, block=50, window=900)
    assert not report_shuffle(large, labels.take, **options).is_poor


@pytest.mark.slow
def test_positions_of_42_million_records_cost_little():
    """No permutation is stored: a piece of an epoch takes memory for that piece, and no more.

    It took 0.07 s on one core of 2025: all 42 million take under 3.
    """
    n, piece = 42_000_000, 1 << 20
    tracemalloc.start()
    records = permute(np.arange(n - piece, n), num_records=n, seed=0, epoch=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(records)) == piece
    assert peak < 10 * records.nbytes
    positions = np.arange(1000)
    calls = count_calls(lambda: permute(positions, num_records=n, seed=0, epoch=0))
    assert calls < len(positions), "no position is looked at by itself"
