"""Where every image of a .rec file is and whose it is.

The answer lives in a sidecar, `train.fsidx`: 4096 bytes of JSON about the file, then one `RECORD`
of 24 bytes an image, to be memory-mapped. It is built by one pass over the .rec and trusted only
while the .rec has the size, the time and the sampled bytes it had then. MXNet's .idx is not needed,
but one that stands beside the .rec and is newer than the sidecar must agree with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.cache_folder import cache_folders
from pipeline.classify import RECORD, Progress, Scan, Summary, map_file, scan_rec
from pipeline.record_file import RecordFile, fingerprint, map_bytes
from pipeline.recordio import MAGIC, RecordError, read_record, unpack_image
from pipeline.sync import sync

SIDECAR_SUFFIX = ".fsidx"
_FORMAT = "facestream-index-2"
_PREAMBLE = 4096
_IN_MEMORY = 64 << 20  # bytes of records; more are mapped, and checked in samples
_LINES = 1 << 13  # of an .idx, formatted at once: few enough to stay in the processor's cache
_LONGEST_HEADER = 1 << 20  # bytes before an image, labels and all: far more than any has

_log = logging.getLogger("facestream.pipeline")


def sidecar_folders(rec: str | Path) -> list[Path]:
    """Where the sidecar may be: beside the .rec, or in a cache when that folder is read-only."""
    beside = Path(rec).absolute().parent
    own = hashlib.blake2b(os.fsencode(beside), digest_size=8).hexdigest()
    return [beside, *(cache / own for cache in cache_folders())]


def output_folder(rec: str | Path) -> Path:
    """The first of `sidecar_folders` that can be written, created if need be.

    Raises OSError where none can.
    """
    beside, *caches, last = sidecar_folders(rec)
    # A folder marked read-only is left alone even by root, whom the system would let write.
    if beside.stat().st_mode & 0o222 and os.access(beside, os.W_OK):
        return beside
    for cache in caches:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.debug("no cache in %s: %s", cache, error)
            continue
        if os.access(cache, os.W_OK):
            return cache
    last.mkdir(parents=True, exist_ok=True)
    return last


def write_sidecar(
    rec: str | Path, found: Scan, folder: Path, *, seen: os.stat_result | None = None
) -> Path:
    """Write the sidecar for `rec` into `folder`, complete or not at all.

    seen: `rec.stat()` from before the scan, so that a file still being written is scanned again
    when it is next opened; by default the file is taken to be as it was scanned.
    """
    rec = Path(rec)
    seen = seen or rec.stat()
    body = np.frombuffer(found.images.tobytes(), np.uint8)
    about = {
        "format": _FORMAT,
        "rec": rec.name,
        "size": seen.st_size,
        "mtime_ns": seen.st_mtime_ns,
        "fingerprint": fingerprint(rec),
        "records": digest_records(body),
        "summary": asdict(found.summary),
    }
    preamble = json.dumps(about).encode()
    assert len(preamble) < _PREAMBLE, "the list of damaged spans is bounded"
    target = folder / (rec.stem + SIDECAR_SUFFIX)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unfinished = Path(scratch) / target.name
        with unfinished.open("wb") as file:
            file.write(preamble.ljust(_PREAMBLE - 1) + b"\n")
            file.write(body)
            file.flush()
            sync(file.fileno())  # after a power cut, too, it is complete or not there
        unfinished.replace(target)
    return target


def digest_records(body: np.ndarray) -> str:
    """Of the records' (bytes,) uint8; of many, of the first and last and 62 stretches between."""
    digest = hashlib.blake2b(digest_size=16)
    piece = 1 << 18
    begins = np.linspace(0, max(0, len(body) - piece), 64, dtype=np.int64)
    for begin in begins if len(body) > _IN_MEMORY else range(0, len(body), piece):
        digest.update(body[begin : begin + piece])
    return digest.hexdigest()


