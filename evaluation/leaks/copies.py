"""Which training images are copies of test images: the same bytes, or near copies by eye.

The training set streams by once, read and reduced to sketches on threads, and is never held. The
test sets are: a few kilobytes an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits  # scikit-learn brings it

from evaluation.images import Images
from evaluation.leaks.registration import SAME_PHOTOGRAPH, likeness
from evaluation.leaks.sketches import WORTH_A_LOOK, Sketcher
from evaluation.leaks.thumbnails import SIDE, ThumbnailError, thumbnail, thumbnails
from pipeline.ahead import cores, map_ahead
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError

Kind = Literal["same image", "near copy"]

_BLOCK = 512  # images a thread takes on at once
_TILE = 1024  # sketches compared with a block at once: the cosines stay in the processor's cache
_LEARNED_FROM = 2000  # images of each side at most


@dataclass(frozen=True)
class Copy:
    """A training image that is a copy of a test image.

    Attributes:
        record: its number in the index.
        set: the name of the test set.
        place: of the test image in that.
        kind: "same image" where the bytes are equal, "near copy" where the pictures are.
        likeness: correlation of their details, at most 1.
    """

    record: int
    set: str
    place: int
    kind: Kind
    likeness: float


@dataclass(frozen=True)
class Copies:
    """What `find_copies` found.

    Attributes:
        found: by record, then by set and place.
        damaged: what is wrong with which training images, by record.
        damaged_tests: the same of test images, by set and place.
    """

    found: list[Copy] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    damaged_tests: dict[tuple[str, int], str] = field(default_factory=dict)


def find_copies(
    index: RecordIndex,
    sets: Mapping[str, Images],
    *,
    threads: int | None = None,
    progress: str = "",
) -> Copies:
    """Look for copies of test images among all images of a .rec.

    Found are re-encodings, crops by some 4 of 112 pixels, mirror images, pictures scaled or turned
    by as little, in other colors or light, and what combines these.

    Args:
        sets: test sets by name.
        threads: that read and decode; by default as many as cores.
        progress: a name for a progress bar on stderr; none without a name.
    """
    copies = Copies()
    tests = _Tests(sets, copies, threads or cores())
    if not len(tests.pictures):
        return copies
    blocks = [range(at, min(at + _BLOCK, len(index))) for at in range(0, len(index), _BLOCK)]
    sketcher = Sketcher.learned_from(np.concatenate([_sample(index), tests.sample()]))
    bank = sketcher.variants(tests.pictures)

    def look(records: range) -> tuple[list[Copy], dict[int, str]]:
        block = _read(index, records)
        found = [
            Copy(record, name, place, "same image", 1.0)
            for record, digest in zip(block.records, block.digests)
            for name, place in tests.of_digest.get(digest, ())
        ]
        for row, picture in _alike(sketcher(block.pictures), bank):
            alike = likeness(tests.pictures[picture], block.pictures[row])
            if alike >= SAME_PHOTOGRAPH:
                same = tests.of_digest.get(block.digests[row], ())
                found += [
                    Copy(block.records[row], name, place, "near copy", alike)
                    for name, place in tests.of_picture[picture]
                    if (name, place) not in same
                ]
        return found, block.damaged

    # Each of our threads multiplies by itself: the library's own would wait for one another.
    with (
        threadpool_limits(1, user_api="blas"),
        closing(map_ahead(look, blocks, workers=threads)) as stream,
    ):
        for found, damaged in track(
            stream,
            progress,
            total=len(blocks),
            console=Console(stderr=True),
            transient=True,
            disable=not progress,
        ):
            copies.found.extend(found)
            copies.damaged.update(damaged)
    copies.found.sort(key=lambda copy: (copy.record, copy.set, copy.place))
    return copies


class _Block(NamedTuple):
    """Training images read: those that cannot be decoded are in `damaged` alone."""

    records: list[int]
    digests: list[bytes]
    pictures: np.ndarray  # (b, SIDE, SIDE) uint8
    damaged: dict[int, str]


class _Tests:
    """The images of all test sets.

    Attributes:
        pictures: (U, SIDE, SIDE) uint8, all that differ.
        of_picture: (set, place) of the images that each of them is.
        of_digest: those of the images by the digest of their bytes.
    """

    def __init__(self, sets: Mapping[str, Images], copies: Copies, threads: int) -> None:
        self.of_digest: dict[bytes, list[tuple[str, int]]] = {}
        self.of_picture: list[list[tuple[str, int]]] = []
        numbers: dict[bytes, int] = {}
        pictures = []
        for name, images in sets.items():
            for places, shown, digests, faults in _load(images, threads):
                for row, place in enumerate(places):
                    if row in faults:
                        copies.damaged_tests[name, place] = faults[row]
                        continue
                    self.of_digest.setdefault(digests[row], []).append((name, place))
                    number = numbers.setdefault(shown[row].tobytes(), len(pictures))
                    if number == len(pictures):
                        pictures.append(shown[row])
                        self.of_picture.append([])
                    self.of_picture[number].append((name, place))
        self.pictures = np.stack(pictures) if pictures else np.empty((0, SIDE, SIDE), np.uint8)

    def sample(self) -> np.ndarray:
        return self.pictures[_evenly(len(self.pictures))]


def _load(
    images: Images, threads: int
) -> Iterator[tuple[range, np.ndarray, list[bytes], dict[int, str]]]:
    """Places, their pictures and digests, and what is wrong with which of them."""

    def load(places: range) -> tuple[range, np.ndarray, list[bytes], dict[int, str]]:
        pixels, faults = images.load(places)
        digests = [b""] * len(places)
        for row, place in enumerate(places):
            try:
                digests[row] = _digest(images.read(place))
            except RecordError as error:
                faults[row] = str(error)
        return places, thumbnails(pixels), digests, faults

    places = range(len(images))
    return map_ahead(
        load, [places[at : at + _BLOCK] for at in range(0, len(images), _BLOCK)], workers=threads
    )


def _sample(index: RecordIndex) -> np.ndarray:
    """(n, SIDE, SIDE) of training images from all over the file."""
    return _read(index, _evenly(len(index)).tolist()).pictures


def _evenly(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _LEARNED_FROM)).astype(np.int64))


def _read(index: RecordIndex, records: range | list[int]) -> _Block:
    kept: list[int] = []
    digests, pictures, damaged = [], [], {}
    for record, source in zip(records, index.sources(np.array(records, np.int64))):
        try:
            encoded = source()
            pictures.append(thumbnail(encoded))
        except (RecordError, ThumbnailError) as error:
            damaged[record] = str(error)
        else:
            kept.append(record)
            digests.append(_digest(encoded))
    stacked = np.stack(pictures) if pictures else np.empty((0, SIDE, SIDE), np.uint8)
    return _Block(kept, digests, stacked, damaged)


def _digest(encoded: bytes) -> bytes:
    return hashlib.blake2b(encoded, digest_size=16).digest()


def _alike(sketches: np.ndarray, bank: np.ndarray) -> list[tuple[int, int]]:
    """Rows of (b, D) sketches and pictures of a (V, U, D) bank that are worth a look."""
    variants, pictures, dims = bank.shape
    flat = bank.reshape(variants * pictures, dims)
    pairs: set[tuple[int, int]] = set()
    for at in range(0, len(flat), _TILE):
        cosines = sketches @ flat[at : at + _TILE].T
        near = np.flatnonzero(cosines.max(1) >= WORTH_A_LOOK)  # a few: to look for places is slow
        rows, columns = np.nonzero(cosines[near] >= WORTH_A_LOOK)
        pairs.update(zip(near[rows].tolist(), ((at + columns) % pictures).tolist()))
    return sorted(pairs)
