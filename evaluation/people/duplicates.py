"""One photograph filed under two people.

Equal bytes are found in one pass over the file. Near copies are looked for where embeddings point:
among the images of the identity that an image is nearest to besides its own. Two such images are
compared as pictures, so that no two photographs of twins are taken for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evaluation.leaks.registration import SAME_PHOTOGRAPH, likeness
from evaluation.leaks.thumbnails import ThumbnailError, thumbnail
from evaluation.people.centers import Nearest
from evaluation.protocols.protocol import unit_rows
from pipeline.ahead import map_ahead
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError

_ALIKE = 0.7  # cosine: a model has copies of a photograph nearer than that
_BLOCK = 1024  # images a thread reads at once


class Duplicate(NamedTuple):
    """Two images of one photograph under two labels; `first` comes first in the file."""

    first: int
    second: int
    likeness: float  # 1 where the bytes are equal


def find_duplicates(
    index: RecordIndex,
    rows: np.ndarray,
    labels: np.ndarray,
    others: Nearest,
    *,
    threads: int | None = None,
) -> list[Duplicate]:
    """Find photographs that several people have.

    Args:
        index: of the training set.
        rows: (N, D) embeddings of its images.
        labels: (N,) int64, whose they are.
        others: for each image the nearest three identities besides its own.
        threads: that read; by default as many as cores.
    """
    found = {(one.first, one.second): one for one in _near(index, rows, labels, others)}
    equal = [Duplicate(*pair, 1.0) for pair in _equal(_digests(index, threads), labels)]
    found |= {(one.first, one.second): one for one in equal}
    return [found[pair] for pair in sorted(found)]


def _digests(index: RecordIndex, threads: int | None) -> np.ndarray:
    """(N, 2) uint64; zeros for an image that cannot be read."""

    def digests(begin: int) -> np.ndarray:
        count = min(_BLOCK, len(index) - begin)
        found = np.zeros((count, 2), np.uint64)
        for row, source in enumerate(index.sources(np.arange(begin, begin + count))):
            try:
                digest = hashlib.blake2b(source(), digest_size=16).digest()
            except RecordError:
                continue
            found[row] = np.frombuffer(digest, np.uint64)
        return found

    return np.concatenate([*map_ahead(digests, range(0, len(index), _BLOCK), workers=threads)])


def _equal(digests: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Images of equal bytes and different labels: each with the first one that has the bytes."""
    order = np.lexsort((np.arange(len(digests)), digests[:, 0], digests[:, 1]))
    first = np.r_[True, (digests[order[1:]] != digests[order[:-1]]).any(axis=1)]
    begins = np.flatnonzero(first)
    lengths = np.diff(np.r_[begins, len(order)])
    for begin, length in zip(begins[lengths > 1].tolist(), lengths[lengths > 1].tolist()):
        one, *copies = order[begin : begin + length].tolist()
        if digests[one].any():
            yield from ((one, copy) for copy in copies if labels[copy] != labels[one])


def _near(
    index: RecordIndex, rows: np.ndarray, labels: np.ndarray, others: Nearest
) -> Iterator[Duplicate]:
    of_label = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[of_label], np.arange(labels.max(initial=0) + 2))
    asked = np.argsort(others.which[:, 0], kind="stable")
    near = others.which[asked, 0]
    begins = np.flatnonzero(np.r_[True, near[1:] != near[:-1]])
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(asked)]):
        label = int(near[begin])
        theirs = of_label[starts[label] : starts[label + 1]]
        if not len(theirs):
            continue
        ours = asked[begin:end]
        cosines = unit_rows(np.asarray(rows[ours])) @ unit_rows(np.asarray(rows[theirs])).T
        best = cosines.argmax(1)
        for row in np.flatnonzero(cosines.max(1) >= _ALIKE).tolist():
            pair = sorted((int(ours[row]), int(theirs[best[row]])))
            alike = _likeness(index, *pair)
            if alike >= SAME_PHOTOGRAPH:
                yield Duplicate(pair[0], pair[1], alike)


def _likeness(index: RecordIndex, first: int, second: int) -> float:
    try:
        one, other = (thumbnail(bytes(index.image(i))) for i in (first, second))
    except (RecordError, ThumbnailError):
        return 0.0
    return likeness(one, other)
