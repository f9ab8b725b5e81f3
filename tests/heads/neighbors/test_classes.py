"""The draw with neighbors: positives in, nearest first, nothing twice, the rest at random."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heads.centers import shard_of
from heads.counter import step_key
from heads.neighbors.classes import NeighborClasses, choose, sampling_near
from heads.neighbors.table import HardNegatives, NeighborTable
from heads.ranks import Ranks
from heads.sampling import AllClasses, RandomClasses, Sample, Shard
from tests.graph_safety import GraphSafety


def table_of(ids: Tensor, shard: Shard, share: float = 0.5) -> NeighborTable:
    """This rank's rows of a table of all classes; ranks that know what the others would say."""
    centers = torch.zeros(shard.num_local, 4)
    settings = HardNegatives(share=share, neighbors=ids.shape[1], every=10)
    table = NeighborTable(settings, shard, Ranks(None), centers, subcenters=1)
    table.ids.copy_(ids[shard.first_class : shard.first_class + shard.num_local])
    known = {"labels": torch.empty(0, dtype=torch.int64)}

    def maximum(own: Tensor) -> Tensor:
        labels = known["labels"]
        inside = (labels >= 0) & (labels < shard.num_classes)
        said = torch.where(inside.unsqueeze(1), ids[labels.clamp(0, shard.num_classes - 1)], -1)
        mine = (labels >= shard.first_class) & (labels < shard.first_class + shard.num_local)
        assert torch.equal(own, torch.where(mine.unsqueeze(1), said, -1)), "its own rows, no others"
        return said

    table._ranks = SimpleNamespace(maximum=maximum)
    table.known = known
    return table


def draw(
    sampling: NeighborClasses, labels: list[int], shard: Shard, step: int = 0
) -> tuple[Sample, list[int]]:
    wanted = torch.tensor(labels, dtype=torch.int64)
    sampling.table.known["labels"] = wanted
    sample = sampling.draw(wanted, shard, step_key(0, torch.tensor(step), 0))
    if sample.rows is None:
        return sample, list(range(shard.num_local))
    return sample, sample.rows.tolist()


