"""An .onnx file without running it: the files that hold its weights, its metadata, its digest.

Its protobuf is walked here, tag by tag, so that neither the onnx package nor its loading of other
files is needed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from facestream import UserError


class OnnxError(UserError):
    """An ONNX file that cannot be run here: says why and how to mend it."""


# Which fields of which messages lead to tensors, by the names of onnx.proto.
_INSIDE = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        **{5: "Tensor", 6: "Graph", 10: "Tensor"},
        **{11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_DEEPEST = 100  # graphs within graphs


_GRAPH, _METADATA = 7, 14  # fields of a Model; of the latter, each is an entry of text


class _Field(NamedTuple):
    """A field of a message that has a length: where it begins, and where what it holds does."""

    number: int
    begin: int
    start: int
    end: int


def digest_of_file(path: Path) -> str:
    """Of its bytes and of those of the files that hold its weights; its metadata does not count.

    Raises OnnxError.
    """
    digest = hashlib.blake2b(digest_size=8)
    content = path.read_bytes()
    for part in _without(content, _metadata_fields(content)):
        digest.update(part)
    for file in external_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def metadata_in(content: bytes) -> dict[str, str]:
    """What the author of an .onnx file wrote beside its graph, text by text."""
    found = {}
    for field in _metadata_fields(content):
        entry = {
            one.number: content[one.start : one.end]
            for one in _fields(content, field.start, field.end)
        }
        key, value = (entry.get(number, b"").decode(errors="replace") for number in (1, 2))
        found[key] = value
    return found


def with_metadata(content: bytes, key: str, text: str) -> bytes:
    """An .onnx file's bytes, with this text in place of what its metadata has under this key.

    Raises OnnxError where there is no whole graph in them.
    """
    if all(field.number != _GRAPH for field in _fields(content, 0, len(content))):
        raise OnnxError("it holds no whole graph: copy or export it again")
    named = key.encode()
    old = [
        field
        for field in _metadata_fields(content)
        if any(
            one.number == 1 and content[one.start : one.end] == named
            for one in _fields(content, field.start, field.end)
        )
    ]
    entry = _encoded(1, named) + _encoded(2, text.encode())
    # Repeated fields may stand anywhere in a message, so also at its end.
    return b"".join(_without(content, old)) + _encoded(_METADATA, entry)


def external_files(path: Path) -> list[Path]:
    """The files that hold weights of this one, each once, in the order of their names.

    Raises:
        OnnxError: one that is not inside the folder of `path`, or is missing: a file from elsewhere
            must not read what else there is on the disk.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            locations = sorted(set(_locations(content, 0, len(content), "Model", 0)))
    folder = path.parent.resolve()
    found = []
    for location in locations:
        # A link may lead out as well as a path can.
        target = Path(os.path.realpath(folder / location))
        if os.path.isabs(location) or folder not in target.parents:
            raise OnnxError(
                f"{path} takes weights from {location!r}, outside its own folder: nothing was read "
                "from there. Get the file from its source again, or export it with its weights"
            )
        if not target.is_file():
            raise OnnxError(
                f"{path} has weights in {location}, which is not beside it: copy both files"
            )
        found.append(target)
    return found


def _metadata_fields(content: bytes) -> list[_Field]:
    return [field for field in _fields(content, 0, len(content)) if field.number == _METADATA]


def _without(content: bytes, fields: list[_Field]) -> Iterator[bytes]:
    """What is between those fields, in order."""
    at = 0
    for field in fields:
        yield content[at : field.begin]
        at = field.end
    yield content[at:]


def _encoded(number: int, value: bytes) -> bytes:
    """A field with a length, as protobuf writes it."""
    return _as_varint(number << 3 | 2) + _as_varint(len(value)) + value


def _as_varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _locations(content: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    """Of external data in a message; nothing more of one that is no whole protobuf."""
    wanted = _INSIDE[message]
    entry: dict[int, bytes] = {}
    for number, _, first, last in _fields(content, start, end):
        if message == "Entry":
            entry[number] = content[first:last]
        elif number in wanted and depth < _DEEPEST:
            yield from _locations(content, first, last, wanted[number], depth + 1)
    if entry.get(1) == b"location":
        yield os.fsdecode(entry.get(2, b""))


def _fields(content: mmap.mmap | bytes, start: int, end: int) -> Iterator[_Field]:
    """A message's fields that have a length, in order."""
    at = start
    while at < end:
        begin = at
        tag, at = _varint(content, at, end)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(content, at, end)
            if at + length > end:
                return
            yield _Field(tag >> 3, begin, at, at + length)
            at += length
        elif kind == 0:
            _, at = _varint(content, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return


def _varint(content: mmap.mmap | bytes, at: int, end: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < end and shift < 64:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    return 0, end  # cut off: there is nothing after it
