"""The sample of a step with hard negatives: the batch's classes, neighbors of them, random ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from heads.neighbors.table import NeighborTable
from heads.sampling import (
    RandomClasses,
    Sample,
    Sampling,
    Shard,
    draw_rows,
    local_rows,
    percent,
)


@dataclass(frozen=True)
class NeighborClasses(Sampling):
    """As many classes as RandomClasses takes, `share` of them neighbors of the batch's.

    The nearest neighbor of every label comes first, then the second of every label, and so on, as
    far as they are on this rank and until its places are full. A class comes once, whoever names
    it. Positives are always in.

    The draw is a function of key, labels, shard and the table in force, and makes one collective.

    Args:
        rate: as RandomClasses takes it.
        table: of this rank.
    """

    rate: float
    table: NeighborTable = field(compare=False)

    def __str__(self) -> str:
        near = percent(self.table.settings.share)
        return f"{RandomClasses(self.rate)}; up to {near} of these are near the batch's own"

    def size(self, shard: Shard, num_labels: int) -> int:
        return RandomClasses(self.rate).size(shard, num_labels)

    def draw(self, labels: Tensor, shard: Shard, key: Tensor) -> Sample:
        count = labels.shape[0]
        size = self.size(shard, count)
        near = self.table.nearest(labels)
        chosen = choose(
            labels, near, shard, size=size, most=round(self.table.settings.share * size)
        )
        sample = draw_rows(size, torch.cat([labels, chosen]), shard, key)
        return sample._replace(positions=sample.positions[:count])


def sampling_near(sampling: Sampling, table: NeighborTable | None) -> Sampling:
    """The same with neighbors among the random classes; where all take part, as it is."""
    if table is None or not isinstance(sampling, RandomClasses):
        return sampling
    return NeighborClasses(sampling.rate, table)


def choose(labels: Tensor, near: Tensor, shard: Shard, *, size: int, most: int) -> Tensor:
    """Which neighbors take part: (N·k,) int64 global ids of this rank, -1 where there is none.

    Args:
        labels: (N,) int64.
        near: (N, k), from NeighborTable.nearest.
        size: of the sample; positives and neighbors together do not exceed it.
        most: so many neighbors, at most.
    """
    count = labels.shape[0]
    positives = local_rows(labels, shard)
    candidates = local_rows(near.t().flatten().long(), shard)  # all nearest, all second nearest, …
    rows, order = torch.cat([positives, candidates]).sort(stable=True)
    new = (rows >= 0) & (rows.diff(prepend=rows.new_full((1,), -1)) != 0)
    new = torch.empty_like(new).scatter_(0, order, new)  # where a class is named first
    room = (size - new[:count].sum()).clamp_max(most)
    chosen = new[count:] & (new[count:].cumsum(0) <= room)
    return torch.where(chosen, candidates + shard.first_class, -1)
