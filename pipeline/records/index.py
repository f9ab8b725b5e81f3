"""Where every image of a data set is and whose it is; for a .rec file, `open_index`.

The answer for a .rec lives in a sidecar, see sidecar.py, which one pass over the .rec builds.
MXNet's .idx is not needed, but one that stands beside the .rec and is newer than the sidecar must
agree with it. For other forms see pipeline/containers/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.records.mxnet_idx import check_idx
from pipeline.records.record_file import RecordFile
from pipeline.records.scan import Progress, Summary, map_file, scan_rec
from pipeline.records.sidecar import (
    SIDECAR_SUFFIX,
    output_folder,
    read_sidecar,
    sidecar_folders,
    write_sidecar,
)
from pipeline.records.store import Store

_log = logging.getLogger("facestream.pipeline")


class RecordIndex:
    """The images of one data set: `records` (N,) of RECORD and `image(i)`, their bytes.

    Attributes:
        path: the set, as messages call it.
        file: what holds the images: a .rec file, or see pipeline/containers/.
        names: of the identities by label, where the set itself says them.
    """

    def __init__(
        self,
        path: Path,
        records: np.ndarray,
        summary: Summary,
        *,
        file: Store | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        self.records = np.asarray(records)
        self.summary = summary
        self.file = file or RecordFile(path)
        self.names = names

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> np.ndarray:
        """The encoded image of record i, (bytes,) uint8; RecordError where it cannot be read."""
        (source,) = self.sources(np.array([i]))
        return np.frombuffer(source(), np.uint8)

    def sources(self, i: np.ndarray) -> list[Callable[[], bytes]]:
        """For each of (N,) record numbers, what reads its encoded image."""
        return self.file.sources(self.records[i])

    def spans(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) record numbers to (N,) int64 offsets and lengths of their images in the file.

        Those of an image that does not lie there as it is are about where it is.
        """
        records = self.records[i]
        return records["offset"] + records["header"], records["length"].astype(np.int64)

    def labels(self, i: np.ndarray) -> np.ndarray:
        """(N,) record numbers to (N,) int64 identities."""
        return self.records["label"][i]

    def place(self, i: int) -> str:
        """Where the image of a record is, for messages."""
        return self.file.place(self.records[i])


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
        check_idx(path, index.path, images=index.records["offset"], content=map_file(index.path))
