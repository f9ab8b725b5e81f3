"""Writes a training set in InsightFace's layout: train.rec, train.idx, property and the sidecar.

The .rec is a header record, the images identity by identity, then a record an identity::

    header     labels [key after the last image, key after the last record], no image, key 0
    image      label: the identity; keys count from 1
    identity   labels [first key, key after the last] of the identity's images, no image

The identity records follow in the order of the labels. All numbers in them are float32, as in
InsightFace's own files, so above 2^24 records they are rounded; nothing here relies on them.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.records.mxnet_idx import write_idx
from pipeline.records.recordio import PART_HEADER, RecordError, RecordWriter, pack_image
from pipeline.records.scan import MAX_EXACT_LABEL, scan_rec
from pipeline.records.sidecar import write_sidecar
from pipeline.whole_file import replace

Labels = float | Sequence[float]
Sizes = Counter[tuple[int, int]]  # how many images are (height, width) pixels

_USUAL = (112, 112)  # in the property file of a set whose images do not say


class Packed(NamedTuple):
    """What was written."""

    identities: int
    images: int
    sizes: Sizes  # of those images whose headers say


def pack_set(folder: Path, identities: Iterable[Sequence[bytes]]) -> Packed:
    """Write a training set.

    Args:
        folder: is created; gets train.rec, train.idx, property and the sidecar. The property file
            has the size that most images have.
        identities: the encoded images of each identity in turn, numbered from 0.

    Raises:
        RecordError: when `folder` already holds a train.rec, or there is nothing to pack.
    """
    labelled = (
        [(float(label), image) for image in images] for label, images in enumerate(identities)
    )
    return write_set(folder, labelled)


def write_set(folder: Path, identities: Iterable[Sequence[tuple[Labels, bytes]]]) -> Packed:
    """`pack_set` for images that bring their labels: the first is the identity, which must be the
    place in `identities`. An identity may be empty: its number stays taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rec = folder / "train.rec"
    if rec.exists():
        raise RecordError(f"{rec} exists: name another folder, or remove that file first")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unfinished = Path(scratch) / rec.name
        ranges, offsets, sizes = _write_records(unfinished, identities)
        images = len(offsets) - len(ranges) - 1
        if images == 0:
            raise RecordError(f"no images to pack into {rec}")
        replace(unfinished, rec)
    write_idx(folder / "train.idx", np.arange(len(offsets)), np.array(offsets))
    height, width = max(sizes, key=sizes.__getitem__, default=_USUAL)
    (folder / "property").write_text(f"{len(ranges)},{height},{width}\n")
    write_sidecar(rec, scan_rec(rec), folder)
    return Packed(len(ranges), images, sizes)


def _write_records(
    path: Path, identities: Iterable[Sequence[tuple[Labels, bytes]]]
) -> tuple[list[tuple[int, int]], list[int], Sizes]:
    """Returns (first key, key after the last) of each identity, all records' offsets, and sizes."""
    # Importing Pillow takes as long as scanning some hundred megabytes, which rec2idx only does.
    from pipeline.records.image_kind import image_size

    ranges: list[tuple[int, int]] = []
    sizes: Sizes = Counter()
    with RecordWriter(path) as writer:
        # The header record comes first and speaks of what follows: it is filled in last.
        offsets = [writer.write(pack_image(b"", [0.0, 0.0], 0))]
        for label, images in enumerate(identities):
            if label >= MAX_EXACT_LABEL:
                raise RecordError(f"more than {MAX_EXACT_LABEL} identities do not fit float32")
            first = len(offsets)
            for labels, image in images:
                if not image:
                    raise RecordError(f"an image of identity {label} is empty: remove it")
                if size := image_size(image):
                    sizes[size] += 1
                offsets.append(writer.write(pack_image(image, labels, len(offsets))))
            ranges.append((first, len(offsets)))
        end_of_images = len(offsets)
        for first, last in ranges:
            offsets.append(writer.write(pack_image(b"", [first, last], len(offsets))))
    with path.open("r+b") as file:
        file.seek(PART_HEADER.size)
        file.write(pack_image(b"", [end_of_images, len(offsets)], 0))
    return ranges, offsets, sizes
