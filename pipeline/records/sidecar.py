"""The sidecar of a .rec, `train.fsidx`: what one pass over the file found, for the next start.

It is 4096 bytes of JSON about the .rec, then one `RECORD` of 24 bytes an image, memory-mapped. It
is trusted only while the .rec has the size, the time and the sampled bytes it had then, and while
it is itself as it was written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache_folder import cache_folders
from pipeline.named_path import MALFORMED
from pipeline.records.record_file import RecordFile, fingerprint, map_bytes
from pipeline.records.scan import RECORD, Scan, Summary
from pipeline.sync import sync
from pipeline.whole_file import replace

SIDECAR_SUFFIX = ".fsidx"
_FORMAT = "facestream-index-3"
_PREAMBLE = 4096
_IN_MEMORY = 64 << 20  # bytes of records; more are mapped, and checked in samples

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

    Args:
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
        "summary": asdict(found.summary),
    }
    about["digest"] = digest(about, body)
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
        replace(unfinished, target)
    return target


def digest(about: dict[str, Any], body: np.ndarray) -> str:
    """Of a preamble, its "digest" aside, and of the records' (bytes,) uint8.

    Of many records, of the first and last and 62 stretches between.
    """
    said = {name: value for name, value in about.items() if name != "digest"}
    found = hashlib.blake2b(json.dumps(said).encode(), digest_size=16)
    piece = 1 << 18
    begins = np.linspace(0, max(0, len(body) - piece), 64, dtype=np.int64)
    for begin in begins if len(body) > _IN_MEMORY else range(0, len(body), piece):
        found.update(body[begin : begin + piece])
    return found.hexdigest()


def read_sidecar(path: Path, file: RecordFile) -> tuple[np.ndarray, Summary] | None:
    """A .rec's sidecar's content; None where it is missing, damaged, outdated or another file's.

    The .rec must have the size, the modification time and the fingerprint noted at the scan. The
    sidecar's own age says nothing: downloads set times of long ago. So a set that was moved or
    copied with its times (cp -p, rsync -t, tar) needs no scan, in whatever order its files came,
    and one copied without them needs one. What goes unnoticed: bytes replaced between the
    fingerprint's blocks by a writer that puts size and modification time back.
    """
    if not path.is_file():
        return None
    now = file.path.stat()
    try:
        return _unpack(path, now, file.fingerprint)
    except (OSError, *MALFORMED) as error:
        _log.warning("%s is damaged (%s): %s is scanned again", path, error, file.path)
        return None


def _unpack(path: Path, now: os.stat_result, content: str) -> tuple[np.ndarray, Summary] | None:
    """As `read_sidecar`, for a .rec of this state and fingerprint; damage raises errors."""
    with path.open("rb") as file:
        about = json.loads(file.read(_PREAMBLE))
    if about["format"] != _FORMAT:
        return None
    seen = about["mtime_ns"]
    # Archives and some file systems drop what is below a second.
    same_time = now.st_mtime_ns in (seen, seen - seen % 10**9)
    if not same_time or (about["size"], about["fingerprint"]) != (now.st_size, content):
        return None
    length = path.stat().st_size - _PREAMBLE
    if length <= _IN_MEMORY:
        body = np.fromfile(path, np.uint8, offset=_PREAMBLE)
    else:
        body = map_bytes(path, offset=_PREAMBLE)
    if digest(about, body) != about["digest"]:
        raise ValueError("its content is not what was written")
    said = about["summary"]
    damaged = tuple(tuple(span) for span in said.pop("damaged"))
    return body.view(RECORD), Summary(damaged=damaged, **said)
