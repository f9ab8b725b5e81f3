"""Sampling: no positive is ever lost, the shape never changes, and the draw can be had again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from heads.centers import shard_of as split
from heads.counter import step_key
from heads.sampling import (
    EVERYONE,
    NOBODY,
    AllClasses,
    BatchClasses,
    GroupClasses,
    RandomClasses,
    Sample,
    Sampling,
    Shard,
    sampling_at,
)
from tests.graph_safety import GraphSafety


def shard_of(num_local: int, first_class: int = 0, after: int = 0) -> Shard:
    return Shard(
        num_classes=max(1, first_class + num_local + after),
        first_class=first_class,
        num_local=num_local,
    )


def draw(
    sampling: Sampling, shard: Shard, labels: Sequence[int] = (-1,), *, seed: int = 0, step: int = 0
) -> Sample:
    key = step_key(seed, torch.tensor(step), 0)
    return sampling.draw(torch.tensor(labels, dtype=torch.int64), shard, key)


def rows_of(sample: Sample, shard: Shard) -> list[int]:
    """The sampled rows as a list, having checked what every sampling promises of them."""
    if sample.rows is None:
        return list(range(shard.num_local))
    assert sample.rows.dtype == torch.int64
    rows = sample.rows.tolist()
    assert len(set(rows)) == len(rows)
    assert all(0 <= row < shard.num_local for row in rows)
    return rows


def check(sample: Sample, shard: Shard, labels: Sequence[int], size: int) -> list[int]:
    rows = rows_of(sample, shard)
    assert len(rows) == size
    assert sample.positions.dtype == torch.int64
    for label, position in zip(labels, sample.positions.tolist(), strict=True):
        if 0 <= label - shard.first_class < shard.num_local:
            assert rows[position] == label - shard.first_class
        else:
            assert position == -1
    return rows


def overlap(left: Tensor, right: Tensor) -> int:
    return len(set(left.tolist()) & set(right.tolist()))


LABELS = st.one_of(
    st.lists(st.integers(-5, 400), min_size=1, max_size=150),
    st.builds(lambda label, count: [label] * count, st.integers(-5, 400), st.integers(1, 150)),
    st.builds(
        lambda start, count: list(range(start, start + count)),
        st.integers(-5, 300),
        st.integers(1, 150),
    ),
)


@pytest.mark.parametrize(
    ("num_local", "num_labels", "rate", "expected"),
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
    num_local, num_labels, rate, expected
):
    assert RandomClasses(rate).size(shard_of(num_local), num_labels) == expected


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (AllClasses(), "all in every step"),
        (
            RandomClasses(7 / 93_431),
            "0.00749% of them in a step, the batch's own and others at random",
        ),
        (BatchClasses(), "only the batch's own in a step"),
        (GroupClasses(20), "in 20 groups, those of the batch in a step"),
        (
            GroupClasses(20, random_groups=1),
            "in 20 groups, those of the batch and 1 other in a step",
        ),
        (
            GroupClasses(20, random_groups=3, scope="sample"),
            "in 20 groups, those of the batch and 3 others in a step, where a sample sees its own "
            "and 3 others",
        ),
    ],
)
def test_users_read_it_in_words(sampling, said):
    assert str(sampling) == said


@given(
    count=st.integers(1, 3000),
    num_classes=st.integers(1, 3000),
    world_size=st.integers(1, 9),
)
def test_a_count_of_classes_is_shared_by_the_size_of_the_shards(count, num_classes, world_size):
    """Each rank rounds its share to whole classes."""
    sampling = RandomClasses(min(1.0, count / num_classes))
    shards = [split(num_classes, rank=rank, world_size=world_size) for rank in range(world_size)]
    sizes = [sampling.size(shard, 0) for shard in shards]
    assert abs(sum(sizes) - min(count, num_classes)) <= world_size / 2
    for shard, size in zip(shards, sizes, strict=True):
        assert abs(size - min(count, num_classes) * shard.num_local / num_classes) <= 0.5 + 1e-9


@given(
    num_local=st.integers(0, 200),
    first_class=st.integers(0, 200),
    labels=LABELS,
    rate=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 2**40),
)
@example(num_local=0, first_class=7, labels=[7], rate=0.5, seed=0, step=0)
@example(num_local=1, first_class=7, labels=[7, 6], rate=0.5, seed=0, step=0)
@example(num_local=2, first_class=7, labels=[8], rate=0.5, seed=0, step=0)
@example(num_local=200, first_class=0, labels=list(range(30, 80)), rate=0.1, seed=0, step=0)
@example(num_local=200, first_class=0, labels=[*range(199)], rate=0.1, seed=0, step=0)
def test_random_classes_hold_every_positive(num_local, first_class, labels, rate, seed, step):
    """Labels all alike, all different, neighbors, none of ours, more than the rate asks for."""
    shard, sampling = shard_of(num_local, first_class, after=1000), RandomClasses(rate)
    sample = draw(sampling, shard, labels, seed=seed, step=step)
    check(sample, shard, labels, sampling.size(shard, len(labels)))


@pytest.mark.parametrize(
    ("num_local", "rate", "num_labels"), [(50, 1.0, 1), (50, 0.999, 1), (50, 0.1, 50), (0, 0.1, 3)]
)
def test_when_all_rows_take_part_they_are_not_listed(num_local, rate, num_labels):
    assert draw(RandomClasses(rate), shard_of(num_local), [0] * num_labels).rows is None


def test_the_cost_does_not_depend_on_the_number_of_classes():
    """A table of one byte a class would need 2 GiB here, and the products of row numbers 2**42."""
    shard = shard_of(2**31)
    labels = [0, 2**31 - 1, 5, 2**30]
    check(draw(RandomClasses(1e-6), shard, labels), shard, labels, 2147)


def test_the_rows_nearly_ascend():
    """One descent where the rotation wraps, and about one behind each positive."""
    shard = shard_of(10_000)
    for labels in [[-1], [9, 10, 11, 12, 5000, 9999]]:
        rows = draw(RandomClasses(0.1), shard, labels, step=3).rows
        assert (rows.diff() < 0).sum() <= 2 + len(labels)


def chi_square(counts: Tensor, steps: int, chance: float) -> float:
    """Per row 1 on the average, if every row is drawn with `chance` at every step."""
    return ((counts - steps * chance) ** 2).mean().item() / (steps * chance * (1 - chance))


@pytest.mark.slow
@pytest.mark.parametrize(("num_local", "size"), [(64, 16), (50, 16), (13, 9), (33, 32), (40, 1)])
def test_negatives_are_uniform(num_local, size):
    """Where S divides the rows and where it does not, which makes some runs longer."""
    steps = 3000
    counts = torch.zeros(num_local)
    for step in range(steps):
        counts[draw(RandomClasses(size / num_local), shard_of(num_local), step=step).rows] += 1
    assert counts.sum() == steps * size
    assert 0.4 < chi_square(counts, steps, size / num_local) < 1.8


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[20], [19, 20, 21, 20]])
def test_a_positives_neighbors_are_negatives_as_often_as_others(labels):
    steps, num_local = 3000, 60
    counts = torch.zeros(num_local)
    for step in range(steps):
        counts[draw(RandomClasses(0.2), shard_of(num_local), labels, step=step).rows] += 1
    positives = sorted(set(labels))
    assert (counts[positives] == steps).all()
    others = [row for row in range(num_local) if row not in positives]
    chance = (12 - len(positives)) / len(others)
    assert 0.4 < chi_square(counts[others], steps, chance) < 1.8


def test_positives_leave_no_region_without_negatives():
    """Half of the slots go to neighboring positives; about every second run keeps its negative."""
    labels = list(range(500, 550))
    sample = draw(RandomClasses(0.01), shard_of(10_000), labels, step=1)
    rows = sample.rows.sort().values
    assert rows.diff().max() < 400  # four runs
    assert rows[0] + 10_000 - rows[-1] < 400


@pytest.mark.slow
def test_any_two_rows_can_meet():
    met = torch.zeros(12, 12)
    for step in range(3000):
        rows = draw(RandomClasses(0.25), shard_of(12), step=step).rows
        met[rows.unsqueeze(1), rows] += 1
    assert (met > 10).all()


def test_the_same_step_gives_the_same_rows_and_another_step_or_seed_others():
    """Nothing but (key, labels, shard) decides, so a resumed run repeats the draw."""
    sampling, shard = RandomClasses(0.1), shard_of(1000)
    first = draw(sampling, shard, step=7, seed=3).rows
    assert torch.equal(first, draw(sampling, shard, step=7, seed=3).rows)
    # Independent draws of 100 from 1000 share 10 ± 3.
    for step, seed in [(8, 3), (7, 4), (6, 3)]:
        assert overlap(first, draw(sampling, shard, step=step, seed=seed).rows) < 25


def test_negatives_differ_from_rank_to_rank():
    """The same key on every rank: where a rank's classes begin tells the draws apart."""
    ranks = [draw(RandomClasses(0.1), shard_of(1000, rank * 1000)).rows for rank in range(4)]
    for left in range(4):
        for right in range(left):
            assert overlap(ranks[left], ranks[right]) < 25


