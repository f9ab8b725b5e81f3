"""Rows of numbers kept in a file as they are made: whoever was killed goes on where he was.

A file has the number of columns, a digest of each batch of rows, and the rows. A digest is written
after its batch, and is of what the file is known by, too: a batch without one is unfinished, and
one whose digest is another (a damaged disk, a forged or renamed file) is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

_START = 64  # bytes, of the number of columns as text: what follows is aligned
_DIGEST = 16  # bytes
_MOST_COLUMNS = 1 << 20


class MemoryRows:
    """Rows that nobody keeps."""

    done = 0

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def add(self, block: np.ndarray) -> None:
        """(b, columns) float32, the next ones."""
        self._blocks.append(block)

    def all(self) -> np.ndarray:
        """(rows, columns) float32."""
        return np.concatenate(self._blocks)


class FileRows:
    """Rows in a file that is open for reading and writing: whole batches alone stay.

    Args:
        known_by: what the rows are of.
        count: of all rows.
        batch_size: rows that are added at a time; the last ones may be fewer.

    Attributes:
        done: the rows that an earlier process has left there.
    """

    def __init__(
        self, path: Path, file: BinaryIO, *, known_by: str, count: int, batch_size: int
    ) -> None:
        self._path, self._file, self._known_by = path, file, known_by
        self._count, self._batch_size = count, batch_size
        batches = -(-count // batch_size)
        self._first = -(-(_START + _DIGEST * batches) // 64) * 64  # where rows begin
        start = file.read(self._first)
        self._columns = _columns(start)
        self.done = self._whole(start) if self._columns else 0
        self._columns = self._columns if self.done else 0
        self._file.truncate(self._end(self.done) if self.done else 0)
        if self.done:  # digests of what is made again
            after = _START + _DIGEST * -(-self.done // batch_size)
            self._write(after, bytes(self._first - after))

    def add(self, block: np.ndarray) -> None:
        """The next batch, (b, columns) float32."""
        content = np.ascontiguousarray(block, np.float32).tobytes()
        try:
            if not self._columns:
                self._columns = block.shape[1]
                self._write(0, f"{self._columns}".rjust(_START).encode())
                self._file.truncate(self._first)
            self._write(self._end(self.done), content)
            batch = self.done // self._batch_size
            self._write(_START + _DIGEST * batch, self._digest(batch, content))
        except OSError as error:
            error.filename = str(self._path)  # a full disk names none
            raise
        self.done += len(block)

    def all(self) -> np.ndarray:
        """(rows, columns) float32, mapped."""
        rows = np.memmap(self._path, np.float32, mode="r", offset=self._first)
        return rows.reshape(-1, self._columns)

    def _write(self, at: int, content: bytes) -> None:
        self._file.seek(at)
        self._file.write(content)
        self._file.flush()  # what is written later is not in the file before it

    def _end(self, rows: int) -> int:
        return self._first + 4 * self._columns * rows

    def _digest(self, batch: int, content: bytes) -> bytes:
        about = f"{self._known_by} {self._columns} {batch} ".encode()
        return hashlib.blake2b(about + content, digest_size=_DIGEST).digest()

    def _whole(self, start: bytes) -> int:
        """How many rows, from the first on, are as they were written."""
        self._file.seek(self._first)
        for batch, first in enumerate(range(0, self._count, self._batch_size)):
            written = start[_START + _DIGEST * batch :][:_DIGEST]
            if not written.strip(b"\0"):
                return first
            rows = min(self._batch_size, self._count - first)
            content = self._file.read(4 * self._columns * rows)
            if written != self._digest(batch, content):
                logging.warning(
                    "%s: kept rows are damaged from %d of %d on: they are made again",
                    self._path,
                    first,
                    self._count,
                )
                return first
        return self._count


@contextmanager
def kept_rows(
    folder: Path | None, *, known_by: str, count: int, batch_size: int
) -> Iterator[MemoryRows | FileRows]:
    """Where rows go: into a file of a folder, unless another process is writing that one.

    Args:
        folder: None keeps none.
        known_by, count, batch_size: see FileRows.
    """
    if folder is None:
        yield MemoryRows()
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(known_by.encode()).hexdigest()[:32]}.embeddings"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use, or a disk without locks
            yield MemoryRows()
            return
        yield FileRows(path, file, known_by=known_by, count=count, batch_size=batch_size)


def _columns(start: bytes) -> int:
    """As the file says; 0 where it says nothing that can be."""
    text = start[:_START].strip()
    columns = int(text) if len(text) < 8 and text.isdigit() else 0
    return columns if columns <= _MOST_COLUMNS else 0
