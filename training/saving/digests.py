"""What a checkpoint's file must be: its bytes and its BLAKE2b, taken as it is written or read."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, TypedDict

from pipeline.sync import sync

_BLOCK = 1 << 24  # bytes read at once


class Digest(TypedDict):
    """What a file must be: its size in bytes and its BLAKE2b in hexadecimal."""

    bytes: int
    blake2b: str


class DigestedFile(io.FileIO):
    """A file for writing from start to end, digested on the way, synced when closed. Unbuffered."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "wb")
        self._hash, self._bytes = _new_hash(), 0

    def write(self, data: Any) -> int:
        """Write all of a buffer, where FileIO would stop after 2 GB."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += super().write(view[written:])
        self._hash.update(view)
        self._bytes += written
        return written

    def close(self) -> None:
        """Make sure that what was written lasts, where the disk can do that."""
        if not self.closed:
            try:
                sync(self.fileno())
            finally:
                super().close()

    def digest(self) -> Digest:
        """Of what was written so far."""
        return Digest(bytes=self._bytes, blake2b=self._hash.hexdigest())


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def digest_of(file: Path) -> Digest:
    """Of a file, read from start to end."""
    digest, size = _new_hash(), 0
    with file.open("rb", buffering=0) as stream:
        buffer = memoryview(bytearray(_BLOCK))
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return Digest(bytes=size, blake2b=digest.hexdigest())
