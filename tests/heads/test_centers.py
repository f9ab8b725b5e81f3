"""Where centers start: by global class id alone, in a stream that nothing else draws from."""

from __future__ import annotations

import pytest
import torch

from heads.centers import initial_centers, shard_of

DIM = 8
BLOCK = 1024  # ids that one generator draws


def test_a_class_starts_at_the_same_place_whatever_is_drawn_around_it():
    whole = initial_centers(0, 3000, DIM, seed=1)
    assert torch.equal(whole, initial_centers(0, 3000, DIM, seed=1))
    for start, count in [(0, 10), (1000, 100), (1024, 1024), (2999, 1), (1500, 0)]:
        part = initial_centers(start, count, DIM, seed=1)
        assert torch.equal(part, whole[start : start + count])


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_ranks_of_any_world_start_as_one_process_does(world_size):
    parts = []
    for rank in range(world_size):
        shard = shard_of(3000, rank=rank, world_size=world_size)
        parts.append(initial_centers(shard.first_class, shard.num_local, DIM, seed=5))
    assert torch.equal(torch.cat(parts), initial_centers(0, 3000, DIM, seed=5))


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_centers_are_normal_with_a_deviation_of_a_hundredth(seed):
    centers = initial_centers(0, 5000, 64, seed=seed).double() / 0.01
    assert centers.mean().item() == pytest.approx(0, abs=0.01)
    assert centers.std().item() == pytest.approx(1, rel=0.01)
    assert (centers**4).mean().item() == pytest.approx(3, rel=0.02)
    assert len(centers.unique(dim=0)) == 5000, "no block repeats another"


@pytest.mark.parametrize("seed", [0, 1, 42, 123_456_789, 2**32, 2**32 + 1, 2**63 - 1])
def test_centers_are_no_stream_that_a_user_draws(seed):
    """Not of the seed, nor of seeds near it or of small ones, from which a block could start."""
    centers = initial_centers(0, 3 * BLOCK, DIM, seed=seed) / 0.01
    firsts = centers[::BLOCK]
    for near in {0, seed, seed % 2**32}:
        for other in range(max(near - 50, 0), min(near + 51, 2**63)):
            generator = torch.Generator().manual_seed(other)
            drawn = torch.empty(BLOCK, DIM).normal_(generator=generator)[0]
            assert not torch.isclose(firsts, drawn, atol=1e-3).all(1).any()


def test_seeds_give_centers_of_their_own():
    """Near ones, and ones that differ only above the 32 bits that a generator keeps."""
    seeds = [*range(100), 2**32, 2**32 + 1, 2**40, 2**63 - 1]
    firsts = torch.cat([initial_centers(0, 2 * BLOCK, DIM, seed=seed)[::BLOCK] for seed in seeds])
    assert len(firsts.unique(dim=0)) == 2 * len(seeds), "not shifted by a block either"
