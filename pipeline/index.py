"""Where every image of a .rec file is and whose it is.

The answer lives in a sidecar, `train.fsidx`: 4096 bytes of JSON about the file, then one `RECORD`
of 24 bytes an image, to be memory-mapped. It is built by one pass over the .rec and trusted only
while it is younger than the .rec and was made from the same bytes. MXNet's .idx is not needed, but
one that stands beside the .rec must agree with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.classify import RECORD, Progress, Scan, Summary, map_file, scan_rec
from pipeline.recordio import MAGIC, RecordError, read_record, unpack_image

SIDECAR_SUFFIX = ".fsidx"
_FORMAT = "facestream-index-1"
_PREAMBLE = 4096

_log = logging.getLogger("facestream.pipeline")


def fingerprint(path: str | Path) -> str:
    """A digest of a file's size and of 64 blocks spread over it: enough to tell two files apart."""
    size = os.path.getsize(path)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for k in range(64):
            file.seek(max(0, size - 4096) * k // 63)
            digest.update(file.read(4096))
    return digest.hexdigest()


def sidecar_folders(rec: str | Path) -> tuple[Path, Path]:
    """Where the sidecar may be: beside the .rec, or in the cache when that folder is read-only."""
    rec = Path(rec).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "facestream"
    return rec.parent, cache / hashlib.blake2b(str(rec.parent).encode(), digest_size=8).hexdigest()


def output_folder(rec: str | Path) -> Path:
    """The first of `sidecar_folders` that can be written, created if need be."""
    beside, cache = sidecar_folders(rec)
    # A folder marked read-only is left alone even by root, whom the system would let write.
    if beside.stat().st_mode & 0o222 and os.access(beside, os.W_OK):
        return beside
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def write_sidecar(rec: str | Path, found: Scan, folder: Path) -> Path:
    """Write the sidecar for `rec` into `folder`, complete or not at all."""
    rec = Path(rec)
    about = {"format": _FORMAT, "rec": rec.name, "fingerprint": fingerprint(rec)}
    preamble = json.dumps(about | {"summary": asdict(found.summary)}).encode()
    assert len(preamble) < _PREAMBLE, "the list of damaged spans is bounded"
    target = folder / (rec.stem + SIDECAR_SUFFIX)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unfinished = Path(scratch) / target.name
        with unfinished.open("wb") as file:
            file.write(preamble.ljust(_PREAMBLE - 1) + b"\n")
            file.write(found.images.tobytes())
        unfinished.replace(target)
    return target


def _read_sidecar(path: Path, rec: Path) -> tuple[np.ndarray, Summary] | None:
    """The sidecar's content, or None where it is missing, damaged, outdated or another file's."""
    if not path.is_file() or path.stat().st_mtime_ns < rec.stat().st_mtime_ns:
        return None
    with path.open("rb") as file:
        preamble = file.read(_PREAMBLE)
    try:
        about = json.loads(preamble)
        made_for = (about["format"], about["fingerprint"])
        damaged = tuple(tuple(span) for span in about["summary"].pop("damaged"))
        summary = Summary(damaged=damaged, **about["summary"])
        size = _PREAMBLE + summary.images * RECORD.itemsize
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if path.stat().st_size != size or made_for != (_FORMAT, fingerprint(rec)):
        return None
    if summary.images == 0:
        return np.empty(0, RECORD), summary
    return np.memmap(path, RECORD, mode="r", offset=_PREAMBLE), summary


class RecordIndex:
    """The images of one .rec file: `records` (N,) of RECORD and `image(i)`, their bytes.

    `buffer` is the whole file, memory-mapped: (bytes,) uint8.
    """

    def __init__(self, path: Path, records: np.ndarray, summary: Summary) -> None:
        self.path = path
        self.records = np.asarray(records)
        self.summary = summary
        self.buffer = map_file(path)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> np.ndarray:
        """The encoded image of record i, (bytes,) uint8: a view of the file where it is whole."""
        offset, length, header, _ = self.records[i].item()
        if header:
            return self.buffer[offset + header : offset + header + length]
        payload, _ = read_record(memoryview(self.buffer), offset)
        return np.frombuffer(unpack_image(payload).image, np.uint8)

    def check_unchanged(self) -> None:
        """Raise RecordError where the file was cut off or removed since it was opened.

        Reading what is no longer there would end the process without a word.
        """
        size = self.path.stat().st_size if self.path.exists() else None
        if size is None or size < len(self.buffer):
            found = "is gone" if size is None else f"has shrunk to {size} bytes"
            raise RecordError(
                f"{self.path} {found}, it had {len(self.buffer)} when the run began: put it back "
                "and start the run again, which goes on from its newest checkpoint"
            )

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
    found = scan_rec(rec, progress)
    index = RecordIndex(rec, found.images, found.summary)
    if idx.is_file():
        check_idx(idx, index)
    try:
        write_sidecar(rec, found, output_folder(rec))
    except OSError as error:
        _log.warning("%s will be scanned again at the next start: no sidecar, %s", rec, error)
    return index


def read_idx(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """MXNet's .idx, lines of ``key<TAB>offset``: (N,) int64 keys and offsets, in the file's order.

    Raises RecordError, with the line, when it is garbled or its keys do not rise.
    """
    path = Path(path)
    keys, offsets = [], []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
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
        if len(keys) > 1 and keys[-1] <= keys[-2]:
            fault = "appears twice" if keys[-1] == keys[-2] else f"follows {keys[-2]}"
            raise RecordError(
                f"{path}, line {number}: key {keys[-1]} {fault}, and keys must rise. "
                + _remedy(path)
            )
    return np.array(keys, np.int64), np.array(offsets, np.int64)


def write_idx(path: str | Path, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Write MXNet's .idx, in the order of the keys."""
    order = np.argsort(keys, kind="stable")
    lines = (f"{key}\t{offset}\n" for key, offset in zip(keys[order], offsets[order]))
    with open(path, "w", newline="\n") as file:
        file.writelines(lines)


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
    missing = np.setdiff1d(index.records["offset"], offsets)
    if len(missing):
        raise RecordError(
            f"{path} disagrees with {rec}: of its {len(index)} images it leaves out "
            f"{len(missing)}, the first at offset {missing[0]}. {_remedy(path)}"
        )
    magic = np.frombuffer(MAGIC.to_bytes(4, "little"), np.uint8)
    for offset in np.setdiff1d(offsets, index.records["offset"]):
        if offset % 4 or not np.array_equal(index.buffer[offset : offset + 4], magic):
            raise RecordError(
                f"{path} disagrees with {rec}: no record starts at offset {offset}. {_remedy(path)}"
            )


def _remedy(idx: Path) -> str:
    return f"Run `python tools/rec2idx.py {idx.with_suffix('.rec')}` to write it anew"