def _read_sidecar(path: Path, rec: Path) -> tuple[np.ndarray, Summary] | None:
    """The sidecar's content, or None where it is missing, damaged, outdated or another file's.

    The .rec must have the size, the modification time and the fingerprint noted at the scan. The
    sidecar's own age says nothing: downloads set times of long ago. So a set that was moved or
    copied with its times (cp -p, rsync -t, tar) needs no scan, in whatever order its files came,
    and one copied without them needs one. What goes unnoticed: bytes replaced between the
    fingerprint's blocks by a writer that puts size and modification time back.
    """
    now = rec.stat()
    try:
        with path.open("rb") as file:
            preamble = file.read(_PREAMBLE)
        about = json.loads(preamble)
        made_for = (about["format"], about["size"], about["fingerprint"])
        seen = about["mtime_ns"]
        # Archives and some file systems drop what is below a second.
        same_time = now.st_mtime_ns in (seen, seen - seen % 10**9)
        damaged = tuple(tuple(span) for span in about["summary"].pop("damaged"))
        summary = Summary(damaged=damaged, **about["summary"])
        size = _PREAMBLE + summary.images * RECORD.itemsize
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if path.stat().st_size != size or not same_time:
        return None
    if made_for != (_FORMAT, now.st_size, fingerprint(rec)):
        return None
    if size - _PREAMBLE <= _IN_MEMORY:
        body = np.fromfile(path, np.uint8, offset=_PREAMBLE)
    else:
        body = map_bytes(path, offset=_PREAMBLE)
    return (body.view(RECORD), summary) if digest_records(body) == about.get("records") else None


class RecordIndex:
    """The images of one .rec file: `records` (N,) of RECORD and `image(i)`, their bytes.

    `file` reads it by position; `buffer` is all of it, memory-mapped: (bytes,) uint8.
    """

    def __init__(self, path: Path, records: np.ndarray, summary: Summary) -> None:
        self.path = path
        self.records = np.asarray(records)
        self.summary = summary
        self.buffer = map_file(path)
        self.file = RecordFile(path)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> np.ndarray:
        """The encoded image of record i, (bytes,) uint8; RecordError where it cannot be read."""
        (source,) = self.sources(np.array([i]))
        return np.frombuffer(source(), np.uint8)

    def sources(self, i: np.ndarray) -> list[Callable[[], bytes]]:
        """For each of (N,) record numbers, what reads its encoded image."""
        offset, length = self.spans(i)
        sources = [partial(self.file.read, *span) for span in zip(offset.tolist(), length.tolist())]
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
    idx = rec.with_suffix(".idx")
    for folder in sidecar_folders(rec):
        sidecar = folder / (rec.stem + SIDECAR_SUFFIX)
        content = _read_sidecar(sidecar, rec)
        if content:
            index = RecordIndex(rec, *content)
            if idx.is_file() and idx.stat().st_mtime_ns > sidecar.stat().st_mtime_ns:
                check_idx(idx, index)
            return index
    seen = rec.stat()
    found = scan_rec(rec, progress)
    index = RecordIndex(rec, found.images, found.summary)
    if idx.is_file():
        check_idx(idx, index)
    try:
        write_sidecar(rec, found, output_folder(rec), seen=seen)
    except OSError as error:
        _log.warning("%s will be scanned again at the next start: no sidecar, %s", rec, error)
    return index