def some_table(num_classes: int, neighbors: int, seed: int) -> Tensor:
    """Different other classes in every row, some of them missing at its end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((num_classes, neighbors), -1, dtype=torch.int32)
    for row in range(num_classes):
        others = torch.randperm(num_classes, generator=generator)
        others = others[others != row][:neighbors]
        count = int(torch.randint(0, len(others) + 1, (1,), generator=generator))
        ids[row, :count] = others[:count].int()
    return ids


def by_loops(labels: list[int], ids: Tensor, shard: Shard, *, size: int, most: int) -> set[int]:
    """Global ids of the neighbors that take part, from the rule as it is described."""
    own = range(shard.first_class, shard.first_class + shard.num_local)
    positives = {label for label in labels if label in own}
    room, chosen = min(most, size - len(positives)), []
    for rank in range(ids.shape[1]):
        for label in labels:
            if 0 <= label < shard.num_classes and len(chosen) < room:
                near = int(ids[label, rank])
                if near in own and near not in positives and near not in chosen:
                    chosen.append(near)
    return set(chosen)


@given(
    num_classes=st.integers(1, 80),
    ranks=st.integers(1, 3),
    neighbors=st.integers(1, 6),
    labels=st.lists(st.integers(-3, 90), min_size=1, max_size=20),
    rate=st.floats(0.01, 0.99),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
)
def test_the_sample_is_what_the_rule_says(num_classes, ranks, neighbors, labels, rate, share, seed):
    ids = some_table(num_classes, neighbors, seed)
    for rank in range(ranks):
        shard = shard_of(num_classes, rank=rank, world_size=ranks)
        sampling = NeighborClasses(rate, table_of(ids, shard, share))
        sample, rows = draw(sampling, labels, shard, step=seed)
        size = RandomClasses(rate).size(shard, len(labels))
        assert sampling.size(shard, len(labels)) == size == len(rows) == len(set(rows))
        assert all(0 <= row < shard.num_local for row in rows)
        assert len(sample.positions) == len(labels)
        for label, position in zip(labels, sample.positions.tolist(), strict=True):
            here = 0 <= label - shard.first_class < shard.num_local
            assert (rows[position] == label - shard.first_class) if here else position == -1
        most = round(share * size)
        wanted = by_loops(labels, ids, shard, size=size, most=most)
        assert {near - shard.first_class for near in wanted} <= set(rows)
        near = torch.stack(
            [ids[c] if 0 <= c < num_classes else torch.full_like(ids[0], -1) for c in labels]
        )
        chosen = choose(torch.tensor(labels), near, shard, size=size, most=most)
        assert sorted(chosen[chosen >= 0].tolist()) == sorted(wanted)


def test_a_table_of_nothing_gives_the_random_classes():
    """As before the first table: bit for bit what RandomClasses draws."""
    shard, labels = shard_of(500, rank=1, world_size=2), [3, 300, 301, 300]
    nothing = torch.full((500, 3), -1, dtype=torch.int32)
    found, _ = draw(NeighborClasses(0.1, table_of(nothing, shard)), labels, shard, step=4)
    key = step_key(0, torch.tensor(4), 0)
    expected = RandomClasses(0.1).draw(torch.tensor(labels), shard, key)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.positions, expected.positions)


def test_what_neighbors_leave_is_random():
    """Two labels name four neighbors at most; the other 44 rows are others at every step."""
    shard, ids = shard_of(1000, rank=0, world_size=1), some_table(1000, 2, seed=3)
    ids[7], ids[8] = torch.tensor([1, 2]), torch.tensor([3, 4])
    sampling = NeighborClasses(0.05, table_of(ids, shard, share=1.0))
    steps = [set(draw(sampling, [7, 8], shard, step)[1]) for step in range(30)]
    always = set.intersection(*steps)
    assert always == {7, 8, 1, 2, 3, 4}
    seen = set().union(*steps)
    assert len(seen) > 600, "of 1000, in 30 draws of 44"


def test_the_same_neighbors_at_any_number_of_ranks():
    """As long as no rank's places are full."""
    ids, labels = some_table(300, 4, seed=5), [10, 150, 299, 10, 77]
    chosen = []
    for ranks in (1, 2, 3):
        found = set()
        for rank in range(ranks):
            shard = shard_of(300, rank=rank, world_size=ranks)
            near = choose(torch.tensor(labels), ids[labels], shard, size=60, most=30)
            found |= set(near[near >= 0].tolist())
        chosen.append(found)
    assert chosen[0] == chosen[1] == chosen[2] != set()


@pytest.mark.parametrize("num_local", [0, 1, 400])
def test_the_draw_is_graph_safe(num_local):
    shard = Shard(num_classes=num_local + 5, first_class=2, num_local=num_local)
    settings = HardNegatives(share=0.5, neighbors=3, every=10)
    table = NeighborTable(settings, shard, Ranks(None), torch.zeros(num_local, 4), subcenters=1)
    table.ids.fill_(2)
    labels, step = torch.tensor([2, -1, 9000, 2]), torch.tensor(5)
    with GraphSafety():
        NeighborClasses(0.1, table).draw(labels, shard, step_key(1, step, 0))


def test_only_random_samples_have_neighbors_in_them():
    shard = shard_of(10, rank=0, world_size=1)
    table = table_of(some_table(10, 2, seed=0), shard)
    assert sampling_near(RandomClasses(0.3), table) == NeighborClasses(0.3, table)
    assert sampling_near(AllClasses(), table) == AllClasses()
    assert sampling_near(RandomClasses(0.3), None) == RandomClasses(0.3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0.0}, r"share=0.0, expected a number in \(0, 1\]"),
        ({"share": 1.1}, "share=1.1"),
        ({"share": float("nan")}, "share=nan"),
        ({"share": 0.5, "neighbors": 0}, "neighbors=0, expected an integer >= 1"),
        ({"share": 0.5, "every": 0}, "every=0, expected an integer >= 1"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        HardNegatives(**values)


def test_users_read_it_in_words():
    shard = shard_of(40, rank=0, world_size=1)
    sampling = NeighborClasses(0.3, table_of(some_table(40, 2, seed=0), shard, share=0.25))
    assert str(sampling) == (
        "30% of them in a step, the batch's own and others at random; up to 25% of these are near "
        "the batch's own"
    )
