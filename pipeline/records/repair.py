"""Writes what is intact of a data set into a new .rec, in InsightFace's layout."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.records.index import RecordIndex
from pipeline.records.record_file import RecordFile
from pipeline.records.recordio import read_record, unpack_image
from pipeline.records.scan import map_file
from pipeline.records.write_set import Labels, Packed, write_set


def repair(index: RecordIndex, folder: Path, *, without: Collection[int] = ()) -> Packed:
    """Write the intact images of `index` into `folder`.

    The images keep their bytes, their labels and their order within an identity; keys, header and
    identity records are written again, so that they speak of what is there. An identity without an
    image left keeps its number and an empty identity record: the number of classes stays.

    Args:
        index: the set, opened.
        folder: gets train.rec and what belongs to it (see pipeline/records/write_set.py).
        without: offsets of records to leave out.
    """
    kept = np.flatnonzero(~np.isin(index.records["offset"], list(without)))
    # A set that was packed identity by identity is in this order already.
    order = kept[np.argsort(index.records["label"][kept], kind="stable")]
    labels = index.records["label"][order]
    # Identity records may be there of identities whose last images are lost.
    classes = max(index.summary.num_classes, index.summary.identity_records)
    starts = np.searchsorted(labels, np.arange(classes + 1))

    # In a .rec an image may have more labels than its identity.
    is_rec = isinstance(index.file, RecordFile)
    content = memoryview(map_file(index.path)) if is_rec else None

    def identities() -> Iterator[list[tuple[Labels, bytes]]]:
        for first, last in pairwise(starts):
            yield [_image(index, content, i) for i in order[first:last]]

    return write_set(folder, identities())


def _image(index: RecordIndex, content: memoryview | None, i: int) -> tuple[Labels, bytes]:
    if content is None:
        return float(index.records["label"][i]), index.image(i).tobytes()
    payload, _ = read_record(content, int(index.records["offset"][i]))
    record = unpack_image(payload)
    labels = record.labels.tolist()
    return (labels if record.vector else labels[0]), bytes(record.image)
