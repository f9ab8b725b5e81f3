"""Images in an LMDB, in the forms that sets of faces come in.

A value is an encoded image, or msgpack of a list that begins with one, as HSFace and VFace have it:
`[image, label]`, or `[image, feature, label]`; its first whole number is the label. Where none has
one, keys that are paths say it as those in a .zip do. Keys that begin with two underscores
(`__len__`, `__keys__`, `__classnum__`) are none of images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.containers.archive import scan_archive
from pipeline.containers.content import Content, ImageNames
from pipeline.containers.stored import (
    NO_LABEL,
    Labels,
    OpenFiles,
    Spans,
    Stored,
    archive_labels,
    state_of,
)
from pipeline.lmdb_file import LmdbError, LmdbValues, find_lmdb, index_lmdb
from pipeline.name_order import order_of
from pipeline.passed_over import PassedOver
from pipeline.photos import MOST_BYTES
from pipeline.records.image_kind import image_kind
from pipeline.records.record_file import DataFile
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

_WOULD_LABEL = "Values that are msgpack of [image, label], or keys such as PERSON/1.jpg, would"
_LOOKED_AT = 8  # values, for their form
_SHORT = 16  # bytes: more than what stands before a value in msgpack
_PROGRESS_EVERY = 1000  # values
_DEEPEST = 4  # lists in lists

At = Callable[[int, int], bytes]  # offset in a value and length to these bytes, fewer at its end


def stored_lmdb(path: Path) -> Stored:
    """The images of an LMDB by their keys: in the order of these, as numbers where all are such.

    Raises:
        LmdbError: a file that cannot be read, values of which none looked at has an image.
    """
    found = _images(path)
    names = list(found.keys)
    key_of = order_of(names)
    order = sorted(range(len(names)), key=lambda place: key_of(names[place]))
    return _stored(found.take(np.array(order, np.int64)))


def _images(path: Path) -> LmdbValues:
    """In the order of the keys' bytes."""
    found = index_lmdb(path)
    kept = np.fromiter((not key.startswith("__") for key in found.keys), bool, len(found.keys))
    return found.take(np.flatnonzero(kept))


def _stored(images: LmdbValues) -> Stored:
    path, names, offsets, lengths = images.path, images.keys, images.offsets, images.lengths
    content_at = OpenFiles([path])

    def at(place: int) -> At:
        first, length = int(offsets[place]), int(lengths[place])

        def read(offset: int, count: int) -> bytes:
            return content_at(0, first + offset, max(0, min(count, length - offset)))

        return read

    def read(place: int) -> bytes:
        offset, length, _ = _parts(at(place), int(lengths[place]))
        return at(place)(offset, length)

    looked_at: list[tuple[Spans, np.ndarray]] = []

    def look(progress: Progress | None = None) -> tuple[Spans, np.ndarray]:
        """Where the images lie, and their labels: one look at every value says both."""
        if not looked_at:
            header, length, label = np.zeros((3, len(names)), np.int64)
            label[:] = NO_LABEL
            for place in range(len(names)):
                try:
                    parts = _parts(at(place), int(lengths[place]))
                    header[place], length[place], label[place] = parts
                except (RecordError, OverflowError):  # it is counted as damaged
                    length[place] = 0
                if progress and place % _PROGRESS_EVERY == 0:
                    progress(place, len(names))
            looked_at.append((Spans(offsets, header, length), label))
        return looked_at[0]

    def labels() -> Labels | None:
        numbers = look()[1]
        return Labels(numbers) if (numbers != NO_LABEL).any() else archive_labels(names)

    _check_form(path, [at(place) for place in _from_here_and_there(len(names))])
    return Stored(
        names,
        read,
        state_of([path]),
        labels,
        lambda found: look(found)[0],
        _WOULD_LABEL,
    )


def lmdb_state(path: Path) -> str:
    return state_of([_file_of(path)])


def scan_lmdb(path: Path, passed_over: PassedOver, progress: Progress | None = None) -> Content:
    """As scan_archive."""
    return scan_archive(str(path), _stored(_images(_file_of(path))), passed_over, progress)


