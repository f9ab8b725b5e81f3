"""Sampling: no positive is ever lost, the shape never changes, and the draw can be had again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.sampling import sample_rows, sample_size
from tests.graph_safety import GraphSafety, GraphUnsafeError


def draw(labels=(), *, num_local=1000, size=100, seed=0, step=0, first_class=0):
    return sample_rows(
        torch.tensor(labels, dtype=torch.int64).reshape(-1),
        num_local=num_local,
        size=size,
        seed=seed,
        step=torch.tensor(step),
        first_class=first_class,
    )


def overlap(left: torch.Tensor, right: torch.Tensor) -> int:
    return len(set(left.tolist()) & set(right.tolist()))


@pytest.mark.parametrize(
    ("num_local", "global_batch", "sample_rate", "expected"),
    [
        (1000, 64, 0.1, 100),
        (1000, 64, 1.0, 1000),
        (1000, 256, 0.1, 256),
        (100, 256, 0.1, 100),
        (0, 256, 0.1, 0),
        (93_431, 128, 0.1, 9343),
    ],
)
def test_size_is_the_rate_but_never_below_the_batch_nor_above_the_rows(
    num_local, global_batch, sample_rate, expected
):
    assert sample_size(num_local, global_batch, sample_rate) == expected


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_positive_is_present_and_the_shape_is_fixed(data):
    """Whatever the labels: all alike, all different, none of ours, more than the rate asks for."""
    num_local = data.draw(st.integers(1, 200))
    labels = data.draw(st.lists(st.integers(-1, num_local - 1), min_size=1, max_size=150))
    size = sample_size(num_local, len(labels), data.draw(st.floats(0.01, 1.0)))
    rows = draw(
        labels,
        num_local=num_local,
        size=size,
        seed=data.draw(st.integers(0, 2**63 - 1)),
        step=data.draw(st.integers(0, 2**40)),
        first_class=data.draw(st.integers(0, 2**31)),
    )
    assert rows.shape == (size,)
    assert rows.dtype == torch.int64
    assert (rows.diff() > 0).all(), "ascending, none twice"
    assert 0 <= rows[0] <= rows[-1] < num_local
    assert set(labels) - {-1} <= set(rows.tolist())


def test_the_draw_is_splitmix64_of_seed_step_and_class():
    """Derived again in unsigned arithmetic; torch's int64 must wrap and shift to the same bits."""

    def mix(state: int) -> int:
        for shift, multiplier in [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)]:
            state = (state ^ (state >> shift)) * multiplier % 2**64
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    assert mix(golden) == 0xE220A8397B1DCDAF  # the published generator's first output from seed 0
    step_key = mix((mix(11) + 5 * golden) % 2**64)
    keys = [mix((step_key + (3000 + row) * golden) % 2**64) % 2**62 for row in range(1000)]
    expected = sorted(sorted(range(1000), key=lambda row: keys[row])[-100:])
    assert draw(seed=11, step=5, first_class=3000).tolist() == expected


def test_a_rate_of_one_is_every_row():
    assert torch.equal(draw([3, 5], size=1000), torch.arange(1000))


def test_an_empty_rank_samples_nothing():
    assert draw([-1, -1], num_local=0, size=0).shape == (0,)


def test_the_same_step_gives_the_same_rows_and_another_step_or_seed_others():
    """Nothing but (seed, step, class ids) decides, so a resumed run repeats the draw."""
    first = draw(step=7, seed=3)
    assert torch.equal(first, draw(step=7, seed=3))
    # Independent draws of 100 from 1000 share 10 ± 3.
    for other in (draw(step=8, seed=3), draw(step=7, seed=4), draw(step=6, seed=3)):
        assert overlap(first, other) < 25


def test_negatives_differ_from_rank_to_rank():
    """The same seed and step on every rank: the global class ids alone tell the draws apart."""
    ranks = [draw(first_class=rank * 1000) for rank in range(4)]
    for left in range(4):
        for right in range(left):
            assert overlap(ranks[left], ranks[right]) < 25


def test_negatives_are_uniform():
    """Chi-square of how often each of 64 rows is drawn in 2,000 steps of 16."""
    counts = torch.zeros(64)
    for step in range(2000):
        counts[draw(num_local=64, size=16, step=step)] += 1
    expected = 2000 * 16 / 64
    # Draws without replacement have a variance of 1 - 16/64 of the independent draws'.
    statistic = ((counts - expected) ** 2).sum() / expected / (1 - 16 / 64)
    # 63 degrees of freedom: 99.98 % of uniform samplers lie between.
    assert 30 < statistic < 115


def test_draws_of_neighboring_steps_and_classes_are_uncorrelated():
    """A weak hash shows as rows that come together, or that return some steps later."""
    drawn = torch.zeros(1500, 64)
    for step in range(1500):
        drawn[step, draw(num_local=64, size=32, step=step)] = 1
    centered = drawn - 0.5
    for lag in (1, 2, 3):
        over_steps = (centered[lag:] * centered[:-lag]).mean() / 0.25
        assert over_steps.abs() < 0.02
    for lag in (1, 2, 3):  # without replacement, two rows' correlation is -1/63
        over_rows = (centered[:, lag:] * centered[:, :-lag]).mean() / 0.25
        assert (over_rows + 1 / 63).abs() < 0.02


def test_sampling_is_graph_safe():
    labels, step = torch.tensor([3, -1, 700, 3]), torch.tensor(5)
    with GraphSafety():
        sample_rows(labels, num_local=1000, size=100, seed=1, step=step, first_class=0)


@pytest.mark.parametrize(
    "unsafe",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: x.__setitem__(x > 0, torch.zeros(2)),
    ],
)
def test_the_graph_safety_mode_catches_what_a_graph_cannot_hold(unsafe):
    with GraphSafety(), pytest.raises(GraphUnsafeError):
        unsafe(torch.tensor([1.0, -1.0, 2.0]))


def test_the_graph_safety_mode_lets_static_shapes_through():
    with GraphSafety():
        x = torch.arange(6.0)
        x[torch.tensor([0, 2])] = x[torch.tensor([1, 3])]
        torch.where(x > 2, x, 0.0).index_select(0, torch.tensor([1]))
