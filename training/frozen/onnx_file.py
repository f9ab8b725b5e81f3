"""What an .onnx file refers to, read without running it: the files beside it that hold weights.

Its protobuf is walked here, tag by tag, so that neither the onnx package nor its loading of other
files is needed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

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


def digest_of_file(path: Path) -> str:
    """Of its bytes and of those of the files that hold its weights. Raises OnnxError."""
    digest = hashlib.blake2b(digest_size=8)
    for file in (path, *external_files(path)):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


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


def _locations(content: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    """Of external data in a message; nothing more of one that is no whole protobuf."""
    wanted = _INSIDE[message]
    entry: dict[int, bytes] = {}
    for number, first, last in _fields(content, start, end):
        if message == "Entry":
            entry[number] = content[first:last]
        elif number in wanted and depth < _DEEPEST:
            yield from _locations(content, first, last, wanted[number], depth + 1)
    if entry.get(1) == b"location":
        yield os.fsdecode(entry.get(2, b""))


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of a message's fields that have a length."""
    at = start
    while at < end:
        tag, at = _varint(content, at, end)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(content, at, end)
            if at + length > end:
                return
            yield tag >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(content, at, end)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < end and shift < 64:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    return 0, end  # cut off: there is nothing after it
