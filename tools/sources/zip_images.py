"""Images in a .zip, read where they lie: nothing is unpacked onto a disk."""

from __future__ import annotations

import struct
import zipfile
import zlib
from array import array
from pathlib import Path

from facestream import UserError
from pipeline.named_path import MALFORMED
from pipeline.photos import CONVERTED, MOST_BYTES, SUFFIXES
from pipeline.records.recordio import RecordError
from tools.sources.stored import OpenFiles, Stored, archive_labels, state_of

_LOCAL = 30  # bytes of the header before a member, without its name and what follows
_ENCRYPTED = 1
_OF_ZIPFILE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError)


class ZipError(UserError):
    """A .zip that cannot be used: says which, why, and how to mend it."""


def stored_zip(path: Path) -> Stored:
    """The images of a .zip by their paths in it, in order; the first folder says who it is.

    A folder that all people are in, as where one folder was packed, is nobody's name.

    Raises:
        ZipError: another kind of file, one that is cut off, encrypted, compressed in another way
            than by deflating, or with an image that unpacks to more than any has.
    """
    wanted = (*SUFFIXES, *CONVERTED)
    try:
        with zipfile.ZipFile(path) as opened:
            members = sorted(
                (
                    member
                    for member in opened.infolist()
                    if not member.is_dir()
                    and member.filename.lower().endswith(wanted)
                    and not any(part.startswith((".", "__MACOSX")) for part in _parts(member))
                ),
                key=lambda member: member.filename,
            )
    except (*MALFORMED, *_OF_ZIPFILE) as error:
        raise ZipError(f"{path} cannot be read as a .zip ({error}): download it again") from error
    names = [member.filename for member in members]
    starts, packed, sizes, sums = (array("q") for _ in range(4))
    deflated = bytearray()
    for place, member in enumerate(members):
        _check(path, member)
        if place and names[place - 1] == member.filename:
            raise ZipError(f"{path} has {member.filename} twice: pack it again with one of them")
        starts.append(member.header_offset)
        packed.append(member.compress_size)
        sizes.append(member.file_size)
        sums.append(member.CRC)
        deflated.append(member.compress_type == zipfile.ZIP_DEFLATED)
    content_at = OpenFiles([path])

    def read(place: int) -> bytes:
        header = content_at(0, starts[place], _LOCAL)
        if header[:4] != b"PK\3\4":
            raise RecordError("is damaged: its header in the .zip is none")
        skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        content = content_at(0, starts[place] + _LOCAL + skipped, packed[place])
        if deflated[place]:
            content = _inflated(content, sizes[place])
        if len(content) != sizes[place] or zlib.crc32(content) != sums[place]:
            raise RecordError("is damaged: it is not what the .zip says of it")
        return content

    return Stored(names, read, state_of([path]), lambda: archive_labels(names))


def _parts(member: zipfile.ZipInfo) -> list[str]:
    return member.filename.split("/")


def _check(path: Path, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise ZipError(f"{path} is encrypted ({member.filename}): unpack it first")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ZipError(
            f"{path}: {member.filename} is compressed in way {member.compress_type}, expected "
            "stored or deflated as zip does by default: pack it again"
        )
    if max(member.file_size, member.compress_size) > MOST_BYTES:
        raise ZipError(
            f"{path}: {member.filename} unpacks to {member.file_size:,} bytes, more than an image "
            f"has ({MOST_BYTES:,}): nothing was unpacked. Remove it from the .zip"
        )


def _inflated(content: bytes, size: int) -> bytes:
    """Unpacked, as far as the size that it has; one byte more where there is more."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    except zlib.error as error:
        raise RecordError(f"is damaged: it cannot be unpacked ({error})") from error
