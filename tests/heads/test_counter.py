"""Counter-based draws: the published generator's bits, and the distributions made from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heads.counter import below, bits, mix, normal, step_key
from tests.graph_safety import GraphSafety

COUNT = 200_000
INDEX = torch.arange(COUNT)
SEEDS = st.integers(0, 2**63 - 1)


def key(seed: int = 0, step: int = 0, stream: int = 0) -> torch.Tensor:
    return step_key(seed, torch.tensor(step), stream)


def splitmix(state: int) -> int:
    """splitmix64's output function in unsigned arithmetic."""
    for shift, multiplier in [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)]:
        state = (state ^ (state >> shift)) * multiplier % 2**64
    return state ^ (state >> 31)


def test_the_reference_is_the_published_generator():
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first output from seed 0


@given(st.integers(-(2**63), 2**63 - 1))
def test_mix_is_splitmix64(state):
    """int64 must wrap, and shift zeros in, to the same bits."""
    assert mix(torch.tensor(state)).item() % 2**64 == splitmix(state % 2**64)


@given(SEEDS, SEEDS)
def test_bits_are_the_generators_upper_63_of_key_and_index(key, index):
    found = bits(torch.tensor(key), torch.tensor([index]))
    assert found.tolist() == [splitmix((key + index * 0x9E3779B97F4A7C15) % 2**64) >> 1]


@given(SEEDS, st.integers(0, 2**40), st.integers(0, 9))
def test_a_steps_key_is_mixed_of_seed_stream_and_step(seed, step, stream):
    """The first two on the host."""
    begin = splitmix((splitmix(seed) + stream) % 2**64)
    expected = splitmix((begin + step * 0x9E3779B97F4A7C15) % 2**64)
    assert key(seed, step, stream).item() % 2**64 == expected


def test_bits_are_never_negative_and_each_is_set_half_of_the_time():
    drawn = bits(key(), INDEX)
    assert drawn.dtype == torch.int64
    assert (drawn >= 0).all()
    for place in range(63):
        share = ((drawn >> place) & 1).double().mean().item()
        assert abs(share - 0.5) < 4.5 * 0.5 / math.sqrt(COUNT)


@given(SEEDS, st.integers(1, 2**31))
def test_below_stays_below(seed, limit):
    drawn = below(key(seed), torch.arange(100), limit)
    assert drawn.dtype == torch.int64
    assert ((drawn >= 0) & (drawn < limit)).all()


def test_below_reaches_both_ends_of_the_widest_range():
    """31 bits are drawn: the greatest limit must use all of them without overflow."""
    drawn = below(key(), INDEX, 2**31).double() / 2**31
    assert drawn.min() < 1e-4
    assert drawn.max() > 1 - 1e-4


@pytest.mark.parametrize("limit", [2, 3, 10, 64, 1000])
def test_below_is_uniform(limit):
    counts = below(key(seed=4), INDEX, limit).bincount(minlength=limit).double()
    expected = COUNT / limit
    statistic = ((counts - expected) ** 2).sum().item() / expected
    freedom = limit - 1
    assert abs(statistic - freedom) < 4.5 * math.sqrt(2 * freedom)


def test_below_takes_a_limit_for_each_index():
    limit = INDEX % 7 + 1
    drawn = below(key(), INDEX, limit)
    for each in range(1, 8):
        assert torch.equal(drawn[limit == each].unique(), torch.arange(each))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_has_the_moments_of_a_standard_normal(dtype):
    drawn = normal(key(), INDEX, dtype)
    assert drawn.dtype == dtype
    drawn = drawn.double()
    # The standard errors are those of a normal's first, second, third and fourth moments.
    for power, moment, error in [(1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)]:
        assert abs((drawn**power).mean().item() - moment) < 4.5 * error / math.sqrt(COUNT)
    for bound, share in [(1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)]:
        within = (drawn.abs() < bound).double().mean().item()
        assert abs(within - share) < 4.5 * math.sqrt(share * (1 - share) / COUNT)


def test_neighboring_draws_are_uncorrelated():
    """Box and Muller's two inputs come from neighboring indices, as do the draws."""
    drawn = normal(key(), INDEX, torch.float64)
    for lag in (1, 2, 3):
        assert abs((drawn[lag:] * drawn[:-lag]).mean().item()) < 4.5 / math.sqrt(COUNT)


def test_a_key_differs_by_seed_step_and_stream():
    keys = [
        key(seed, step, stream).item()
        for seed in range(10)
        for step in range(10)
        for stream in range(10)
    ]
    assert len(set(keys)) == len(keys)
    assert key(3, 4, 5).item() == key(3, 4, 5).item()


def test_draws_of_neighboring_keys_are_uncorrelated():
    """A weak key would show up as streams, steps or seeds that move together."""
    base = normal(key(7, 7, 7), INDEX, torch.float64)
    for other in [key(8, 7, 7), key(7, 8, 7), key(7, 7, 8)]:
        product = (base * normal(other, INDEX, torch.float64)).mean().item()
        assert abs(product) < 4.5 / math.sqrt(COUNT)


def test_draws_are_graph_safe():
    step, index = torch.tensor(3), torch.arange(5)
    with GraphSafety():
        each = step_key(1, step, 2)
        normal(each, below(each, bits(each, index) >> 40, index + 1), torch.float32)
