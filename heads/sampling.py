"""Which class centers take part in a step.

Pure functions of tensors on any device, with static shapes and no host synchronization, so they can
be captured in a CUDA graph. A draw is a function of (key, labels, shard) alone: the same after a
resume. It differs from rank to rank, because each rank's classes begin elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from facestream import UserError
from heads import counter

# What a column group says instead of a group's number, which is never negative.
EVERYONE, NOBODY = -1, -2

SCOPES = ("batch", "sample")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """This rank's part of the classes: global ids from first_class on, num_local of num_classes."""

    num_classes: int
    first_class: int
    num_local: int


class Sample(NamedTuple):
    """The S classes of this rank that take part in a step, for a global batch of N labels.

    Column j is visible to row i where column_groups[j] is EVERYONE or equals row_groups[i]. Both
    None: every row sees every class.

    Attributes:
        rows: (S,) int64 distinct rows of this rank, in no promised order; None: all of them, in
            order.
        positions: (N,) int64 slot of each label's class among the S, -1 where it is not on this
            rank.
        column_groups: (S,) int32 per class: EVERYONE sees it, NOBODY does, or the number of the
            group that does.
        row_groups: (N,) int32, the group of each label, -1 for none.
    """

    rows: Tensor | None
    positions: Tensor
    column_groups: Tensor | None = None
    row_groups: Tensor | None = None

    def slots(self, start: int, stop: int) -> Tensor | slice:
        """The rows of slots start … stop − 1."""
        return slice(start, stop) if self.rows is None else self.rows[start:stop]

    def classes(self, shard: Shard) -> Tensor:
        """(S,) int64, their global ids."""
        rows = self.rows
        if rows is None:
            rows = torch.arange(shard.num_local, device=self.positions.device)
        return rows + shard.first_class


