"""The files in a tar and where their content lies.

Python's tarfile takes three times as long, minutes for the samples of a set of millions, and takes
damage after the first member for the end. Read here are the forms that it writes itself: ustar,
GNU's long names, and pax.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.records.recordio import RecordError

_BLOCK = 512
_READ = 2 * _BLOCK  # bytes: a header and what a short file has
_LONGEST = 1 << 20  # bytes of what is said of one member: far more than any name has
_LONGEST_END = 1 << 20  # bytes of zeros: more of them are a hole that a download has left
_DIGITS = 9  # of a length in it, at most
_FILES = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and pipes
_MODULUS = 65521  # of adler32


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        name: its path.
        offset, size: bytes, of its content in the tar.
        begin: what is known of its content, from the first byte on; all of a short one.
    """

    name: str
    offset: int
    size: int
    begin: bytes


def files_in_tar(path: Path) -> Iterator[Member]:
    """Each file of a tar that is not compressed; links, folders and the like are passed over.

    Raises:
        RecordError: for another kind of file, one that is damaged, cut off or sparse.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    try:
        yield from _files(path, file, os.fstat(file).st_size)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    finally:
        os.close(file)


def _files(path: Path, file: int, length: int) -> Iterator[Member]:
    at, said = 0, dict[str, str]()  # of the next member
    while True:
        content = os.pread(file, _READ, at)
        header = content[:_BLOCK]
        if (at or header) and not header.strip(b"\0"):  # the end; some leave out its blocks
            if said or length < at:
                raise _unreadable(path, "it is cut off")
            rest = os.pread(file, _LONGEST_END + 1, at)
            if len(rest) > _LONGEST_END or rest.strip(b"\0"):
                raise _unreadable(path, f"{length - at:,} bytes are left where it seems to end")
            return
        kind, size = _check(path, header)
        offset = at + _BLOCK
        if kind in (b"x", b"L", b"K", b"g"):
            text = os.pread(file, min(size, _LONGEST), offset)
            if len(text) < size:
                raise _unreadable(path, "it is cut off, or a name in it is too long")
            said |= _said(path, kind, text)
        else:
            name = said.get("path") or _name(header)
            if said:
                size, said = _size(path, said, size), {}
            if kind in _WITHOUT_CONTENT:
                size = 0
            if offset + size > length:
                raise _unreadable(path, f"it ends inside {name}")
            if kind in _FILES and not name.endswith("/"):
                yield Member(name, offset, size, content[_BLOCK : _BLOCK + size])
        at = offset + -(-size // _BLOCK) * _BLOCK


def _check(path: Path, header: bytes) -> tuple[bytes, int]:
    """The kind of a member, and the bytes that follow its header."""
    kind = header[156:157]
    if len(header) < _BLOCK:
        raise _unreadable(path, "it ends inside a header")
    try:
        sum_ = int(header[148:156].strip(b"\0 "), 8)
        size = _number(header[124:136])
    except ValueError:
        sum_, size = 0, -1
    # adler32's lower half adds up bytes, from 1 on; the sum itself counts as blanks.
    added = zlib.adler32(header[:148] + b" " * 8 + header[156:]) & 0xFFFF
    if size < 0 or added != (sum_ + 1) % _MODULUS:
        raise _unreadable(path, "a header in it is damaged")
    if kind == b"S":
        raise _sparse(path)
    return kind, size


def _number(field: bytes) -> int:
    """Octal digits, or a number of 256s for what they have no room for."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    return int(field.strip(b"\0 ") or b"0", 8)


def _name(header: bytes) -> str:
    name, folder = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return _text(folder + b"/" + name if folder else name)


def _said(path: Path, kind: bytes, text: bytes) -> dict[str, str]:
    """What is said of the next member beside its header."""
    if kind == b"L":
        return {"path": _text(text.split(b"\0")[0])}
    found: dict[str, str] = {}
    text, at = text.rstrip(b"\0"), 0
    while kind == b"x" and at < len(text):
        length, _, _ = text[at : at + _DIGITS + 1].partition(b" ")
        end = at + int(length) if length.isdigit() and len(length) <= _DIGITS else 0
        if not at + len(length) + 2 < end <= len(text):
            raise _unreadable(path, "what it says of a member is damaged")
        field, _, value = text[at + len(length) + 1 : end - 1].partition(b"=")
        if field.startswith(b"GNU.sparse"):
            raise _sparse(path)
        if field in (b"path", b"size"):
            found[field.decode()] = _text(value)
        at = end
    return found


def _size(path: Path, said: dict[str, str], size: int) -> int:
    stated = said.get("size", str(size))
    if not stated.isdecimal() or len(stated) > 18:
        raise _unreadable(path, "the size of a member is damaged")
    return int(stated)


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _sparse(path: Path) -> RecordError:
    return RecordError(
        f"{path} has sparse files, of which parts are left out, expected whole ones: write it "
        "again, with tar without --sparse"
    )


def _unreadable(path: Path, why: str) -> RecordError:
    return RecordError(
        f"{path} cannot be read as a tar file: {why}. Download it again, or unpack it: gunzip"
    )
