"""In which order the pieces of a file are copied: as training will read them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.collection import Collection
from pipeline.order import Order
from pipeline.staging.local_copy import LocalCopy


def pieces_by_need(
    which: int,
    *,
    copy: LocalCopy,
    start: int = 0,
    records: Collection,
    order: Order,
    epoch: int,
    position: int,
    epoch_records: int,
) -> Iterator[int]:
    """The pieces of a file of the `which`-th set of a collection, each once.

    Where the order keeps near records together, they come as it needs them from that position of
    that epoch on, stage by stage; the announcements of read_ahead.py have brought the same pages
    then, so the source is read once. Where it does not, and after the epoch's end, as they lie.

    Args:
        copy: of the file.
        start: the offset of the file's first byte in its set, where that is several end to end.
        position: of the global batch that comes next; `epoch_records` of them make an epoch.
    """
    seen = np.zeros(copy.count, bool)
    stage = order.locality
    for first in range(position, epoch_records if stage > 1 else position, stage):
        wanted = order(np.arange(first, min(first + stage, epoch_records)), epoch)
        file, offset, length = records.spans(wanted)
        here = (file == which) & (offset >= start) & (offset < start + copy.original.size)
        begin = offset[here] - start
        pieces = np.concatenate([begin, begin + length[here] - 1]) // copy.piece
        pieces = np.unique(np.minimum(pieces, copy.count - 1))
        new = pieces[~seen[pieces]]
        seen[new] = True
        yield from new.tolist()
    yield from np.flatnonzero(~seen).tolist()
