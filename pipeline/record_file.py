"""A file read by position, on any number of threads, that may lie on a network disk.

Reads are asked for with pread, not through a memory map: where the file has been cut off, or the
disk fails, a read says so, while touching a map would end the process without a word.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from pipeline.recordio import RecordError

# What Linux fetches of one announcement at least, whatever the disk; more would be left out.
_PIECE = 128 << 10  # bytes


class RecordFile:
    """Bytes of a file that does not change; `size` of them when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; RecordError where they cannot be read."""
        try:
            found = os.pread(self._descriptor, length, offset)
            while 0 < len(found) < length:  # a network disk may hand out less at a time
                more = os.pread(self._descriptor, length - len(found), offset + len(found))
                if not more:
                    break
                found += more
        except OSError as error:
            raise self._lost(f"cannot be read at offset {offset}: {error}") from error
        if len(found) < length:
            raise self._lost(f"ends before {length} bytes at offset {offset}")
        return found

    def will_need(self, offset: int, length: int) -> None:
        """Announce a read, so that the system fetches the bytes meanwhile, if it can do that."""
        if not hasattr(os, "posix_fadvise"):
            return
        for begin in range(offset, offset + length, _PIECE):
            piece = min(_PIECE, offset + length - begin)
            os.posix_fadvise(self._descriptor, begin, piece, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Raise RecordError where the file was cut off or removed since it was opened."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            raise self._lost("is gone") from None
        if size < self.size:
            raise self._lost(f"has shrunk to {size} bytes")

    def _lost(self, found: str) -> RecordError:
        return RecordError(
            f"{self.path} {found}, it had {self.size} bytes when the run began: put it back and "
            "start the run again, which goes on from its newest checkpoint"
        )