def read_idx(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """MXNet's .idx, lines of ``key<TAB>offset``: (N,) int64 keys and offsets, in the file's order.

    Keys come in any order: im2rec writes those of a shuffled list. Raises RecordError, with the
    line, when it is garbled or a key comes twice.
    """
    path = Path(path)
    content = path.read_bytes()
    return _parse_plain(content) or _parse_lines(path, content.decode(errors="replace"))


def _parse_plain(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and offsets of an .idx as `write_idx` writes it; None for any other, right or wrong."""
    if content.translate(None, b"0123456789\t\n"):
        return None
    numbers = np.fromstring(content, np.int64, sep=" ")
    if len(numbers) % 2:
        return None
    keys, offsets = numbers.reshape(-1, 2).T.copy()
    # numpy takes any blank for any other and cuts off large numbers: those would not come out
    # again as they went in.
    same = b"".join(_format_lines(keys, offsets)) == content
    return (keys, offsets) if same and _all_differ(keys) else None


def _all_differ(keys: np.ndarray) -> bool:
    # Most rise, which is seen without sorting them.
    return bool((keys[1:] > keys[:-1]).all()) or len(np.unique(keys)) == len(keys)


def _parse_lines(path: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """What `read_idx` promises, a line at a time: slow, but it knows the line at fault."""
    keys, offsets, line_of = [], [], {}
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, offset = line.partition("\t")
        try:
            keys.append(int(key))
            offsets.append(int(offset))
            if not 0 <= offsets[-1] < 1 << 63 > keys[-1]:
                raise ValueError("no offset")
        except ValueError:
            raise RecordError(
                f"{path}, line {number}: found {line!r}, expected key<TAB>offset. {_remedy(path)}"
            ) from None
        first = line_of.setdefault(keys[-1], number)
        if first != number:
            raise RecordError(
                f"{path}, line {number}: key {keys[-1]} appears twice, on line {first} too: which "
                f"of two records it names cannot be known. {_remedy(path)}"
            )
    return np.array(keys, np.int64), np.array(offsets, np.int64)


def write_idx(path: str | Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Write MXNet's .idx in the order of the keys: (N,) int64 keys and offsets, none negative."""
    order = np.argsort(keys, kind="stable")
    with open(path, "wb") as file:
        file.writelines(_format_lines(keys[order], offsets[order]))


def _format_lines(keys: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
    """``key<TAB>offset`` in decimal, _LINES lines at a time.

    The digits of all lines that have the same place are computed at once, into a table of
    characters from which leading zeros are then left out.
    """
    assert len(keys) == 0 or min(keys.min(), offsets.min()) >= 0, "no place for a minus sign"
    for at in range(0, len(keys), _LINES):
        columns, shown = [], []  # from the last character of the lines to the first
        for numbers, stop in ((offsets[at : at + _LINES], "\n"), (keys[at : at + _LINES], "\t")):
            everywhere = np.ones(len(numbers), bool)
            columns.append(np.full(len(numbers), ord(stop), np.uint8))
            shown.append(everywhere)
            for place in range(len(str(numbers.max()))):
                rest = numbers // 10
                columns.append((numbers - 10 * rest + ord("0")).astype(np.uint8))
                shown.append(numbers > 0 if place else everywhere)
                numbers = rest
        table = np.stack(columns[::-1], axis=1)  # (lines, characters)
        yield table[np.stack(shown[::-1], axis=1)].tobytes()


def check_idx(path: Path, index: RecordIndex) -> None:
    """Raise RecordError unless the .idx lists every image of the .rec and nothing but records.

    A damaged .rec has lost records that its .idx rightly lists: the damage is what matters then,
    and Summary.check_damage judges it.
    """
    if index.summary.damaged_spans:
        return
    _, offsets = read_idx(path)
    rec, size = index.path.name, len(index.buffer)
    if len(offsets) and offsets.max() >= size:
        raise RecordError(
            f"{path} lists a record at offset {offsets.max()}, but {rec} ends at {size}: it is cut "
            f"off, download it again; or the .idx is another file's. {_remedy(path)}"
        )
    # Taking offsets for unique spares numpy seconds; one listed twice is still found once.
    missing = np.setdiff1d(index.records["offset"], offsets, assume_unique=True)
    if len(missing):
        raise RecordError(
            f"{path} disagrees with {rec}: of its {len(index)} images it leaves out "
            f"{len(missing)}, the first at offset {missing[0]}. {_remedy(path)}. To train without "
            f"them, list them as `record {missing[0]}` in the file that data.leave_out names"
        )
    magic = np.frombuffer(MAGIC.to_bytes(4, "little"), np.uint8)
    others = np.setdiff1d(offsets, index.records["offset"], assume_unique=True)
    found = index.buffer.take(others[:, None] + np.arange(len(magic)), mode="clip")
    strays = others[(others % 4 != 0) | (found != magic).any(axis=1)]
    if len(strays):
        raise RecordError(
            f"{path} disagrees with {rec}: no record starts at offset {strays[0]}. {_remedy(path)}"
        )


def _remedy(idx: Path) -> str:
    return f"Run `python tools/rec2idx.py {idx.with_suffix('.rec')}` to write it anew"
