"""A matrix of rows as it is kept, and its rows in the dtype of the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from heads import counter
from heads.passes.workspace import Workspace
from heads.rows.placement import Placement
from heads.rows.rounding import FLOAT8, from_float8, round_to_bfloat16, round_to_float8

# What rows can be kept in, by the names in settings; the narrow ones beside the arithmetic's dtype.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8_e4m3": FLOAT8}
NARROW = (torch.bfloat16, FLOAT8)


def dtype_name(dtype: torch.dtype) -> str:
    """As DTYPES has it, and torch the others."""
    names = {one: name for name, one in DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


class Stored(NamedTuple):
    """Centers or their momentum: sub-center k of row r is `scales[r, k] · values[r, k·D:(k+1)·D]`.

    Attributes:
        values: (n, K·D).
        scales: (n, K) float32 powers of two, with float8 alone; None: all are 1.
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
        return self.map(
            lambda tensor: _movable(tensor).index_select(0, rows).to(device).view(tensor.dtype)
        )


class Noise(NamedTuple):
    """What the rounding of rows that are written follows from, beside their columns.

    Attributes:
        key: 0-d int64, from counter.step_key.
        classes: (S,) int64, the global class ids of the rows that an update moves.
    """

    key: Tensor
    classes: Tensor

    def row_keys(self) -> tuple[Tensor, Tensor]:
        """(S,) int32 for the centers, and for their momentum."""
        return counter.halves(self.key, self.classes)


def zero_rows(
    count: int, width: int, *, subcenters: int, dtype: torch.dtype, placement: Placement
) -> Stored:
    """`count` rows of K·D = `width` zeros."""
    values = placement.zeros((count, width), dtype)
    if dtype != FLOAT8:
        return Stored(values)
    return Stored(values, placement.zeros((count, subcenters), torch.float32).fill_(1))


def row_bytes(width: int, subcenters: int, dtype: torch.dtype) -> int:
    """What a row takes that is kept in `dtype`."""
    scales = subcenters * torch.float32.itemsize if dtype == FLOAT8 else 0
    return width * dtype.itemsize + scales


def is_view(stored: Stored, rows: Tensor | slice, dtype: torch.dtype) -> bool:
    """Whether `read_rows` gives the kept rows themselves."""
    return isinstance(rows, slice) and stored.values.dtype == dtype


def collect(values: Tensor, rows: Tensor | slice, out: Tensor) -> Tensor:
    """Copy (m, W) rows of a matrix into `out` of its dtype; returns that."""
    if isinstance(rows, slice):
        return out.copy_(values[rows])
    torch.index_select(_movable(values), 0, rows, out=_movable(out))
    return out


def read_rows(
    stored: Stored, rows: Tensor | slice, dtype: torch.dtype, *, workspace: Workspace, name: str
) -> Tensor:
    """(m, K·D) rows in `dtype`, exactly: a view where `is_view` says so, else a copy.

    Args:
        rows: (m,) int64, or consecutive ones.
        dtype: that of the values, or float32 or float64.
        name: of the workspace's memory for the copy.
    """
    if isinstance(rows, slice):
        values, scales = stored.part(rows)
        if values.dtype == dtype:
            return values
    else:
        shape = (rows.shape[0], stored.values.shape[1])
        values = collect(stored.values, rows, workspace.take(name, shape, stored.values.dtype))
        scales = None if stored.scales is None else stored.scales.index_select(0, rows)
        if values.dtype == dtype:
            return values
    out = workspace.take(name, values.shape, dtype)
    return out.copy_(values) if scales is None else from_float8(values, scales, out, workspace)


def in_float32(stored: Stored) -> Tensor:
    """All rows, read into float32 where they are kept in fewer bits, else as they are."""
    if stored.values.dtype not in NARROW:
        return stored.values
    workspace = Workspace(stored.values.device)
    return read_rows(stored, slice(None), torch.float32, workspace=workspace, name="rows")


def write_rows(
    stored: Stored, rows: Tensor | slice, new: Tensor, keys: Tensor | None, *, workspace: Workspace
) -> None:
    """Put (m, K·D) rows into the places that `read_rows` reads, rounded to what they are kept in.

    Args:
        keys: (m,) int32 for stochastic rounding; None: to the nearest.
    """
    values, scales = stored
    if values.dtype not in NARROW:
        if isinstance(rows, slice):
            values[rows] = new
        else:
            _in_words(values).index_copy_(0, rows, _in_words(new))
        return
    new = new.to(torch.float32)
    into = (
        values[rows]
        if isinstance(rows, slice)
        else workspace.take("rounded rows", new.shape, values.dtype)
    )
    if scales is None:
        round_to_bfloat16(new, keys, into, workspace)
    else:
        old = scales[rows] if isinstance(rows, slice) else scales.index_select(0, rows)
        fitting = round_to_float8(new, old, keys, into, workspace)
        if isinstance(rows, slice):
            old.copy_(fitting)
        else:
            scales.index_copy_(0, rows, fitting)
    if not isinstance(rows, slice):
        _in_words(values).index_copy_(0, rows, _in_words(into))


def _in_words(matrix: Tensor) -> Tensor:
    """The same memory in elements of 16 bytes where rows are whole ones, for what only moves rows:
    on CPUs `index_copy_` writes element by element (float32: 8.5 ms for 82 MB, in words 5.2)."""
    if matrix.shape[1] * matrix.element_size() % 16 == 0:
        return matrix.view(torch.complex128)
    return _movable(matrix)


def _movable(matrix: Tensor) -> Tensor:
    """The same memory in a dtype that torch can index."""
    return matrix.view(torch.uint8) if matrix.dtype == FLOAT8 else matrix
