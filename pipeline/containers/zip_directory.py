"""The directory at the end of a .zip: where its members lie, as arrays.

Python's zipfile makes an object of some 600 bytes of each member, 4 GB of a set of millions. Here
the directory is read piece by piece, and nothing that it says is believed before it is checked.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from pipeline.containers.texts import Texts
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

_ENTRY = np.dtype(
    [
        ("magic", "<u4"),
        ("versions", "<u4"),
        ("flags", "<u2"),
        ("how", "<u2"),
        ("time", "<u4"),
        ("sum", "<u4"),
        ("packed", "<u4"),
        ("size", "<u4"),
        ("name", "<u2"),  # bytes that follow, as of the next two
        ("more", "<u2"),
        ("comment", "<u2"),
        ("disk", "<u2"),
        ("attributes", "<u2"),
        ("attributes_outside", "<u4"),
        ("offset", "<u4"),
    ]
)
_LENGTHS = struct.Struct("<3H")  # from byte 28 of an entry on
_MAGIC = int.from_bytes(b"PK\1\2", "little")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")  # with sizes of 64 bits
_LOCATOR = struct.Struct("<4sIQI")  # between the two
_LONGEST_COMMENT = 0xFFFF
_PIECE = 4 << 20  # bytes of the directory at one time: more than its longest entry has
_IN_64_BITS = 0xFFFFFFFF  # as a size or offset: it follows
_FIELD_HEADER = 4  # bytes: which field follows a name, and its length
_SIZES, _UNICODE_NAME = 1, 0x7075  # fields
_UTF8 = 1 << 11  # flag


class Members(NamedTuple):
    """N members of a .zip, in the order of its directory.

    Attributes:
        names: their paths.
        offset: (N,) int64 bytes, of their local headers in the file.
        packed, size: (N,) uint64 bytes, as they lie there and unpacked; of any size.
        sum: (N,) uint32, CRC-32 of what is unpacked.
        how: (N,) uint16, the way of packing.
        flags: (N,) uint16.
    """

    names: Texts
    offset: np.ndarray
    packed: np.ndarray
    size: np.ndarray
    sum: np.ndarray
    how: np.ndarray
    flags: np.ndarray

    def take(self, places: np.ndarray) -> Members:
        """Those at (M,) places, in their order."""
        return Members(self.names.take(places), *(array[places] for array in self[1:]))


def read_directory(
    path: Path, wanted: Callable[[str], bool], progress: Progress | None = None
) -> Members:
    """Members whose paths are wanted.

    Args:
        progress: is called with (bytes of the directory done, in all).

    Raises:
        RecordError: for another kind of file, and a directory that is cut off or contradicts
            itself or the file.
        OSError: for a file that cannot be read.
    """
    with path.open("rb") as file:
        begin, end, shift = _place(file, os.fstat(file.fileno()).st_size)
        kept, names, done = [], [], 0
        for piece, entries, starts in _pieces(file, begin, end):
            offset, packed, size = _places(piece, entries, starts)
            offset += shift
            if ((offset < 0) | (offset >= begin)).any():
                raise RecordError("a member begins outside")
            found = _names(piece, entries, starts)
            chosen = np.flatnonzero([wanted(name) for name in found])
            names.append(Texts.of(found[place] for place in chosen.tolist()))
            columns = offset, packed, size, *(entries[name] for name in ("sum", "how", "flags"))
            kept.append([column[chosen] for column in columns])
            done += len(piece)
            if progress:
                progress(done, end - begin)
    if not kept:
        return Members(Texts.of([]), *np.zeros((6, 0), np.int64))
    return Members(Texts.joined(names), *map(np.concatenate, zip(*kept)))


def _place(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the directory begins and ends, and what is to be added to the offsets in it."""
    before = max(0, size - _LONGEST_COMMENT - _END.size - _LOCATOR.size - _END_64.size)
    file.seek(before)
    tail = file.read()
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0:
        raise RecordError("no directory at its end")
    _, _, _, _, _, length, offset, _ = _END.unpack_from(tail, at)
    locator = at - _LOCATOR.size
    if locator >= 0 and tail.startswith(b"PK\6\7", locator):
        at = tail.rfind(b"PK\6\6", 0, locator)
        if at < 0 or at + _END_64.size > locator:
            raise RecordError("no directory at its end, whose place takes 64 bits")
        *_, length, offset = _END_64.unpack_from(tail, at)
    end = before + at
    begin = end - length
    if begin < 0 or offset > begin:  # a program may stand before the archive
        raise RecordError("its directory is not where it says")
    return begin, end, begin - offset


