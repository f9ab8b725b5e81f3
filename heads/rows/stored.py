"""A matrix of rows as it is kept, and its rows in the dtype of the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from heads.passes.workspace import Workspace


class Stored(NamedTuple):
    """Centers or their momentum: sub-center k of row r is `scales[r, k] · values[r, k·D:(k+1)·D]`.

    Attributes:
        values: (n, K·D).
        scales: (n, K) float32; None: all are 1.
    """

    values: Tensor
    scales: Tensor | None = None

    def part(self, rows: slice) -> Stored:
        """A view of consecutive rows."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> Stored:
        """The same function of both tensors."""
        return Stored(function(self.values), None if self.scales is None else function(self.scales))

    def taken(self, rows: Tensor, device: torch.device) -> Stored:
        """Copies of these (m,) rows on a device, as they are kept."""
        rows = rows.to(self.values.device)
        return self.map(lambda tensor: tensor.index_select(0, rows).to(device))


class Noise(NamedTuple):
    """What the rounding of rows that are written follows from, beside their columns.

    Attributes:
        key: 0-d int64, from counter.step_key.
        classes: (S,) int64, the global class ids of the rows that an update moves.
    """

    key: Tensor
    classes: Tensor


def read_rows(
    stored: Stored, rows: Tensor | slice, dtype: torch.dtype, *, workspace: Workspace, name: str
) -> Tensor:
    """(m, K·D) rows in `dtype`: a view where they are consecutive and kept in it, else a copy.

    Args:
        rows: (m,) int64, or consecutive ones.
        name: of the workspace's memory for the copy.
    """
    if isinstance(rows, slice):
        return stored.values[rows]
    out = workspace.take(name, (rows.shape[0], stored.values.shape[1]), dtype)
    return torch.index_select(stored.values, 0, rows, out=out)


def write_rows(stored: Stored, rows: Tensor | slice, new: Tensor) -> None:
    """Put back what `read_rows` gave, changed."""
    if not isinstance(rows, slice):
        _in_words(stored.values).index_copy_(0, rows, _in_words(new))


def _in_words(matrix: Tensor) -> Tensor:
    """The same memory in elements of 16 bytes where rows are whole ones, for what only moves rows:
    on CPUs `index_copy_` writes element by element (float32: 8.5 ms for 82 MB, in words 5.2)."""
    whole = matrix.shape[1] * matrix.element_size() % 16 == 0
    return matrix.view(torch.complex128) if whole else matrix
