"""Several files as one, such as the shards of a set; a Store (store.py) of the images in them."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ahead import cores, map_ahead
from pipeline.containers.content import ImageNames
from pipeline.records.record_file import DataFile


class Reading(io.RawIOBase):
    """A file as libraries read one: by DataFile, from a copy where there is one."""

    def __init__(self, file: DataFile) -> None:
        self._file, self._at, self.size = file, 0, file.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(self._at, max(0, min(len(buffer), self.size - self._at)))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class FilesEndToEnd:
    """Files one after another: offsets count through all of them.

    Args:
        paths: of the files.
        names: of the images in them.

    Attributes:
        files: each of them.
        starts: (files,) int64 of their first bytes.
    """

    def __init__(self, paths: Sequence[Path], names: ImageNames) -> None:
        self._names = names
        # Opening takes reads, and network disks answer many requests at once.
        self.files = list(map_ahead(DataFile, paths, workers=4 * cores()))
        self.starts = np.cumsum([0, *(file.size for file in self.files)])[:-1]
        self._starts = self.starts.tolist()
        content = " ".join(file.fingerprint for file in self.files)
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def locate(self, offset: int) -> tuple[DataFile, int]:
        """The file that a byte is in, and its offset there."""
        which = bisect_right(self._starts, offset) - 1
        return self.files[which], offset - self._starts[which]

    def read(self, offset: int, length: int) -> bytes:
        """As DataFile.read, of bytes that are all in one file."""
        file, begin = self.locate(offset)
        return file.read(begin, length)

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        begins, lengths = records["offset"] + records["header"], records["length"]
        return [partial(self.read, *span) for span in zip(begins.tolist(), lengths.tolist())]

    def place(self, record: np.void) -> str:
        file, _ = self.locate(int(record["offset"]))
        return f"{file.path}: {self.name(record)}"

    def name(self, record: np.void) -> str:
        return self._names.of(record)

    def will_need(self, offset: int, length: int) -> None:
        """As DataFile.will_need; near the end of a file, some bytes of the next may be left out."""
        file, begin = self.locate(offset)
        file.will_need(begin, min(length, file.size - begin))

    def check_unchanged(self) -> None:
        for file in self.files:
            file.check_unchanged()
