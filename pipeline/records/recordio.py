"""The RecordIO format of dmlc/MXNet, as InsightFace ships its training sets.

A file is a sequence of parts, each starting at a multiple of four bytes::

    uint32  magic 0xced7230a
    uint32  continuation flag (3 bits) << 29 | length (29 bits)
    bytes   the payload, zero-padded to a multiple of four

A payload that holds the magic word at a multiple of four is split there: the word itself is left
out and the parts carry the flags 1 (first), 2 (middle), 3 (last); whole records carry 0. So the
magic word at a multiple of four always starts a part, which is what `scan` relies on.

The payload of an image record is the header ``<IfQQ`` (flag, label, id, id2), then `flag` float32
labels when flag > 0, then the encoded image. A record with nothing after its labels is bookkeeping:
the first one says where the identity records are, the others which images each identity has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facestream import UserError

MAGIC = 0xCED7230A
MAX_PART = (1 << 29) - 1  # bytes: what 29 bits of length can say
WHOLE, FIRST, MIDDLE, LAST = range(4)
PART_HEADER = struct.Struct("<II")
IMAGE_HEADER = struct.Struct("<IfQQ")

_MAGIC_BYTES = struct.pack("<I", MAGIC)


class RecordError(UserError):
    """A .rec file that cannot be read as RecordIO: says which file, where and how to mend it."""


class ImageRecord(NamedTuple):
    """One image record's payload, taken apart."""

    labels: np.ndarray  # (flag or 1,) float32; the first is the identity
    vector: bool  # whether flag was > 0: the labels followed the header
    key: int
    image: memoryview  # encoded bytes; empty for header and identity records


def _padded(length: int) -> int:
    return (length + 3) & ~3


class RecordWriter:
    """Writes a .rec file; `write` returns the offset that an .idx file quotes."""

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__ or close)

    def write(self, payload: bytes) -> int:
        """Append one record, split wherever the magic word would be mistaken for a new one."""
        if len(payload) > MAX_PART:
            raise RecordError(
                f"a record of {len(payload)} bytes does not fit RecordIO's 29-bit length "
                f"({MAX_PART} bytes at most): store a smaller image"
            )
        offset = self._file.tell()
        begin, flag = 0, WHOLE
        for at in _aligned_magic(payload):
            flag = FIRST if flag == WHOLE else MIDDLE
            self._part(flag, payload[begin:at])
            begin = at + 4
        self._part(WHOLE if flag == WHOLE else LAST, payload[begin:])
        return offset

    def _part(self, flag: int, data: bytes) -> None:
        self._file.write(PART_HEADER.pack(MAGIC, flag << 29 | len(data)))
        self._file.write(data)
        self._file.write(bytes(_padded(len(data)) - len(data)))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _aligned_magic(payload: bytes) -> Iterator[int]:
    at = payload.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            yield at
            at = payload.find(_MAGIC_BYTES, at + 4)
        else:
            at = payload.find(_MAGIC_BYTES, at + 1)


def pack_image(image: bytes, labels: float | Sequence[float], key: int) -> bytes:
    """The payload of a record: one label goes with flag 0, a vector with flag = its length."""
    if isinstance(labels, (int, float)):
        return IMAGE_HEADER.pack(0, labels, key, 0) + image
    vector = np.asarray(labels, dtype="<f4")
    return IMAGE_HEADER.pack(len(vector), 0.0, key, 0) + vector.tobytes() + image


def unpack_image(payload: bytes | memoryview) -> ImageRecord:
    """Take a payload apart; raises RecordError when it is shorter than its own header says."""
    view = memoryview(payload)
    if len(view) < IMAGE_HEADER.size:
        raise RecordError(f"a payload of {len(view)} bytes is too short for an image header (24)")
    flag, label, key, _ = IMAGE_HEADER.unpack_from(view)
    end = IMAGE_HEADER.size + 4 * flag
    if len(view) < end:
        raise RecordError(f"the header announces {flag} labels, but the payload ends before them")
    labels = np.array([label], np.float32)
    if flag:
        labels = np.frombuffer(view[IMAGE_HEADER.size : end], "<f4")
    return ImageRecord(labels, flag > 0, key, view[end:])


def read_record(buffer: memoryview, offset: int) -> tuple[bytes | memoryview, int]:
    """The payload at `offset` and the offset of the next record.

    A whole record is handed out as a view; one split at the magic word is joined into new bytes.
    Raises RecordError at anything that is not a complete record.
    """
    pieces: list[memoryview] = []
    while True:
        if offset + PART_HEADER.size > len(buffer):
            raise RecordError(f"the file ends inside a record's frame at offset {offset}")
        magic, word = PART_HEADER.unpack_from(buffer, offset)
        flag, length = word >> 29, word & MAX_PART
        begin = offset + PART_HEADER.size
        if magic != MAGIC:
            if pieces:
                raise RecordError("part of a record, the rest is missing")
            raise RecordError(f"no record starts at offset {offset}: found {magic:#010x}")
        if begin + length > len(buffer):
            raise RecordError(f"the record at offset {offset} runs past the end of the file")
        if flag > LAST or (flag in (MIDDLE, LAST)) != bool(pieces):
            raise RecordError(f"a part with continuation flag {flag} stands alone at {offset}")
        data, offset = buffer[begin : begin + length], begin + _padded(length)
        if flag == WHOLE:
            return data, offset
        pieces.append(data)
        if flag == LAST:
            return _MAGIC_BYTES.join(pieces), offset
