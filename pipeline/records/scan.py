"""What every record of a .rec file is: image, header or identity record, or damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.named_path import PathError, check_path
from pipeline.records.record_file import map_bytes
from pipeline.records.recordio import (
    FIRST,
    IMAGE_HEADER,
    LAST,
    MAGIC,
    MAX_PART,
    MIDDLE,
    PART_HEADER,
    WHOLE,
    RecordError,
    read_record,
    unpack_image,
)

RECORD = np.dtype(
    [
        ("offset", "<i8"),  # bytes: where the record starts in the .rec
        ("length", "<u4"),  # bytes of the encoded image
        ("header", "<u4"),  # bytes before the image; 0: split at the magic word, to be rejoined
        ("label", "<i8"),  # identity
    ]
)
MAX_EXACT_LABEL = 1 << 24  # float32 names every integer below, and not every one from here on

_CHUNK = 64 << 20  # bytes that a thread takes on at once; a multiple of _BLOCK
_BLOCK = 8 << 20  # bytes compared at once: smaller ones make threads wait for one another
# Counted from the magic word: the frame, the image header's four fields, the first label after it.
_HEADER_WORDS = np.array([1, 2, 3, 4, 5, 8])
_REPORTED_SPANS = 20

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Parts(NamedTuple):
    """Parts of a file in file order, as arrays of equal length; the last three fields read the
    payload as an image header and mean nothing where a record's later parts are concerned."""

    offset: np.ndarray  # int64, of the magic word
    flag: np.ndarray  # uint8 continuation flag
    length: np.ndarray  # uint32 bytes of payload
    labels: np.ndarray  # uint32: how many labels follow the header
    label: np.ndarray  # float32: the only or the first one
    key: np.ndarray  # uint64: the header's id

    @property
    def end(self) -> np.ndarray:
        """int64: where the part's padding ends, by its own account."""
        return self.offset + PART_HEADER.size + (self.length.astype(np.int64) + 3 & ~3)


def scan(path: str | Path) -> Iterator[tuple[int, Parts]]:
    """Find every part of a .rec file by looking for the magic word; yields (bytes done, parts).

    Reading at memory speed beats hopping from length to length, and damage cannot lead it astray:
    the next intact part is simply the next magic word. So threads, one a core, may start anywhere;
    what they find is yielded in file order.
    """
    size = os.path.getsize(path)
    begins = range(0, size, _CHUNK)
    for begin, parts in zip(begins, map_ahead(lambda at: _scan_chunk(path, at, size), begins)):
        yield min(begin + _CHUNK, size), parts


