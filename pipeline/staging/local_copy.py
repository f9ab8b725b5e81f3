"""A file's copy on a disk of the node, read as far as it goes: whole, or piece by piece.

A stage folder has one folder for each content of a file, named by size, time and digest, so a
source that changed never meets its old copy. In it are, while the copy is made by copier.py,

    train.rec.<random>.unfinished   as long as the source, with holes
    pieces                          the name of the first, then "number sum" a line

and, once it is whole, train.rec alone. A line is written after its piece is on the disk, so
whatever has a line can be read, whoever was killed at whatever moment.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
import zlib
from pathlib import Path
from typing import NamedTuple

from pipeline.records.record_file import fingerprint

PREFIX = "facestream-"
PIECES = "pieces"

_log = logging.getLogger("facestream.pipeline")


class Original(NamedTuple):
    """What is copied: a file in one state."""

    path: Path
    size: int  # bytes
    changed: int  # st_mtime_ns
    fingerprint: str


class LocalCopy:
    """What a stage folder has of a file, for reading; threads share it.

    Args:
        piece: bytes; some blocks of data.order=block, so that copying can go ahead of training.

    Attributes:
        count: of pieces.
        folder: of this copy alone.
        whole: the file's name once it is complete.
        is_whole: whether it was, at the last `refresh`.
    """

    def __init__(self, stage: Path, original: Original, *, piece: int = 4 << 20) -> None:
        state = f"{original.size} {original.changed} {original.fingerprint} {piece}"
        name = hashlib.blake2b(state.encode(), digest_size=8).hexdigest()
        self.original, self.folder = original, stage / f"{PREFIX}{name}"
        self.whole, self.pieces = self.folder / original.path.name, self.folder / PIECES
        self.piece, self.count = piece, -(-original.size // piece)
        self.is_whole = False
        self._there = bytearray(self.count)
        self._descriptor: int | None = None
        self._list: int | None = None
        self._read_of_list, self._lost = 0, False
        self._lock = threading.Lock()
        self.refresh()

    @property
    def copied(self) -> int:
        """Bytes that can be read here."""
        beyond = self.count * self.piece - self.original.size if self._there[-1:] == b"\1" else 0
        return self._there.count(1) * self.piece - beyond

    def has(self, offset: int, length: int) -> bool:
        """Whether these bytes can be read here."""
        return 0 not in self._there[offset // self.piece : (offset + length - 1) // self.piece + 1]

    @property
    def descriptor(self) -> int:
        """Of the copy; for who has asked `has`."""
        assert self._descriptor is not None, "something is there"
        return self._descriptor

    def read(self, offset: int, length: int) -> bytes | None:
        """These bytes, or None where they are to be read from the source."""
        if self._descriptor is None or not self.has(offset, length):
            return None
        try:
            found = os.pread(self._descriptor, length, offset)
        except OSError as error:
            return self.give_up(f"cannot be read: {error}")
        if len(found) < length:
            return self.give_up(f"ends before {length} bytes from {offset}")
        return found

    def refresh(self) -> None:
        """Take in what was copied since the last time, by this process or another."""
        if self.is_whole or self._lost:
            return
        with self._lock:
            try:
                if self._list is None and not self._open_whole():
                    self._open_pieces()
                if self._list is not None:
                    self._take_in()
            except FileNotFoundError:
                return  # it is begun, or gets its name, at this moment
            except (OSError, ValueError) as error:  # the latter where a name is damaged
                self.give_up(f"cannot be opened: {error}")

    def _open_whole(self) -> bool:
        """Whether the complete file is there; one of another size or content is not trusted."""
        descriptor = self._opened(self.whole)
        if descriptor is None:
            return False
        if fingerprint(self.whole) != self.original.fingerprint:
            _log.warning("%s is not what was copied there: not used", self.whole)
            os.close(descriptor)
            return False
        self._hold(descriptor)
        self._there = bytearray(b"\1") * self.count
        self.is_whole = True
        return True

    def _open_pieces(self) -> None:
        listing = self._opened(self.pieces)
        if listing is None:
            return
        name, end, _ = os.pread(listing, 4096, 0).partition(b"\n")
        descriptor = self._opened(self.folder / os.fsdecode(name)) if end else None
        if descriptor is None:
            os.close(listing)
            return
        self._hold(descriptor)
        weakref.finalize(self, os.close, listing)
        self._list, self._read_of_list = listing, len(name) + 1

    def _take_in(self) -> None:
        assert self._list is not None
        size = os.fstat(self._list).st_size
        content = os.pread(self._list, max(0, size - self._read_of_list), self._read_of_list)
        taken, numbers = whole_lines(content, pieces=self.count)
        for number in numbers:
            self._there[number] = 1
        self._read_of_list += taken
        self.is_whole = 0 not in self._there

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def give_up(self, why: str) -> None:
        """Read from the source from now on."""
        if not self._lost:
            _log.warning("%s %s: %s is read instead", self.folder, why, self.original.path)
        self._lost, self.is_whole = True, False
        self._there = bytearray(self.count)

    @staticmethod
    def _opened(path: Path) -> int | None:
        try:
            return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return None


def whole_lines(content: bytes, *, pieces: int) -> tuple[int, list[int]]:
    """Of lines of `piece_line`: how many bytes the complete ones take, and their numbers.

    What follows a line that is none, as after a power cut, is none either.
    """
    numbers, taken = [], 0
    for line in content.splitlines(keepends=True):
        said, _, sum_ = line.rpartition(b" ")
        number = said.partition(b" ")[0]  # lists had more in a line once
        if sum_ != _sum(said) or int(number) >= pieces:
            break
        numbers.append(int(number))
        taken += len(line)
    return taken, numbers


def piece_line(number: int) -> bytes:
    """Says that a piece is there: a wrong number would have holes read as images."""
    said = b"%d" % number
    return said + b" " + _sum(said)


def _sum(said: bytes) -> bytes:
    return b"%08x\n" % zlib.crc32(said, 1)
