"""Where the values of an LMDB lie in its file.

LMDB's own library maps the file and believes it: one that is cut off or damaged ends the process
with a signal. Here every page is checked before it is followed, and nothing but the format of
LMDB 0.9 on little-endian machines of 64 bits is read, which is what sets of faces come in.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facestream import UserError
from pipeline.containers.texts import Texts

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_HEADER = struct.Struct("<QHHHH")  # number, unused, flags, end of the pointers, begin of nodes
_META = struct.Struct("<II")  # magic, version
_TREE = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, pages of three kinds, entries, root
_META_END = struct.Struct("<QQ")  # last page, transaction
_NODE = struct.Struct("<HHHH")  # two halves of a size or page, flags, length of the key
_META_BYTES = _PAGE_HEADER.size + 24 + 2 * _TREE.size + _META_END.size
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # kinds of pages
_ELSEWHERE, _INSIDE, _MANY = 1, 2, 4  # flags of a value: in pages of its own; a database; several
_NONE = (1 << 64) - 1  # the root of an empty tree
_PAGE_SIZES = [1 << bits for bits in range(9, 17)]


class LmdbError(UserError):
    """An LMDB that cannot be read: says which, why, and how to mend it."""


@dataclass(frozen=True)
class LmdbValues:
    """The values of a database, in the order of their keys.

    Attributes:
        path: of the file.
        keys: of each.
        offsets, lengths: (N,) int64, in bytes: where in the file a value begins, and its length.
    """

    path: Path
    keys: Texts
    offsets: np.ndarray
    lengths: np.ndarray

    def take(self, places: np.ndarray) -> LmdbValues:
        """Those at (M,) places, in their order."""
        keys = self.keys.take(places)
        return LmdbValues(self.path, keys, self.offsets[places], self.lengths[places])


def find_lmdb(path: Path) -> Path | None:
    """The file of an LMDB that is named by its file or folder; None for what is none by name."""
    if path.is_dir():
        return path / "data.mdb" if (path / "data.mdb").is_file() else None
    return path if path.suffix in (".lmdb", ".mdb") else None


def index_lmdb(path: Path) -> LmdbValues:
    """Find all values of the unnamed database; no value is read.

    Raises:
        LmdbError: another kind of file, one that is cut off or damaged, or with databases inside.
        OSError: where it cannot be read.
    """
    offsets, lengths = array("q"), array("q")

    def found(pages: _Pages) -> Iterator[bytes]:
        for key, offset, length in pages.values():
            offsets.append(offset)
            lengths.append(length)
            yield key

    with path.open("rb") as file:
        pages = _Pages(path, file.fileno())
        keys = Texts.of(found(pages))
    if len(keys) != pages.entries:
        raise pages.damaged(f"{len(keys)} values are there of {pages.entries}")
    return LmdbValues(path, keys, np.array(offsets, np.int64), np.array(lengths, np.int64))


class _Pages:
    """The pages of a file, each checked.

    Attributes:
        entries: of the tree, as the newest of the two first pages says.
    """

    def __init__(self, path: Path, file: int) -> None:
        self._path, self._file, self._bytes = path, file, os.fstat(file).st_size
        first = self._meta(0)
        if first is None:
            raise LmdbError(
                f"{path} is no LMDB ({self._bytes:,} bytes): expected data.mdb as LMDB 0.9 writes "
                "it on 64-bit Linux. Download it again"
            )
        size = first[0]
        metas = [meta for meta in (first, self._meta(size)) if meta]
        _, _, self._root, self.entries, last = max(metas, key=lambda meta: meta[1])
        self._size, self._count = size, last + 1
        if self._count * size > self._bytes:
            raise LmdbError(
                f"{path} is cut off: it has {self._bytes:,} bytes, expected at least "
                f"{self._count * size:,}. Download it again"
            )

    def values(self) -> Iterator[tuple[bytes, int, int]]:
        """(key, offset, length) of each, in order."""
        waiting = [] if self._root == _NONE else [self._root]
        seen = 0
        while waiting:
            seen += 1
            if seen > self._count:
                raise self.damaged("its pages lead back to themselves")
            number = waiting.pop()
            page, flags = self._page(number)
            if flags & _BRANCH:
                children = [low | high << 16 | more << 32 for _, low, high, more, _ in _nodes(page)]
                waiting += reversed(children)
            elif flags & _LEAF:
                yield from self._leaf(number, page)
            else:
                raise self.damaged(f"page {number} is of another kind")

    def damaged(self, why: str) -> LmdbError:
        return LmdbError(f"{self._path} is damaged ({why}): download it again")

    def _leaf(self, number: int, page: bytes) -> Iterator[tuple[bytes, int, int]]:
        for at, low, high, flags, key_length in _nodes(page):
            if flags & (_INSIDE | _MANY):
                raise LmdbError(
                    f"{self._path} has databases inside, or several values of a key: expected one "
                    "database of images. Copy that one out of it: mdb_copy"
                )
            length, begin = low | high << 16, at + _NODE.size + key_length
            key = page[at + _NODE.size : begin]
            if flags & _ELSEWHERE:
                first = int.from_bytes(page[begin : begin + 8], "little")
                offset = first * self._size + _PAGE_HEADER.size
                if not self._page(first, whole=False)[1] & _OVERFLOW:
                    raise self.damaged(f"the value of {key!r} is not where it says")
            else:
                offset = number * self._size + begin
            if len(key) != key_length or offset + length > self._count * self._size:
                raise self.damaged(f"the value of {key[:40]!r} ends outside")
            yield key, offset, length

    def _page(self, number: int, *, whole: bool = True) -> tuple[bytes, int]:
        """Its bytes and flags."""
        if not 2 <= number < self._count:
            raise self.damaged(f"page {number} is named, and it has {self._count}")
        wanted = self._size if whole else _PAGE_HEADER.size
        page = os.pread(self._file, wanted, number * self._size)
        if len(page) < wanted:
            raise self.damaged("it became shorter")
        its_number, _, flags, _, _ = _PAGE_HEADER.unpack_from(page)
        if its_number != number:
            raise self.damaged(f"page {number} says that it is page {its_number}")
        return page, flags

    def _meta(self, offset: int) -> tuple[int, int, int, int, int] | None:
        """(page size, transaction, root, entries, last page); None for what is no first page."""
        page = os.pread(self._file, _META_BYTES, offset)
        if len(page) < _META_BYTES:
            return None
        at = _PAGE_HEADER.size
        magic, version = _META.unpack_from(page, at)
        size = _TREE.unpack_from(page, at + 24)[0]
        *_, entries, root = _TREE.unpack_from(page, at + 24 + _TREE.size)
        last, transaction = _META_END.unpack_from(page, at + 24 + 2 * _TREE.size)
        if (magic, version) != (_MAGIC, _VERSION) or size not in _PAGE_SIZES:
            return None
        return size, transaction, root, entries, last


def _nodes(page: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(offset in the page, low and high half, flags, length of the key) of each node."""
    end = _PAGE_HEADER.unpack_from(page)[3]
    for at in np.frombuffer(page[_PAGE_HEADER.size : end][: end - _PAGE_HEADER.size & ~1], "<u2"):
        place = int(at)
        if place + _NODE.size <= len(page):
            yield (place, *_NODE.unpack_from(page, place))