def _scan_chunk(path: str | Path, begin: int, size: int) -> Parts:
    """The parts whose magic word is in the _CHUNK bytes from `begin` on."""
    # Blocks are read into the same memory again and again: mapping the file, or taking fresh
    # memory, costs more time than looking through it.
    block = _BLOCK // 4
    words = np.empty(block + _HEADER_WORDS[-1], "<u4")  # a header may reach beyond its block
    raw = words.view(np.uint8)
    equal = np.zeros(-(-block // 8) * 8, bool)
    places, headers = [], []
    with open(path, "rb") as file:  # buffered: reads on where a network disk hands out less
        for at in range(begin, min(begin + _CHUNK, size), _BLOCK):
            file.seek(at)
            read = words[: file.readinto(raw) // 4]
            compared = min(len(read), block)
            np.equal(read[:compared], np.uint32(MAGIC), out=equal[:compared])
            equal[compared:] = False
            # Eight comparisons at a time are all false, nearly always.
            some = np.flatnonzero(equal.view(np.uint64) != 0)
            row, column = np.nonzero(equal.reshape(-1, 8)[some])
            found = some[row] * 8 + column
            found = found[found + 1 < len(read)]  # a magic word that ends the file frames nothing
            places.append(at + found * 4)
            headers.append(read.take(found[:, None] + _HEADER_WORDS, mode="clip"))
    frame, labels, label, key_low, key_high, vector = np.concatenate(headers).T
    return Parts(
        offset=np.concatenate(places),
        flag=(frame >> 29).astype(np.uint8),
        length=frame & MAX_PART,
        labels=labels,
        label=np.where(labels > 0, vector, label).view("<f4"),
        key=key_low | key_high.astype(np.uint64) << np.uint64(32),
    )


@dataclass(frozen=True)
class Summary:
    """What one pass over a .rec file found; sizes in bytes."""

    images: int
    identities: int
    num_classes: int  # largest label + 1
    header_records: int
    identity_records: int
    announced_images: int | None  # by the header record
    smallest: int
    largest: int
    split_records: int
    damaged_spans: int
    damaged_bytes: int
    damaged: tuple[tuple[int, int, str], ...]  # (offset, bytes, why), the first few
    truncated: bool  # the file does not end where a record ends

    def check_damage(self, path: Path, max_bad_fraction: float) -> None:
        """Raise RecordError where more is lost than `max_bad_fraction` of the images.

        What is lost is the most of what the header record misses, the damaged spans, and the
        images that would fill them. A truncated file is refused at any fraction below 1: half a
        download looks whole to a step.
        """
        missing = (self.announced_images or 0) - self.images
        typical = (self.smallest + self.largest) // 2 + PART_HEADER.size + IMAGE_HEADER.size
        lost = max(0, missing, self.damaged_spans, self.damaged_bytes // typical)
        whole = max(1, self.images + lost)
        if max_bad_fraction >= 1 or (not self.truncated and lost / whole <= max_bad_fraction):
            return
        enough = 1 if self.truncated else -(-1000 * lost // whole) / 1000  # rounded up
        where = "; ".join(f"offset {at}: {why}" for at, _, why in self.damaged[:3])
        what = "does not end where a record ends" if self.truncated else "is damaged"
        raise RecordError(
            f"{path} {what}: {self.images} intact images, {lost} lost ({where or 'at its end'}). "
            f"Download or pack it again, or take what is intact with max_bad_fraction={enough:g}"
        )


class Scan(NamedTuple):
    """All records of a file, and its images in the sidecar's form, both in file order."""

    keys: np.ndarray  # (records,) int64, as MXNet's .idx counts them
    offsets: np.ndarray  # (records,) int64
    is_image: np.ndarray  # (records,) bool
    images: np.ndarray  # (images,) RECORD
    summary: Summary


def map_file(path: str | Path) -> np.ndarray:
    """The file as a read-only memory-mapped flat uint8 array; RecordError if missing or empty."""
    path = Path(path)
    try:
        check_path(path, called=str(path), expected="a .rec file")
    except PathError as error:
        raise RecordError(str(error)) from error
    if path.stat().st_size == 0:
        raise RecordError(f"{path} is empty: download or pack it again")
    return map_bytes(path)


def scan_rec(
    path: str | Path, progress: Progress | None = None, *, skip_bad_labels: bool = False
) -> Scan:
    """Classify every record of a .rec file as image, header or identity, and list the damage.

    Raises RecordError when the file is missing, empty or not RecordIO at all, and when a label is
    not an identity that float32 can name exactly; with `skip_bad_labels` that is damage, too.
    """
    path = Path(path)
    buffer = map_file(path)
    chunks: list[Parts] = []
    for done, parts in scan(path):
        chunks.append(parts)
        if progress:
            progress(done, len(buffer))
    parts = Parts(*(np.concatenate(field) for field in zip(*chunks))) if chunks else None
    if parts is None or len(parts.offset) == 0:
        raise RecordError(
            f"{path} is not a RecordIO file: it starts with {bytes(buffer[:4]).hex()} and holds no "
            f"magic word {MAGIC.to_bytes(4, 'little').hex()} at a multiple of four"
        )
    return _classify(path, buffer, parts, skip_bad_labels)


# One row a record while it is being classified.
_ROW = np.dtype(
    [
        ("offset", "i8"),
        ("header", "i8"),  # bytes before the image, 0 for a record that was split
        ("length", "i8"),  # bytes of the image
        ("labels", "i8"),  # how many follow the image header
        ("label", "f4"),
        ("key", "i8"),
    ]
)


def _classify(path: Path, buffer: np.ndarray, parts: Parts, skip_bad_labels: bool) -> Scan:
    end, following = parts.end, np.append(parts.offset[1:], len(buffer))
    overrun = end > following
    damage = _damaged_spans(parts.offset, end, following)
    whole = np.flatnonzero((parts.flag == WHOLE) & ~overrun)
    rows = np.empty(len(whole), _ROW)
    rows["offset"], rows["label"] = parts.offset[whole], parts.label[whole]
    rows["labels"], rows["key"] = parts.labels[whole], parts.key[whole]
    rows["header"] = PART_HEADER.size + IMAGE_HEADER.size + 4 * rows["labels"]
    rows["length"] = parts.length[whole] + PART_HEADER.size - rows["header"]

    rejoined, orphans = _rejoin(buffer, parts, overrun)
    damage += orphans
    if rejoined:
        rows = np.concatenate([rows, np.array(rejoined, _ROW)])
        rows = rows[np.argsort(rows["offset"], kind="stable")]

    bookkeeping = (rows["length"] == 0) & (rows["labels"] > 0)
    intact = (rows["length"] > 0) | bookkeeping
    for offset in rows["offset"][~intact].tolist():
        damage.append((offset, offset + PART_HEADER.size, "a record without an image"))
    rows, bookkeeping = rows[intact], bookkeeping[intact]

    nameless = ~bookkeeping & ~_is_identity(rows["label"])
    if nameless.any() and not skip_bad_labels:
        _refuse_label(path, rows[nameless][0])
    for row in rows[nameless]:
        stop = row["offset"] + (row["header"] or PART_HEADER.size) + row["length"]
        damage.append((int(row["offset"]), int(stop), f"the label {row['label']!s} is no identity"))
    rows, bookkeeping = rows[~nameless], bookkeeping[~nameless]

    # MXNet's readers go by the id; a writer that did not count them meant the record's place.
    keys = rows["key"].copy()
    if not _distinct(keys) or (keys < 0).any():
        keys = np.arange(len(keys))
    is_header = bookkeeping & (rows["offset"] == 0)
    image_rows = rows[~bookkeeping]
    images = np.empty(len(image_rows), RECORD)
    for field in ("offset", "length", "header"):
        images[field] = image_rows[field]
    images["label"] = image_rows["label"]

    num_classes = int(images["label"].max()) + 1 if len(images) else 0
    present = np.zeros(num_classes, bool)
    present[images["label"]] = True
    damage.sort()
    summary = Summary(
        images=len(images),
        identities=int(present.sum()),
        num_classes=num_classes,
        header_records=int(is_header.sum()),
        identity_records=int((bookkeeping & ~is_header).sum()),
        announced_images=_announced_images(rows["label"][is_header]),
        smallest=int(images["length"].min()) if len(images) else 0,
        largest=int(images["length"].max()) if len(images) else 0,
        split_records=int((images["header"] == 0).sum()),
        damaged_spans=len(damage),
        damaged_bytes=sum(stop - at for at, stop, _ in damage),
        damaged=tuple((at, stop - at, why) for at, stop, why in damage[:_REPORTED_SPANS]),
        truncated=bool(end[-1] != len(buffer) or parts.flag[-1] in (FIRST, MIDDLE)),
    )
    return Scan(keys, rows["offset"].copy(), ~bookkeeping, images, summary)


def _damaged_spans(
    start: np.ndarray, end: np.ndarray, following: np.ndarray
) -> list[tuple[int, int, str]]:
    """(begin, end, why) wherever one part does not end where the next one starts."""
    cut = np.flatnonzero(end > following)
    gap = np.flatnonzero(end < following)
    spans = [(b, e, "cut off") for b, e in zip(start[cut].tolist(), following[cut].tolist())]
    stray = "bytes that belong to no record"
    spans += [(b, e, stray) for b, e in zip(end[gap].tolist(), following[gap].tolist())]
    if start[0] > 0:
        spans.append((0, int(start[0]), stray))
    return spans


def _distinct(keys: np.ndarray) -> bool:
    # Writers count, so the keys nearly always rise, and seeing that is cheaper than sorting.
    if (keys[1:] > keys[:-1]).all():
        return True
    ordered = np.sort(keys)
    return bool((ordered[1:] != ordered[:-1]).all())


def _announced_images(header_label: np.ndarray) -> int | None:
    """The header record's first label is the key after the last image's, as a float32."""
    if len(header_label) and 1 <= header_label[0] < MAX_EXACT_LABEL:
        return int(header_label[0]) - 1
    return None


def _rejoin(
    buffer: np.ndarray, parts: Parts, overrun: np.ndarray
) -> tuple[list[tuple], list[tuple[int, int, str]]]:
    """Rows of the records that were split at the magic word, and the parts that lead nowhere."""
    rows: list[tuple] = []
    orphans: list[tuple[int, int, str]] = []
    view, taken = memoryview(buffer), -1
    for first in np.flatnonzero((parts.flag != WHOLE) & ~overrun):
        if first <= taken:
            continue
        taken = int(first)
        while parts.flag[taken] in (FIRST, MIDDLE) and taken + 1 < len(parts.flag):
            if parts.flag[taken + 1] not in (MIDDLE, LAST):
                break
            taken += 1
        begin, end = int(parts.offset[first]), int(parts.end[taken])
        try:
            record = unpack_image(read_record(view, begin)[0])
        except RecordError as error:
            orphans.append((begin, end, str(error)))
            continue
        labels = len(record.labels) if record.vector else 0
        key = record.key - (record.key >> 63 << 64)  # the same bits as int64
        rows.append((begin, 0, len(record.image), labels, record.labels[0], key))
    return rows, orphans


def _is_identity(label: np.ndarray) -> np.ndarray:
    return (label >= 0) & (label < MAX_EXACT_LABEL) & (label == np.floor(label))


def _refuse_label(path: Path, row: np.void) -> None:
    raise RecordError(
        f"{path}: the record at offset {row['offset']} has the label {row['label']!s}; an identity "
        f"is a whole number from 0 to {MAX_EXACT_LABEL - 1}, for float32 cannot tell larger ones "
        "apart. Pack the set again with identities counted from 0, or leave out such records with "
        f"`python tools/rec2idx.py {path} --repair FOLDER`"
    )
