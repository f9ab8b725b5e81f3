"""The search finds the nearest classes, the same to the last bit however the work is divided."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads.neighbors import search
from heads.neighbors.search import LARGEST_DIM, NOTHING, rounded, take_nearest, write_ids
from tests.graph_safety import GraphSafety


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_int8(centers: Tensor, subcenters: int = 1) -> Tensor:
    out = torch.empty(centers.shape, dtype=torch.int8)
    rounded(centers, subcenters=subcenters, out=out)
    return out


def nothing(rows: int, neighbors: int) -> Tensor:
    return torch.full((rows, neighbors), NOTHING)


def written(best: Tensor) -> Tensor:
    ids = torch.empty(best.shape, dtype=torch.int32)
    write_ids(best, out=ids)
    return ids


def nearest(
    rows: Tensor,
    neighbors: int,
    *,
    pieces: int,
    first: int = 0,
    stop: int | None = None,
    k: int = 1,
) -> Tensor:
    """(rows, neighbors) ids for the rows from `first` to `stop`, the candidates in `pieces`."""
    mine = rows[first:stop]
    best, own = nothing(len(mine), neighbors), {"first_row": first, "subcenters": k}
    pieces = min(pieces, len(rows))
    edges = [len(rows) * piece // pieces for piece in range(pieces + 1)]
    for start, end in pairwise(edges):
        part = rows[start:end]
        take_nearest(best, mine, part, first_candidate=start, **own)
    return written(best)


def by_loops(rows: Tensor, neighbors: int, k: int = 1) -> list[list[int]]:
    """The same from exact integers: nearest first, of equals the smaller id first."""
    points = rows.view(len(rows), k, -1).tolist()
    found = []
    for own, point in enumerate(points):
        near = []
        for other, theirs in enumerate(points):
            if other != own:
                score = max(sum(a * b for a, b in zip(one, two)) for one in point for two in theirs)
                near.append((-score, other))
        ids = [other for _, other in sorted(near)[:neighbors]]
        found.append(ids + [-1] * (neighbors - len(ids)))
    return found


@settings(max_examples=40, deadline=None)
@given(
    classes=st.integers(1, 12),
    dim=st.integers(1, 5),
    subcenters=st.integers(1, 3),
    neighbors=st.integers(1, 6),
    pieces=st.integers(1, 4),
    values=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
@example(classes=5, dim=1, subcenters=1, neighbors=6, pieces=2, values=1, seed=0)
def test_the_nearest_are_found_and_of_equals_the_smaller_ids(
    classes, dim, subcenters, neighbors, pieces, values, seed
):
    """Of few different values, so that many are equal; fewer classes than neighbors, too."""
    generator = torch.Generator().manual_seed(seed)
    shape = (classes, subcenters * dim)
    rows = torch.randint(-values, values + 1, shape, generator=generator).to(torch.int8)
    found = nearest(rows, neighbors, pieces=pieces, k=subcenters)
    assert found.dtype == torch.int32
    assert found.tolist() == by_loops(rows, neighbors, subcenters)


def test_any_division_of_the_work_gives_the_same(monkeypatch):
    """Rows split over ranks, candidates in pieces, blocks of another size."""
    rows = in_int8(normal(300, 48))
    whole = nearest(rows, 5, pieces=1)
    monkeypatch.setattr(search, "_CPU_ROWS", 7)
    for ranks, pieces in ((1, 9), (2, 4), (3, 1), (5, 30)):
        edges = [300 * rank // ranks for rank in range(ranks + 1)]
        parts = [
            nearest(rows, 5, pieces=pieces, first=start, stop=stop)
            for start, stop in pairwise(edges)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_they_are_those_of_the_largest_cosines():
    """By the centers themselves, in float64: rounding changes the order of near ones alone."""
    centers = normal(400, 256) + 2 * normal(40, 256, seed=1).repeat(10, 1)
    cosines = torch.nn.functional.normalize(centers.double(), dim=1)
    cosines = (cosines @ cosines.t()).fill_diagonal_(-1)
    found = nearest(in_int8(centers), 9, pieces=3).long()
    expected = cosines.topk(9, dim=1)
    assert (expected.values - cosines.gather(1, found)).abs().max() < 0.007  # six deviations
    same = (found.sort(1).values == expected.indices.sort(1).values).float().mean()
    assert same > 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_lengths_do_not_count(dtype, length):
    centers = normal(20, 64).to(dtype)
    plain, scaled = in_int8(centers), in_int8(centers.double() * length)
    assert torch.equal(plain, scaled)
    norms = plain.double().norm(dim=1) / (32 * 8)
    assert (norms - 1).abs().max() < 0.02


def test_each_subcenter_counts_as_long_as_the_others():
    centers = normal(6, 3 * 64).view(6, 3, 64) * torch.tensor([1e-3, 1.0, 1e3]).view(1, 3, 1)
    rows = in_int8(centers.view(6, -1), subcenters=3).double().view(6, 3, 64)
    assert (rows.norm(dim=2) / (32 * 8) - 1).abs().max() < 0.02


def test_rows_without_a_direction_are_zero():
    centers = normal(5, 8)
    centers[1], centers[2, 3], centers[3, 0] = 0, float("nan"), float("inf")
    rows = in_int8(centers)
    assert not rows[1:4].any()
    assert rows[0].any()
    assert rows[4].any()


@pytest.mark.parametrize("seed", range(3))
def test_float32_holds_every_sum_of_the_largest_dimension(seed):
    """All entries alike give the largest sums there can be; int64 says what they are."""
    rows = in_int8(torch.cat([torch.ones(2, LARGEST_DIM), normal(6, LARGEST_DIM, seed=seed)]))
    assert torch.equal((rows.float() @ rows.float().t()).long(), rows.long() @ rows.long().t())
    largest = (32 * LARGEST_DIM**0.5 + LARGEST_DIM**0.5 / 2) ** 2
    assert largest < 1 << 24
    assert (largest + 1) * search.PIECE < 1 << 31


def test_it_reads_nothing_on_the_host():
    rows = in_int8(normal(9, 8))
    with GraphSafety():
        nearest(rows, 3, pieces=2)