def test_draws_of_neighboring_steps_are_uncorrelated():
    """A weak key shows as rows that return some steps later."""
    drawn = torch.zeros(1500, 64)
    for step in range(1500):
        drawn[step, draw(RandomClasses(0.5), shard_of(64), step=step).rows] = 1
    centered = drawn - 0.5
    for lag in (1, 2, 3):
        assert ((centered[lag:] * centered[:-lag]).mean() / 0.25).abs() < 0.02


@given(num_local=st.integers(0, 200), first_class=st.integers(0, 200), labels=LABELS)
def test_all_classes_takes_all(num_local, first_class, labels):
    shard = shard_of(num_local, first_class, after=1000)
    sample = draw(AllClasses(), shard, labels)
    assert sample.rows is None
    check(sample, shard, labels, AllClasses().size(shard, len(labels)))
    assert sample.column_groups is None
    assert sample.row_groups is None


@given(num_local=st.integers(0, 200), first_class=st.integers(0, 200), labels=LABELS)
@example(num_local=200, first_class=0, labels=[7])
@example(num_local=200, first_class=0, labels=[7] * 150)
@example(num_local=3, first_class=0, labels=[1, 1, 400, 2])
def test_batch_classes_shows_the_classes_of_the_batch_and_no_others(num_local, first_class, labels):
    """Labels of other ranks alone, too: then a rank shows nothing."""
    shard = shard_of(num_local, first_class, after=1000)
    sample = draw(BatchClasses(), shard, labels)
    rows = check(sample, shard, labels, min(num_local, len(labels)))
    shown = [row for row, group in zip(rows, sample.column_groups.tolist()) if group == EVERYONE]
    assert sorted(shown) == sorted({label - first_class for label in labels} & {*range(num_local)})
    assert set(sample.column_groups.tolist()) <= {EVERYONE, NOBODY}
    assert set(sample.row_groups.tolist()) == {EVERYONE}
    assert sample.column_groups.dtype == sample.row_groups.dtype == torch.int32


