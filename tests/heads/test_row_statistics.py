"""The ranks' statistics over all classes are the same in one collective and in two."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from heads import statistics
from heads.ranks import Ranks
from heads.statistics import Statistics, over_all_ranks
from tests.ranks import World, run_ranks

RANKS, ROWS = 3, 7


def of_rank(rank: int) -> Statistics:
    """Row 0 sees no class anywhere, row 1 none on rank 0; NaN is one rank's, and inf is."""
    generator = torch.Generator().manual_seed(rank)
    negative, of_bank, largest, cosine, own = torch.randn(5, ROWS, generator=generator).unbind()
    owner = torch.arange(ROWS) % RANKS == rank
    cosine, own = cosine.where(owner, 0.0), own.where(owner, 0.0)
    negative = 60 * negative
    for part in (negative, of_bank, largest):
        part[0] = -math.inf
        part[1] = part[1] if rank else -math.inf
    if rank == 1:
        negative[2], of_bank[3], negative[4] = math.nan, math.nan, math.inf
    return Statistics(negative, of_bank, cosine, own, largest)


def both_ways(world: World) -> list[Statistics]:
    found = []
    for limit in (statistics.GATHERED_BYTES, 0):
        with patch.object(statistics, "GATHERED_BYTES", limit):
            found.append(over_all_ranks(of_rank(world.rank), Ranks(None)))
    negative_alone = over_all_ranks(Statistics(of_rank(world.rank).negative), Ranks(None))
    assert negative_alone[1:] == (None,) * 4
    return found


@pytest.mark.slow
def test_two_collectives_find_what_one_does(tmp_path: Path):
    ranks = list(map(of_rank, range(RANKS)))
    for one, two in run_ranks(both_ways, world_size=RANKS, folder=tmp_path):
        check(one, ranks, rtol=0)
        check(two, ranks, rtol=2e-6)


def check(found: Statistics, ranks: list[Statistics], *, rtol: float) -> None:
    parts = [torch.stack(part) for part in zip(*ranks)]
    for name, part, every in zip(Statistics._fields, found, parts, strict=True):
        if name in ("negative", "of_bank"):
            torch.testing.assert_close(part, every.logsumexp(0), rtol=rtol, atol=0, equal_nan=True)
        else:
            assert torch.equal(part, every.amax(0) if name == "largest" else every.sum(0))
