"""Where every image of a .rec file is and whose it is.

The answer lives in a sidecar, see sidecar.py, which one pass over the .rec builds. MXNet's .idx is
not needed, but one that stands beside the .rec and is newer than the sidecar must agree with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.records.mxnet_idx import check_idx
from pipeline.records.record_file import RecordFile
from pipeline.records.recordio import read_record, unpack_image
from pipeline.records.scan import Progress, Summary, map_file, scan_rec
from pipeline.records.sidecar import (
    SIDECAR_SUFFIX,
    output_folder,
    read_sidecar,
    sidecar_folders,
    write_sidecar,
)

_LONGEST_HEADER = 1 << 20  # bytes before an image, labels and all: far more than any has

_log = logging.getLogger("facestream.pipeline")


class RecordIndex:
    """The images of one .rec file: `records` (N,) of RECORD and `image(i)`, their bytes.

    `file` reads it by position; `buffer` is all of it, memory-mapped: (bytes,) uint8.
    """

    def __init__(
        self, path: Path, records: np.ndarray, summary: Summary, *, file: RecordFile | None = None
    ) -> None:
        self.path = path
        self.records = np.asarray(records)
        self.summary = summary
        self.buffer = map_file(path)
        self.file = file or RecordFile(path)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> np.ndarray:
        """The encoded image of record i, (bytes,) uint8; RecordError where it cannot be read."""
        (source,) = self.sources(np.array([i]))
        return np.frombuffer(source(), np.uint8)

    def sources(self, i: np.ndarray) -> list[Callable[[], bytes]]:
        """For each of (N,) record numbers, what reads its encoded image."""
        offset, length = self.spans(i)
        sources: list[Callable[[], bytes]] = [
            partial(self.file.read, *span) for span in zip(offset.tolist(), length.tolist())
        ]
        for at in np.flatnonzero(self.records["header"][i] == 0).tolist():
            sources[at] = partial(self._rejoined, *self.records[i[at]].item()[:2])
        return sources

    def spans(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) record numbers to (N,) int64 offsets and lengths of their images in the file.

        Those of an image that was split at the magic word are about where it is.
        """
        records = self.records[i]
        return records["offset"] + records["header"], records["length"].astype(np.int64)

    def _rejoined(self, offset: int, length: int) -> bytes:
        """The image of a record that was split: every four bytes of it may have cost eight."""
        frame = self.file.read(offset, min(2 * length + _LONGEST_HEADER, self.file.size - offset))
        payload, _ = read_record(memoryview(frame), 0)
        return bytes(unpack_image(payload).image)

    def labels(self, i: np.ndarray) -> np.ndarray:
        """(N,) record numbers to (N,) int64 identities."""
        return self.records["label"][i]


def open_index(rec: str | Path, progress: Progress | None = None) -> RecordIndex:
    """Open a .rec file (or the folder that holds train.rec), building its sidecar when needed.

    Raises RecordError for files that are missing, empty or not RecordIO, and when the .idx beside
    the .rec disagrees with it.
    """
    rec = Path(rec)
    if rec.is_dir():
        rec = rec / "train.rec"
    map_file(rec)
    file = RecordFile(rec)
    idx = rec.with_suffix(".idx")
    for folder in sidecar_folders(rec):
        sidecar = folder / (rec.stem + SIDECAR_SUFFIX)
        content = read_sidecar(sidecar, file)
        if content:
            index = RecordIndex(rec, *content, file=file)
            if idx.is_file() and idx.stat().st_mtime_ns > sidecar.stat().st_mtime_ns:
                _check_idx(idx, index)
            return index
    seen = rec.stat()
    found = scan_rec(rec, progress)
    index = RecordIndex(rec, found.images, found.summary, file=file)
    if idx.is_file():
        _check_idx(idx, index)
    try:
        write_sidecar(rec, found, output_folder(rec), seen=seen)
    except OSError as error:
        _log.warning("%s will be scanned again at the next start: no sidecar, %s", rec, error)
    return index


def _check_idx(path: Path, index: RecordIndex) -> None:
    """A damaged .rec has lost records that its .idx rightly lists: the damage is what matters then,
    and Summary.check_damage judges it."""
    if not index.summary.damaged_spans:
        check_idx(path, index.path, images=index.records["offset"], content=index.buffer)