def test_a_rate_names_its_sampling():
    samplings = [sampling_at(rate) for rate in (0.0, 0.1, 1.0)]
    assert samplings == [BatchClasses(), RandomClasses(0.1), AllClasses()]


def groups_on(shard: Shard, groups: int) -> dict[int, list[int]]:
    """The rows that each group has on this rank, for the groups that have any, class by class."""
    width = -(-shard.num_classes // groups)
    found: dict[int, list[int]] = {}
    for row in range(shard.num_local):
        found.setdefault((shard.first_class + row) // width, []).append(row)
    return found


@given(
    before=st.integers(0, 60),
    num_local=st.integers(0, 80),
    after=st.integers(0, 60),
    groups=st.integers(1, 25),
    random_groups=st.integers(0, 6),
    scope=st.sampled_from(["batch", "sample"]),
    labels=st.lists(st.integers(-3, 230), min_size=1, max_size=8),
    step=st.integers(0, 1000),
)
@example(
    before=3, num_local=7, after=5, groups=4, random_groups=0, scope="batch", labels=[4], step=0
)
@example(
    before=5, num_local=0, after=5, groups=4, random_groups=1, scope="sample", labels=[1], step=0
)
@example(
    before=0, num_local=9, after=1, groups=6, random_groups=1, scope="sample", labels=[9], step=0
)
@example(
    before=1, num_local=1, after=0, groups=1, random_groups=0, scope="batch", labels=[0], step=0
)
@example(
    before=0, num_local=9, after=1, groups=5, random_groups=0, scope="sample", labels=[-4], step=0
)
@example(
    before=0,
    num_local=9,
    after=1,
    groups=4,
    random_groups=0,
    scope="sample",
    labels=[9, 11],
    step=0,
)
def test_group_classes_against_their_definition(
    before, num_local, after, groups, random_groups, scope, labels, step
):
    """Every set derived again by loops, with groups cut by the rank's ends and a short last one."""
    shard = shard_of(num_local, before, after)
    sampling = GroupClasses(groups, random_groups, scope)
    local_groups = groups_on(shard, groups)
    width = -(-shard.num_classes // groups)
    taken = min(len(local_groups), len(labels) + random_groups)
    size = sum(sorted((len(rows) for rows in local_groups.values()), reverse=True)[:taken])
    assert sampling.size(shard, len(labels)) == size
    sample = draw(sampling, shard, labels, step=step)
    rows = check(sample, shard, labels, size)

    group_of_row = {row: group for group, held in local_groups.items() for row in held}
    group_of_label = [
        label // width if 0 <= label < shard.num_classes else None for label in labels
    ]
    wanted = set(group_of_label) & set(local_groups)
    columns, row_groups = sample.column_groups.tolist(), sample.row_groups.tolist()
    assert sample.column_groups.dtype == sample.row_groups.dtype == torch.int32
    assert len(columns) == size

    shown = [row for row, column in zip(rows, columns) if column != NOBODY]
    active = {group_of_row[row] for row in shown}
    assert sorted(shown) == sorted(row for group in active for row in local_groups[group])
    assert wanted <= active
    assert len(active) == min(len(local_groups), len(wanted) + random_groups)
    common = active - wanted if scope == "sample" else active
    assert all(group >= EVERYONE for group in row_groups)
    for own_group, group in zip(group_of_label, row_groups, strict=True):
        seen = {row for row, column in zip(rows, columns) if column in (EVERYONE, group)}
        own = {own_group} & active
        assert seen == {row for each in common | own for row in local_groups[each]}


def test_the_rows_of_a_group_are_consecutive():
    shard = shard_of(1000, first_class=130, after=70)
    rows = draw(GroupClasses(40, random_groups=3), shard, [500, 131, 900], step=2).rows
    assert (rows.diff() != 1).sum() <= 6  # up to seven groups


@pytest.mark.slow
def test_random_groups_are_uniform_over_the_groups_without_labels():
    steps = 3000
    counts = torch.zeros(16)
    for step in range(steps):
        sample = draw(GroupClasses(16, 3, "sample"), shard_of(64), [17], step=step)
        common = sample.rows[sample.column_groups == EVERYONE] // 4
        counts += common.bincount(minlength=16) / 4
    assert counts[4] == 0  # the label's own group
    others = torch.cat([counts[:4], counts[5:]])
    # Draws without replacement vary less than independent ones, by 15/14 of what chi_square takes.
    assert 0.4 < chi_square(others, steps, 3 / 15) < 1.8


def test_random_groups_differ_from_rank_to_rank():
    """Groups of one class: independent draws of 101 from 1000 share 10 ± 3."""
    sampling = GroupClasses(2000, random_groups=100)
    ranks = [draw(sampling, shard_of(1000, first, 1000 - first)).rows for first in (0, 1000)]
    assert overlap(*ranks) < 25


SAMPLINGS = [
    AllClasses(),
    BatchClasses(),
    RandomClasses(0.1),
    RandomClasses(1.0),
    GroupClasses(50, 2, "batch"),
    GroupClasses(50, 2, "sample"),
    GroupClasses(2, 2, "batch"),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
@pytest.mark.parametrize("num_local", [0, 1, 1000])
def test_every_draw_is_graph_safe(sampling, num_local):
    labels, step = torch.tensor([3, -1, 700, 3]), torch.tensor(5)
    shard = shard_of(num_local, first_class=1, after=3)
    with GraphSafety():
        sampling.draw(labels, shard, step_key(1, step, 0))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_the_labels_are_left_as_they_were(sampling):
    labels = torch.tensor([3, -1, 700, 3])
    sampling.draw(labels, shard_of(500), step_key(1, torch.tensor(0), 0))
    assert labels.tolist() == [3, -1, 700, 3]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomClasses(0.0), r"rate=0.0, expected a number in \(0, 1\]"),
        (lambda: RandomClasses(1.01), "rate=1.01"),
        (lambda: RandomClasses(math.nan), "rate=nan"),
        (lambda: RandomClasses("0.1"), "rate='0.1'"),
        (lambda: RandomClasses(True), "rate=True"),
        (lambda: GroupClasses(0), "groups=0, expected an integer >= 1"),
        (lambda: GroupClasses(2.0), "groups=2.0"),
        (lambda: GroupClasses(2, -1), "random_groups=-1, expected an integer >= 0"),
        (lambda: GroupClasses(2, 0, "row"), r"scope='row', expected one of \('batch', 'sample'\)"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