def lmdb_store(path: Path, content: Content) -> LmdbImages:
    return LmdbImages(_file_of(path), ImageNames(content))


class LmdbImages(DataFile):
    """The images in the values, which lie in the file as they are; they are named by their keys."""

    def __init__(self, path: Path, names: ImageNames) -> None:
        super().__init__(path)
        self._names = names

    def place(self, record: np.void) -> str:
        return f"{self.path}: {self.name(record)}"

    def name(self, record: np.void) -> str:
        return self._names.of(record)


def _file_of(path: Path) -> Path:
    file = find_lmdb(path)
    assert file is not None, "an LMDB by its name"
    return file


def _from_here_and_there(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(int)).tolist() if count else []


def _check_form(path: Path, values: list[At]) -> None:
    starts = [value(0, _SHORT) for value in values]
    if not starts or any(_is_list(start) or _is_image(start) for start in starts):
        return
    if any(start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") for start in starts):
        raise LmdbError(
            f"{path} has pickles, which could run anything when they are read: nothing was run. "
            "Write it again with encoded images, or msgpack of [image, label]"
        )
    raise LmdbError(
        f"{path} has values that are no images, such as {starts[0]!r}: expected encoded images "
        "(JPEG, PNG), or msgpack of [image, label]"
    )


def _is_image(start: bytes) -> bool:
    return start[:2] == b"\xff\xd8" or image_kind(start) != "unknown"


def _is_list(start: bytes) -> bool:
    return bool(start) and (0x91 <= start[0] <= 0x9F or start[0] == 0xDC)


def _parts(value: At, length: int) -> tuple[int, int, int]:
    """(offset, length) of the image, and the label.

    Raises RecordError for a list that is damaged or has no image.
    """
    start = value(0, _SHORT)
    if not _is_list(start):
        return 0, length, NO_LABEL
    count, offset = (start[0] & 15, 1) if start[0] != 0xDC else (_number(start[1:3]), 3)
    image, label = None, NO_LABEL
    for _ in range(count):
        begin, end, number = _element(value, offset)
        if end > length:
            raise RecordError("is damaged: its value ends inside the image or its label")
        if image is None and begin < end:
            image = (begin, end - begin)
        elif number is not None and label == NO_LABEL:
            label = number
        offset = end
    if image is None:
        raise RecordError("has no image: its value is a list of other things")
    return *image, label


def _element(value: At, offset: int, depth: int = 0) -> tuple[int, int, int | None]:
    """Where the bytes of an element begin and end in msgpack, and the whole number that it is.

    What has no bytes of its own, a number or a list, begins where it ends.
    """
    head = value(offset, 9)
    if not head or depth > _DEEPEST:
        raise RecordError("is damaged: its value is no whole msgpack")
    kind, after = head[0], offset + 1
    if kind < 0x80 or kind >= 0xE0:  # a small number
        return after, after, kind if kind < 0x80 else kind - 256
    if kind in _BYTES:
        width = _BYTES[kind]
        begin = after + width
        return begin, begin + _number(head[1 : 1 + width]), None
    if 0xA0 <= kind <= 0xBF:
        return after, after + (kind & 31), None
    if kind in _NUMBERS:
        width, signed = _NUMBERS[kind]
        number = int.from_bytes(head[1 : 1 + width], "big", signed=signed)
        return after + width, after + width, number
    if kind in _SKIPPED:
        return after + _SKIPPED[kind], after + _SKIPPED[kind], None
    if 0x90 <= kind <= 0x9F or kind == 0xDC:
        count, end = (kind & 15, after) if kind != 0xDC else (_number(head[1:3]), after + 2)
        for _ in range(count):
            end = _element(value, end, depth + 1)[1]
        return end, end, None
    raise RecordError(f"is damaged: its value has what no image comes with (0x{kind:02X})")


def _number(big_endian: bytes) -> int:
    return min(int.from_bytes(big_endian, "big"), MOST_BYTES + 1)


_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # kind to bytes of the length
_NUMBERS = {
    **{0xCC + power: (1 << power, False) for power in range(4)},
    **{0xD0 + power: (1 << power, True) for power in range(4)},
}
_SKIPPED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}  # nothing, truth values, broken numbers
