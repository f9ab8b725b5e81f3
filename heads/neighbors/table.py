"""The k nearest classes of each class, built again every n steps while training goes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facestream import UserError
from heads.neighbors.search import NOTHING, PIECE, rounded, take_nearest, write_ids
from heads.ranks import Ranks
from heads.sampling import Shard, local_rows

# In the state of a head, a row a class.
TABLES = ("neighbors.ids", "neighbors.best", "neighbors.kept")
ENTRIES = (*TABLES, "neighbors.begun")


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """How much of a sample are neighbors of the batch's classes, and which they can be.

    Args:
        share: in (0, 1], of the S classes of a rank's step. Where the table names fewer of its
            classes, or there is no table yet, random ones take their places.
        neighbors: >= 1, k: how many of its nearest classes each class has in the table. A row costs
            12·k bytes beside its int8 copy.
        every: >= 1, n: a table is built in n steps, and in force for the n after them. A step
            multiplies about C/n centers with all C of them.

    Raises:
        UserError: values outside these ranges.
    """

    share: float
    neighbors: int = 16
    every: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"HardNegatives: share={self.share!r}, expected a number in (0, 1]")
        for name in ("neighbors", "every"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise UserError(f"HardNegatives: {name}={value!r}, expected an integer >= 1")


class NeighborTable(nn.Module):
    """This rank's rows of the table in force, and of the one that is being built.

    At step m·n the centers are kept as they are, rounded to int8. During the n steps from there on,
    every step compares all rows with its share of the C kept ones, whichever ranks they are on; the
    table so made is in force from step (m+1)·n on. Before step n there is none.

    So the work of a step is the same everywhere, nothing runs beside it, no rank waits for another
    but in the collectives that all of them make at the same step, and a table is never late. What a
    buffer holds after a step follows from the centers and the number of the step alone, at any
    world size: saved and loaded with the head's other rows, a build goes on where it was. A table
    whose first step was not made here, or with another n, is not built: the next one is.

    Args:
        centers: (rows, K·D) of this rank.

    Attributes:
        ids: (rows, k) int32 global class ids, nearest first, -1 where there is none: the table in
            force. Its memory stays where it is, for graphs that read it.
        best: (rows, k) int64, of the table being built; see heads.neighbors.search.
        kept: (rows, K·D) int8, the centers that it is built from.
        begun: 0-d int64, the step that these are of; -1 before the first.
    """

    ids: Tensor
    best: Tensor
    kept: Tensor
    begun: Tensor

    def __init__(
        self,
        settings: HardNegatives,
        shard: Shard,
        ranks: Ranks,
        centers: Tensor,
        *,
        subcenters: int,
    ) -> None:
        super().__init__()
        self.settings, self._shard, self._ranks = settings, shard, ranks
        self._subcenters = subcenters
        self._step: int | None = None  # of the next `advance`; None: the tensors are to be asked
        self._building = False  # whether the build under way has its beginning
        shape, device = (shard.num_local, settings.neighbors), centers.device
        self.register_buffer("ids", torch.full(shape, -1, dtype=torch.int32, device=device))
        self.register_buffer("best", torch.full(shape, NOTHING, device=device))
        self.register_buffer("kept", torch.zeros_like(centers, dtype=torch.int8))
        self.register_buffer("begun", torch.full((), -1, device=device))

    def nearest(self, labels: Tensor) -> Tensor:
        """The neighbors of each label's class, by the table in force: (N, k) int32 global ids.

        One collective: the owner of a class knows its neighbors, every rank must know which of them
        are its own.

        Args:
            labels: (N,) int64 global class ids, the same on every rank; what is no class has no
                neighbors.
        """
        rows = local_rows(labels, self._shard)
        ids = self.ids.new_full((1, self.ids.shape[1]), -1)
        if self._shard.num_local:
            ids = self.ids.index_select(0, rows.clamp_min(0))
        return self._ranks.maximum(torch.where((rows >= 0).unsqueeze(1), ids, -1))

    def forget_step(self) -> None:
        """Ask again which step it is: for after the state was replaced."""
        self._step = None

    @torch.no_grad()
    def advance(self, step: Tensor, centers: Tensor) -> None:
        """A step's share of the building; call it on every rank, at every step, in order.

        Args:
            step: 0-d int64, its number. It and `begun` are read at the first call alone.
            centers: (rows, K·D) as they are before the update of this step.
        """
        every, pieces = self.settings.every, -(-self._shard.num_classes // PIECE)
        if self._step is None:
            self._step = int(step)
            self._building = int(self.begun) == self._step - self._step % every
        offset = self._step % every
        if offset == 0:
            rounded(centers, subcenters=self._subcenters, out=self.kept)
            self.best.fill_(NOTHING)
            self.begun.fill_(self._step)
            self._building = True
        if self._building:
            for piece in range(offset * pieces // every, (offset + 1) * pieces // every):
                self._compare_with(piece * PIECE)
            if offset == every - 1:
                write_ids(self.best, out=self.ids)
        self._step += 1

    def _compare_with(self, first_id: int) -> None:
        """All rows of this rank with the PIECE kept centers, of whichever ranks, from an id on."""
        take_nearest(
            self.best,
            self.kept,
            self._ranks.total(self._own_part(first_id)),
            first_row=self._shard.first_class,
            first_candidate=first_id,
            subcenters=self._subcenters,
        )

    def _own_part(self, first_id: int) -> Tensor:
        """(P, K·D) int8: the kept centers from an id on, 0 where they are another rank's."""
        shard = self._shard
        count = min(PIECE, shard.num_classes - first_id)
        piece = self.kept.new_zeros(count, self.kept.shape[1])
        start = min(max(shard.first_class - first_id, 0), count)
        stop = min(max(shard.first_class + shard.num_local - first_id, 0), count)
        shift = first_id - shard.first_class
        piece[start:stop] = self.kept[start + shift : stop + shift]
        return piece

    def extra_repr(self) -> str:
        return f"{self.settings}"
