"""Images in a .zip, read where they lie: nothing is unpacked onto a disk."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from facestream import UserError
from pipeline.containers.archive import scan_archive
from pipeline.containers.content import Content, ImageNames
from pipeline.containers.stored import OpenFiles, Spans, Stored, archive_labels, state_of
from pipeline.containers.zip_directory import Members, read_directory
from pipeline.passed_over import PassedOver
from pipeline.photos import CONVERTED, MOST_BYTES, SUFFIXES
from pipeline.records.record_file import DataFile
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

_HEADER = struct.Struct("<4s5H3I2H")  # before a member, without its name and what follows
_LOCAL = _HEADER.size
_USUAL = 64  # bytes that usually are enough for what follows a name
_ENCRYPTED, _LATER = 1, 8  # flags; sum and sizes come after the member, not before it
_IN_64_BITS = 0xFFFFFFFF  # as a size
_WANTED = (*SUFFIXES, *CONVERTED)
_HIDDEN = (".", "__MACOSX")  # as a part of a path begins


class ZipError(UserError):
    """A .zip that cannot be used: says which, why, and how to mend it."""


def stored_zip(path: Path) -> Stored:
    """The images of a .zip by their paths in it, in order; the first folder says who it is.

    A folder that all people are in, as where one folder was packed, is nobody's name.

    Raises:
        ZipError: another kind of file, one that is cut off, encrypted, compressed in another way
            than by deflating, or with an image that unpacks to more than any has.
    """
    members = _members(path)
    names = list(members.names)
    order = sorted(range(len(names)), key=names.__getitem__)
    return _stored(path, members.take(np.array(order, np.int64)))


def _members(path: Path, progress: Progress | None = None) -> Members:
    """The images, each checked, in the order of the directory."""
    try:
        members = read_directory(path, _is_wanted, progress)
    except (OSError, RecordError) as error:
        raise ZipError(f"{path} cannot be read as a .zip ({error}): download it again") from error
    _check(path, members)
    return members


def _stored(path: Path, members: Members) -> Stored:
    names, starts, packed, sizes, sums, how, _ = members
    content_at = OpenFiles([path])

    def read(place: int) -> bytes:
        start, length, size = int(starts[place]), int(packed[place]), int(sizes[place])
        header = content_at(0, start, _LOCAL)
        if header[:4] != b"PK\3\4":
            raise RecordError("is damaged: its header in the .zip is none")
        skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        content = content_at(0, start + _LOCAL + skipped, length)
        if how[place] == zipfile.ZIP_DEFLATED:
            content = _inflated(content, size)
        if len(content) != size or zlib.crc32(content) != sums[place]:
            raise RecordError("is damaged: it is not what the .zip says of it")
        return content

    def spans(_: Progress | None) -> Spans:
        # What follows a local header's name is known when it is read.
        headers = _LOCAL + np.diff(names.ends, prepend=0)
        lengths = np.where(sizes > 0, packed, 0).astype(np.int64)
        return Spans(starts, headers, lengths)

    return Stored(names, read, state_of([path]), lambda: archive_labels(names), spans)


def zip_state(path: Path) -> str:
    return state_of([path])


def scan_zip(path: Path, passed_over: PassedOver, progress: Progress | None = None) -> Content:
    """As scan_archive."""
    stored = _stored(path, _members(path, progress))
    return scan_archive(str(path), stored, passed_over, progress)


def zip_store(path: Path, content: Content) -> ZipImages:
    return ZipImages(path, ImageNames(content))


class ZipImages(DataFile):
    """The images of a .zip by where their local headers begin; a Store (store.py).

    It needs nothing of the directory at the archive's end: a local header says how an image is
    packed, and what its bytes sum up to.
    """

    def __init__(self, path: Path, names: ImageNames) -> None:
        super().__init__(path)
        self._names = names

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        headers, lengths = records["header"].tolist(), records["length"].tolist()
        places = zip(records["offset"].tolist(), headers, lengths)
        return [partial(self._image, *place) for place in places]

    def place(self, record: np.void) -> str:
        return f"{self.path}: {self.name(record)}"

    def name(self, record: np.void) -> str:
        return self._names.of(record)

    def _image(self, offset: int, header: int, length: int) -> bytes:
        # The directory comes after all images, so that there is something to read beyond each.
        content = self.read(offset, header + _USUAL + length)
        how, sum_, size, begin = _local(content)
        if begin + length > len(content):
            content = self.read(offset, begin + length)
        image = content[begin : begin + length]
        if how == zipfile.ZIP_DEFLATED:
            image = _inflated(image, size or MOST_BYTES)
        elif how != zipfile.ZIP_STORED:
            raise RecordError("is damaged: its header in the .zip says another way of packing")
        if size and (len(image) != size or zlib.crc32(image) != sum_):
            raise RecordError("is damaged: it is not what the .zip says of it")
        return image


def _local(content: bytes) -> tuple[int, int, int, int]:
    """Of a local header: the way of packing, sum and size of the image, where that begins.

    The size is 0 where it was not known when the header was written.
    """
    magic, _, flags, how, _, _, sum_, _, size, name, more = _HEADER.unpack_from(content)
    if magic != b"PK\3\4":
        raise RecordError("is damaged: its header in the .zip is none")
    known = not flags & _LATER and size < _IN_64_BITS
    return how, sum_, size if known else 0, _LOCAL + name + more


def _is_wanted(name: str) -> bool:
    return (
        name.lower().endswith(_WANTED)
        and not name.startswith(_HIDDEN)
        and not any(f"/{begin}" in name for begin in _HIDDEN)
    )


def _check(path: Path, members: Members) -> None:
    names, _, packed, sizes, _, how, flags = members
    for place in np.flatnonzero(flags & _ENCRYPTED)[:1].tolist():
        raise ZipError(f"{path} is encrypted ({names[place]}): unpack it first")
    for place in np.flatnonzero(~np.isin(how, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))[:1]:
        raise ZipError(
            f"{path}: {names[place]} is compressed in way {how[place]}, expected stored or "
            "deflated as zip does by default: pack it again"
        )
    most = np.maximum(sizes, packed)
    for place in np.flatnonzero(most > MOST_BYTES)[:1]:
        raise ZipError(
            f"{path}: {names[place]} unpacks to {most[place]:,} bytes, more than an image has "
            f"({MOST_BYTES:,}): nothing was unpacked. Remove it from the .zip"
        )
    twice = names.find_twice()
    if twice is not None:
        raise ZipError(f"{path} has {twice} twice: pack it again with one of them")


def _inflated(content: bytes, size: int) -> bytes:
    """Unpacked, as far as the size that it has; one byte more where there is more."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    except zlib.error as error:
        raise RecordError(f"is damaged: it cannot be unpacked ({error})") from error