def _pieces(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """(bytes, (n,) _ENTRY in them, (n,) int64 where each begins there) of the whole directory."""
    while begin < end:
        file.seek(begin)
        piece = file.read(min(_PIECE, end - begin))
        starts, at = [], 0
        while at + _ENTRY.itemsize <= len(piece):
            after = at + _ENTRY.itemsize + sum(_LENGTHS.unpack_from(piece, at + 28))
            if after > len(piece):
                break
            starts.append(at)
            at = after
        if not starts:
            raise RecordError("its directory is cut off")
        first = np.array(starts)
        content = np.frombuffer(piece, np.uint8)
        entries = content[first[:, None] + np.arange(_ENTRY.itemsize)].view(_ENTRY)[:, 0]
        if (entries["magic"] != _MAGIC).any():
            raise RecordError("its directory is damaged")
        yield piece[:at], entries, first
        begin += at


def _places(
    piece: bytes, entries: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) int64 offsets, uint64 packed and unpacked sizes: of 32 bits, or as what follows says."""
    values = [entries[name].astype(np.uint64) for name in ("size", "packed", "offset")]
    content = np.frombuffer(piece, np.uint8)
    begin, length = _fields(content, entries, starts, _SIZES)
    for value in values:
        longer = (value == _IN_64_BITS) & (begin > 0)
        if (length[longer] < 8).any():
            raise RecordError("a size of 64 bits is cut off")
        value[longer] = _numbers(content, begin[longer], 8)
        begin[longer] += 8
        length[longer] -= 8
    size, packed, offset = values
    return np.minimum(offset, np.uint64(1 << 62)).astype(np.int64), packed, size


def _fields(
    content: np.ndarray, entries: np.ndarray, starts: np.ndarray, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64: where what follows each name has a field, and its length; zeros for none."""
    at = starts + _ENTRY.itemsize + entries["name"]
    end = at + entries["more"]
    begin, length = np.zeros((2, len(entries)), np.int64)
    left = np.arange(len(entries))
    while len(left := left[at[left] + _FIELD_HEADER <= end[left]]):
        size = _numbers(content, at[left] + 2, 2).astype(np.int64)
        inside = at[left] + _FIELD_HEADER
        if (inside + size > end[left]).any():
            raise RecordError("what follows a name is cut off")
        found = _numbers(content, at[left], 2) == wanted
        begin[left[found]], length[left[found]] = inside[found], size[found]
        at[left] = inside + size
        left = left[~found]
    return begin, length


def _numbers(content: np.ndarray, at: np.ndarray, width: int) -> np.ndarray:
    """(n,) unsigned numbers of so many bytes each."""
    return content[at[:, None] + np.arange(width)].view(f"<u{width}")[:, 0]


def _names(piece: bytes, entries: np.ndarray, starts: np.ndarray) -> list[str]:
    begins = starts + _ENTRY.itemsize
    ends = (begins + entries["name"]).tolist()
    utf8 = (entries["flags"] & _UTF8 != 0).tolist()
    raw = [piece[begin:end] for begin, end in zip(begins.tolist(), ends)]
    other = [place for place, name in enumerate(raw) if not (utf8[place] or name.isascii())]
    if other:
        content = np.frombuffer(piece, np.uint8)
        found = zip(*_fields(content, entries[other], starts[other], _UNICODE_NAME))
        for place, (begin, length) in zip(other, found):
            raw[place] = _in_utf8(raw[place], piece[begin : begin + length])
    return [name.decode(errors="surrogateescape").partition("\0")[0] for name in raw]


def _in_utf8(name: bytes, beside: bytes) -> bytes:
    """A name in the letters of old PCs, or the one in UTF-8 that is beside it."""
    if beside[:5] == b"\1" + zlib.crc32(name).to_bytes(4, "little"):
        return beside[5:]
    return name.decode("cp437").encode()
