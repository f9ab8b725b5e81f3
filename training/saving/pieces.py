"""Large matrices of a checkpoint written in pieces, so that its reader needs memory for a piece.

torch.distributed.checkpoint reads what a rank wrote of a tensor as a whole, and then copies from it
what the reader's rank has: twice the memory of centers that hardly fit once. Its files may hold any
number of pieces of a tensor, so any reader of them reads these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

PIECE_BYTES = 256 << 20


def _alone(rows: Tensor) -> Tensor:
    """The same memory with a storage that ends where it does: of others torch writes a copy."""
    return torch.from_numpy(rows.view(torch.uint8).numpy()).view(rows.dtype)


class PiecewisePlanner(DefaultSavePlanner):
    """Writes a rank's rows of a DTensor on the CPU, where they are many, in pieces of some."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self._rows: dict[MetadataIndex, slice] = {}
        self.plan = replace(plan, items=[one for item in plan.items for one in self._split(item)])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        found = super().lookup_object(index)
        return _alone(found[self._rows[index]]) if index in self._rows else found

    def _split(self, item: WriteItem) -> Iterator[WriteItem]:
        data = item.tensor_data
        if item.type != WriteItemType.SHARD or data is None or item.index.offset is None:
            yield item
            return
        (count, *rest), (first, *beside) = data.chunk.sizes, data.chunk.offsets
        row_bytes = torch.Size(rest).numel() * data.properties.dtype.itemsize
        rows = max(1, PIECE_BYTES // max(1, row_bytes))
        if count <= rows:
            yield item
            return
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            offsets = torch.Size([first + start, *beside])
            chunk = ChunkStorageMetadata(offsets=offsets, sizes=torch.Size([stop - start, *rest]))
            index = MetadataIndex(item.index.fqn, offsets)
            self._rows[index] = slice(start, stop)
            yield replace(item, index=index, tensor_data=replace(data, chunk=chunk))
