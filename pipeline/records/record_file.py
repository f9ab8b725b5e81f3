"""Files read by position, on any number of threads, that may lie on a network disk.

Reads are asked for with pread, not through a memory map: where the file has been cut off, or the
disk fails, a read says so, while touching a map would end the process without a word.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.records.recordio import RecordError, read_record, unpack_image
from pipeline.records.stalls import Stalls

_LONGEST_HEADER = 1 << 20  # bytes before an image, labels and all: far more than any has
# What Linux fetches of one announcement by default; what goes beyond that is left out.
_PIECE = 128 << 10  # bytes


def fingerprint(path: str | Path) -> str:
    """A digest of a file's size and of 64 blocks of 4096 bytes spread over it.

    It depends on nothing but the content, and tells two data sets apart. A change that keeps the
    size and falls between the blocks escapes it, so the sidecar notes the file's time as well.
    """
    size = os.path.getsize(path)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for k in range(64):
            file.seek(max(0, size - 4096) * k // 63)
            digest.update(file.read(4096))
    return digest.hexdigest()


def map_bytes(path: str | Path, *, offset: int = 0) -> np.ndarray:
    """A file's bytes from `offset` on, memory-mapped and read-only: (bytes,) uint8.

    The map is private: some network disks (rclone, mergerfs, FUSE with direct_io) refuse shared
    ones, which are what np.memmap and mmap.ACCESS_READ ask for.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return np.frombuffer(mapped, np.uint8, offset=offset)


class Copy(Protocol):
    """A copy of a file on a nearer disk, as far as it goes: pipeline/staging/local_copy.py.

    Attributes:
        is_whole: whether all can be read there.
        descriptor: of the open copy, for what it has.
    """

    is_whole: bool

    @property
    def descriptor(self) -> int: ...

    def has(self, offset: int, length: int) -> bool:
        """Whether these bytes can be read there."""

    def read(self, offset: int, length: int) -> bytes | None:
        """These bytes, or None where it does not have them."""

    def refresh(self) -> None:
        """Take in what was copied since the last time."""


class DataFile:
    """Bytes of a file that does not change; `size` of them when it was opened.

    `fingerprint` is its digest; computing it takes 64 reads, each a journey on a network disk. As a
    Store (store.py) it has images that lie in it as they are.

    Attributes:
        copy: where it is read from as far as that goes, if there is one.
        changed: its modification time when it was last looked at, in nanoseconds.
    """

    copy: Copy | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        self.size, self.changed = found.st_size, found.st_mtime_ns
        self.fingerprint = fingerprint(path)
        self._stalls = Stalls(path)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; RecordError with the reason where there are none."""
        found = self.copy.read(offset, length) if self.copy else None
        return self.read_source(offset, length) if found is None else found

    def read_source(self, offset: int, length: int) -> bytes:
        """The same of the file itself, whatever there is of a copy."""
        self._stalls.begin(length)
        try:
            found = os.pread(self._descriptor, length, offset)
            while 0 < len(found) < length:  # a network disk may hand out less at a time
                more = os.pread(self._descriptor, length - len(found), offset + len(found))
                if not more:
                    break
                found += more
        except OSError as error:
            raise RecordError(f"cannot be read: {error}") from error
        finally:
            self._stalls.end()
        if len(found) < length:
            raise RecordError(f"cannot be read: the file ends before {length} bytes from {offset}")
        return found

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        begins, lengths = records["offset"] + records["header"], records["length"]
        return [partial(self.read, *span) for span in zip(begins.tolist(), lengths.tolist())]

    def place(self, record: np.void) -> str:
        return f"{self.path}: the image of the record at offset {record['offset']}"

    def name(self, record: np.void) -> str:
        return str(record["offset"])

    def will_need(self, offset: int, length: int) -> None:
        """Announce a read, so that the system fetches the bytes meanwhile, if it can do that."""
        if not hasattr(os, "posix_fadvise"):
            return
        for begin in range(offset, offset + length, _PIECE):
            piece = min(_PIECE, offset + length - begin)
            near = self.copy and self.copy.has(begin, piece)
            descriptor = self.copy.descriptor if self.copy and near else self._descriptor
            with suppress(OSError):  # of a place that cannot be: to read it will say so
                os.posix_fadvise(descriptor, begin, piece, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Raise RecordError where the file was cut off, removed or overwritten since then.

        A changed time alone is no harm: the content is looked at then, in samples. Once a copy has
        all of it, nothing that becomes of the file is one.
        """
        if self.copy:
            self.copy.refresh()
            if self.copy.is_whole:
                return
        try:
            found = self.path.stat()
            if found.st_size < self.size:
                raise self._lost(f"has shrunk to {found.st_size} bytes")
            if found.st_mtime_ns != self.changed:
                if found.st_size != self.size or fingerprint(self.path) != self.fingerprint:
                    raise self._lost(f"was overwritten, with {found.st_size} bytes")
                self.changed = found.st_mtime_ns
        except FileNotFoundError:
            raise self._lost("is gone") from None
        except OSError as error:
            raise self._lost(f"cannot be reached: {error}") from error

    def _lost(self, found: str) -> RecordError:
        return RecordError(
            f"{self.path} {found}, it had {self.size} bytes when the run began: put it back and "
            "start the run again, which goes on from its newest checkpoint"
        )


class RecordFile(DataFile):
    """A .rec file: an image that was split at the magic word is joined as it is read."""

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        sources = super().sources(records)
        for at in np.flatnonzero(records["header"] == 0).tolist():
            offset, length = int(records["offset"][at]), int(records["length"][at])
            sources[at] = partial(self._rejoined, offset, length)
        return sources

    def _rejoined(self, offset: int, length: int) -> bytes:
        """The image of a record that was split: every four bytes of it may have cost eight."""
        frame = self.read(offset, min(2 * length + _LONGEST_HEADER, self.size - offset))
        payload, _ = read_record(memoryview(frame), 0)
        return bytes(unpack_image(payload).image)
