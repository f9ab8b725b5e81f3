"""Memory that every step uses again, so that the system need not find fresh pages for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Rows are gone through in pieces of this size, so that the few passes over each find it in the
# cache.
PIECE_BYTES = 2 << 20


def piece_rows(bytes_per_row: int) -> int:
    """Rows of a piece, but for the last one."""
    return max(1, PIECE_BYTES // bytes_per_row)


def pieces(count: int, bytes_per_row: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of `count` rows."""
    rows = piece_rows(bytes_per_row)
    for start in range(0, count, rows):
        yield start, min(start + rows, count)


class Workspace:
    """Uninitialized tensors by name, on one device; they stay where they are from step to step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[tuple[str, torch.dtype], Tensor] = {}
        # As they were last taken: pieces are alike, and a view costs as much as a small operator.
        self._taken: dict[tuple[str, torch.dtype], Tensor] = {}
        self._rooms: dict[str, Workspace] = {}

    def room(self, name: str) -> Workspace:
        """Another workspace, for what needs the same names at the same time."""
        if name not in self._rooms:
            self._rooms[name] = Workspace(self._device)
        return self._rooms[name]

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of `shape` over the memory of that name and dtype, which may grow."""
        taken = self._taken.get((name, dtype))
        if taken is not None and taken.shape == tuple(shape):
            return taken
        count = math.prod(shape)
        held = self._held.get((name, dtype))
        if held is None or held.numel() < count:
            held = torch.empty(count, dtype=dtype, device=self._device)
            self._held[name, dtype] = held
        taken = self._taken[name, dtype] = held[:count].view(*shape)
        return taken
