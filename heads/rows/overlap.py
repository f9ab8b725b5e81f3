"""Which rows two samples have in common, and rows moved between matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SortedRows(NamedTuple):
    """Distinct rows, in their order and sorted."""

    rows: Tensor  # (S,) int64
    ascending: Tensor  # (S,) int64, the same sorted
    slots: Tensor  # (S,) int64, where each of the sorted ones stands among `rows`

    @classmethod
    def of(cls, rows: Tensor) -> SortedRows:
        return cls(rows, *rows.sort())


def overlap(one: SortedRows, other: SortedRows) -> tuple[Tensor, Tensor]:
    """(m,) slots in `one` and (m,) slots in `other` of the rows that both have; on the host."""
    if not len(one.rows) or not len(other.rows):
        return one.slots[:0], other.slots[:0]
    place = torch.searchsorted(other.ascending, one.ascending).clamp_max(len(other.rows) - 1)
    both = other.ascending[place] == one.ascending
    return one.slots[both], other.slots[place[both]]


def gather(matrix: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[i] = matrix[rows[i]], whatever they hold."""
    torch.index_select(_words(matrix), 0, rows, out=_words(out))


def scatter(matrix: Tensor, rows: Tensor, new: Tensor, taken: Tensor | None = None) -> None:
    """matrix[rows[i]] = new[i], or new[taken[i]], whatever they hold; the matrix's version stays.

    It is written through `data`, which has a version of its own: so that of the matrix tells
    whether others have written to it.
    """
    source = _words(new)
    if taken is not None:
        source = source.index_select(0, taken)
    _words(matrix.data).index_copy_(0, rows, source)


def _words(matrix: Tensor) -> Tensor:
    """The same memory in the largest elements that rows are made of: fewer of them to move."""
    size = matrix.shape[1] * matrix.element_size()
    for dtype in (torch.complex128, torch.int64, torch.int32):
        if size % dtype.itemsize == 0:
            return matrix.view(dtype)
    return matrix.view(torch.uint8)