class Sampling(ABC):
    """A way to choose the classes of a step, which its text describes to users."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def size(self, shard: Shard, num_labels: int) -> int:
        """S for a global batch of num_labels >= 1: the same at every step, whatever the labels."""

    @abstractmethod
    def draw(self, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
        """The classes of one step.

        Args:
            labels: (N,) int64 global class ids of the global batch; those of other ranks, and ids
                that are no class at all, count as not here.
            key: 0-d int64 on their device, from counter.step_key.
        """


@dataclass(frozen=True)
class AllClasses(Sampling):
    """Every class of the rank at every step."""

    def __str__(self) -> str:
        return "all in every step"

    def size(self, shard: Shard, num_labels: int) -> int:
        return shard.num_local

    def draw(self, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
        return Sample(None, local_rows(labels, shard))


@dataclass(frozen=True)
class RandomClasses(Sampling):
    """The batch's own classes and random others (PartialFC, An et al., 2022, arXiv:2203.15565).

    S = min(num_local, max(round(rate · num_local), N)) counts what could happen, not what does: N
    labels name at most N different classes, and all of them may live on this rank. So the shape
    never changes and no positive is ever lost. What N adds to the rate is filled with further
    random negatives, not with masked columns: those would cost as much and teach nothing.

    Args:
        rate: in (0, 1], the share of the rank's classes that take part.

    Raises:
        UserError: a rate outside (0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        fits = _is_number(self.rate) and 0 < self.rate <= 1
        _check(fits, "RandomClasses: rate", self.rate, "a number in (0, 1]; 1 takes every class")

    def __str__(self) -> str:
        return f"{percent(self.rate)} of them in a step, the batch's own and others at random"

    def size(self, shard: Shard, num_labels: int) -> int:
        return min(shard.num_local, max(round(self.rate * shard.num_local), num_labels))

    def draw(self, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
        return draw_rows(self.size(shard, labels.shape[0]), labels, shard, key)


@dataclass(frozen=True)
class BatchClasses(Sampling):
    """The classes of the global batch and no others: arcface_torch's sample rate of 0.

    S = min(num_local, N), as for a tiny rate of RandomClasses. But nothing fills the slots that the
    batch's classes leave: they hold rows that NOBODY sees and that stay as they are. A rank without
    any of the batch's classes takes no part beyond that.

    The negatives of a row are then the other classes of its batch. Where the whole batch is of one
    class it has none: the loss is 0, and so are its gradients.
    """

    def __str__(self) -> str:
        return "only the batch's own in a step"

    def size(self, shard: Shard, num_labels: int) -> int:
        return min(shard.num_local, num_labels)

    def draw(self, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
        size = self.size(shard, labels.shape[0])
        sample = draw_rows(size, labels, shard, key)
        # One slot past the last one takes the labels that are not here, and is cut off.
        column_groups = torch.full((size + 1,), NOBODY, dtype=torch.int32, device=labels.device)
        here = torch.where(sample.positions >= 0, sample.positions, size)
        column_groups = column_groups.scatter_(0, here, EVERYONE)[:size]
        return sample._replace(
            column_groups=column_groups, row_groups=torch.full_like(labels, EVERYONE).int()
        )


def sampling_at(rate: float) -> Sampling:
    """Which classes a sample rate in [0, 1] takes."""
    if rate == 1:
        return AllClasses()
    return RandomClasses(rate) if rate else BatchClasses()


@dataclass(frozen=True)
class GroupClasses(Sampling):
    """Multi-head sampling: the classes lie in groups, "heads", and a step trains those it needs.

    S is the number of rows that the largest min(N + random_groups, groups on this rank) groups have
    here, since N labels can lie in N groups. Where a step's groups have fewer, the slots left hold
    rows of further groups that NOBODY sees. The rows of a group are consecutive.

    Args:
        groups: >= 1. Group g owns the ceil(num_classes / groups) consecutive class ids from
            g · ceil(num_classes / groups) on; the last may own fewer, and where the division leaves
            no ids for a group it is empty.
        random_groups: >= 0. Beside the groups of the batch's labels a step takes this many of the
            others at random, out of those with classes on this rank, or all where there are not as
            many.
        scope: "batch": every row sees all groups of the step. "sample": a row sees the group of its
            own label and the random groups.

    Raises:
        UserError: values outside these ranges.
    """

    groups: int
    random_groups: int = 0
    scope: str = "batch"

    def __post_init__(self) -> None:
        groups, extra = self.groups, self.random_groups
        _check(
            _is_integer(groups) and groups >= 1, "GroupClasses: groups", groups, "an integer >= 1"
        )
        fits = _is_integer(extra) and extra >= 0
        _check(fits, "GroupClasses: random_groups", extra, "an integer >= 0")
        _check(self.scope in SCOPES, "GroupClasses: scope", self.scope, f"one of {SCOPES}")

    def __str__(self) -> str:
        count = self.random_groups
        others = f" and {count} other{'' if count == 1 else 's'}" if count else ""
        seen = "" if self.scope == "batch" else ", where a sample sees its own" + others
        return f"in {self.groups} groups, those of the batch{others} in a step{seen}"

    def size(self, shard: Shard, num_labels: int) -> int:
        width, first, count = self._local_groups(shard)
        taken = min(count, num_labels + self.random_groups)
        if taken == count:
            return shard.num_local
        # Only the first and the last group can be cut short, and at most those two stay behind.
        stop = shard.first_class + shard.num_local
        ends = ((first + 1) * width - shard.first_class, stop - (first + count - 1) * width)
        return shard.num_local - min(ends) if taken == count - 1 else taken * width

    def draw(self, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
        width, first_group, count = self._local_groups(shard)
        size, local = self.size(shard, labels.shape[0]), local_rows(labels, shard)
        known = (labels >= 0) & (labels < shard.num_classes)
        row_groups = torch.where(known, labels // width, EVERYONE).int()  # (N,)
        if count == 0:
            return Sample(None, local, row_groups.new_empty(0), row_groups)

        # Groups are numbered from this rank's first; `count` stands for the other ranks' groups.
        groups = torch.arange(count, device=labels.device)
        # A label of another rank counts too, where its group reaches over the border.
        group = torch.where(known, labels // width - first_group, -1)
        group = torch.where((group >= 0) & (group < count), group, count)  # (N,)
        wanted = torch.zeros(count + 1, dtype=torch.bool, device=labels.device)
        wanted = wanted.scatter_(0, group, True)[:count]
        place, order = _rank_groups(wanted, counter.mix(key + shard.first_class))
        column_groups = self._column_groups(place, wanted, first_group)  # (groups,)
        if size == shard.num_local:
            order = groups

        starts = ((groups + first_group) * width - shard.first_class).clamp_min(0)  # (groups,) rows
        stops = ((groups + first_group + 1) * width - shard.first_class).clamp_max(shard.num_local)
        sizes = stops - starts
        ends = sizes.index_select(0, order).cumsum(0)  # slots, in the order of the groups
        begins = torch.empty_like(ends).scatter_(0, order, ends) - sizes  # slots, by group
        slots = torch.arange(size, device=labels.device)
        owner = order.index_select(0, torch.searchsorted(ends, slots, right=True))  # (S,) groups
        shift = starts - begins  # from a slot to its row, by group
        rows = None if size == shard.num_local else slots + shift.index_select(0, owner)
        slot = local - shift.index_select(0, group.clamp_max(count - 1))
        positions = torch.where(local >= 0, slot, -1)
        return Sample(rows, positions, column_groups.index_select(0, owner), row_groups)

    def _local_groups(self, shard: Shard) -> tuple[int, int, int]:
        """Classes of a group; the first group with a class on this rank; how many there are."""
        width = math.ceil(shard.num_classes / self.groups)
        first = shard.first_class // width
        stop = math.ceil((shard.first_class + shard.num_local) / width)
        return width, first, stop - first if shard.num_local else 0

    def _column_groups(self, place: Tensor, wanted: Tensor, first_group: int) -> Tensor:
        """(groups,) int32 column group of each group's classes."""
        active = place < wanted.sum() + self.random_groups
        columns = torch.where(active, EVERYONE, NOBODY).int()
        if self.scope == "batch":
            return columns
        numbers = torch.arange(first_group, first_group + len(place), device=place.device)
        return torch.where(wanted, numbers.int(), columns)


def percent(share: float) -> str:
    """A share of classes, for users."""
    return f"{100 * share:.3g}%"


def draw_rows(size: int, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
    """`size` rows at random, those of the labels' classes among them; all rows where it is so many.

    The cost is O(S + N log N), whatever num_local is. The rows, in a rotation drawn at each step,
    are cut into S runs as equal as integers allow, and each run gives one row at random: no row
    comes twice, and the rows nearly ascend, so that they are read nearly in sequence. The rotation
    lets any two rows meet and gives all of them the same chance, though some runs are one row
    longer. The positives that no run gave then take the slots of negatives, at even distances. They
    do not take those of their own runs: their neighbors would then hardly ever be their negatives.
    """
    total, local = shard.num_local, local_rows(labels, shard)
    if size == total:
        return Sample(None, local)
    key = counter.mix(key + shard.first_class)
    # Up to the last line, a row's number is its offset from the rotation.
    rotation = counter.below(key, torch.zeros_like(key), total)
    slots = torch.arange(size + 1, device=labels.device)
    edges = slots * total // size  # (S + 1,)
    drawn = edges[:-1] + counter.below(key, slots[1:], edges.diff())  # (S,)

    # `total` stands for the labels that are not here, and sorts behind all others.
    offsets = torch.where(local >= 0, (local - rotation) % total, total)  # (N,)
    positives = offsets.sort().values  # (N,)
    first = positives.diff(prepend=positives.new_full((1,), -1)) != 0
    first &= positives < total  # once per class
    # The run of offset u is the last one that begins at or before it.
    run = (((positives + 1) * size - 1) // total).clamp_max(size - 1)  # (N,)
    hit = drawn.index_select(0, run) == positives
    missed = first & ~hit

    # One slot past the last one takes what is to go nowhere, and is cut off.
    held = torch.zeros(size + 1, dtype=torch.bool, device=labels.device)
    held.scatter_(0, torch.where(hit, run, size), True)
    free = ~held[:size]
    # The missed take free slots at even distances. Nobody asks where none is missed.
    number, most = missed.cumsum(0) - 1, missed.sum().clamp_min(1)
    slot = torch.searchsorted(free.cumsum(0), number * free.sum() // most + 1)  # (N,)
    drawn = torch.cat([drawn, drawn[:1]])  # (S + 1,)
    drawn.scatter_(0, torch.where(missed, slot, size), positives)

    # All labels of a class look at its first place among the sorted ones.
    slot = torch.where(hit, run, slot)
    slot = slot.index_select(0, torch.searchsorted(positives, offsets))
    return Sample((drawn[:size] + rotation) % total, torch.where(local >= 0, slot, -1))


def local_rows(labels: Tensor, shard: Shard) -> Tensor:
    """(N,) rows of this rank, -1 where the label's class is not here."""
    local = labels - shard.first_class
    return torch.where((local >= 0) & (local < shard.num_local), local, -1)


def _rank_groups(wanted: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """(groups,) place of each group in the order, and the order: the wanted, then at random."""
    groups = torch.arange(wanted.shape[0], device=wanted.device)
    chance = counter.bits(key, groups) >> 1  # 62 bits
    order = torch.where(wanted, groups, chance + (1 << 62)).argsort()
    return torch.empty_like(order).scatter_(0, order, groups), order


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_integer(value) or isinstance(value, float)


def _check(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise UserError(f"{name}={value!r}, expected {expected}")
