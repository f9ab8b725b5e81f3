"""Pieces come once each: first those that training reads next, then the others."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.collection import Collection
from pipeline.order import BlockOrder, GlobalOrder
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.staging.by_order import pieces_by_need
from pipeline.staging.local_copy import LocalCopy, Original

RECORDS, PIECE = 400, 1000


@pytest.fixture
def records(tmp_path):
    for name in ("a", "b"):
        with RecordWriter(tmp_path / f"{name}.rec") as writer:
            for key in range(RECORDS):
                writer.write(pack_image(bytes(150), float(key), key))
    indexes = [open_index(tmp_path / f"{name}.rec") for name in ("a", "b")]
    whole = Collection.of(indexes[0])
    return Collection(indexes, [*whole.label_maps, *whole.label_maps], [None, None])


def ordered(records, which, order, *, epoch=0, position=0) -> list[int]:
    file = records.indexes[which].file
    copy = LocalCopy(
        file.path.parent, Original(file.path, file.size, 0, file.fingerprint), piece=PIECE
    )
    pieces = pieces_by_need(
        which,
        copy=copy,
        records=records,
        order=order,
        epoch=epoch,
        position=position,
        epoch_records=len(records),
    )
    found = list(pieces)
    assert sorted(found) == list(range(copy.count))
    return found


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("epoch", "position"), [(0, 0), (3, 320), (3, 2 * RECORDS)])
def test_blocks_come_window_by_window_from_the_position_on(records, which, epoch, position):
    order = BlockOrder(len(records), seed=1, block=20, window=4)
    found = ordered(records, which, order, epoch=epoch, position=position)
    place = {piece: at for at, piece in enumerate(found)}
    furthest = -1
    for first in range(position, len(records), 80):
        wanted = order(np.arange(first, first + 80), epoch)
        file, offset, length = records.spans(wanted)
        touched = {
            place[piece]
            for at, size in zip(offset[file == which].tolist(), length[file == which].tolist())
            for piece in (at // PIECE, (at + size - 1) // PIECE)
        }
        assert set(range(furthest + 1, max(touched, default=furthest) + 1)) <= touched
        furthest = max(furthest, *touched, -1)


def test_a_permutation_of_the_whole_is_copied_as_it_lies(records):
    found = ordered(records, 0, GlobalOrder(len(records), seed=1), position=100)
    assert found == sorted(found)
