"""Several data sets as one: their labels side by side or shared, some records left out.

A record's number counts the records that are kept, file after file. Nothing is rewritten: what is
held in memory beside the files' own memory-mapped indexes is one number for each record where
records are left out, and one for each label where labels are mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.containers.set_index import damaged_index
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError


class Collection:
    """Records of one or more indexes with labels of their own; the face of a RecordIndex.

    Args:
        indexes: at least one.
        labels: for each, (labels,) int64 from a file's label to the collection's, -1 for one that
            no kept record has, if at all; see `stack_labels`, `dense_labels` and identity_map.py.
        kept: for each, (n,) int64 rising record numbers, or None for all; see record_filter.py.
    """

    def __init__(
        self,
        indexes: Sequence[RecordIndex],
        labels: Sequence[np.ndarray],
        kept: Sequence[np.ndarray | None],
    ) -> None:
        assert len(indexes) == len(labels) == len(kept) > 0
        self.indexes, self._labels, self._kept = tuple(indexes), tuple(labels), tuple(kept)
        self.counts = tuple(
            len(index) if chosen is None else len(chosen) for index, chosen in zip(indexes, kept)
        )
        self._starts = np.cumsum([0, *self.counts])
        self.num_classes = 1 + max(int(mapped.max(initial=-1)) for mapped in labels)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def count_identities(self) -> int:
        """How many of the classes have an image."""
        seen = _seen(self.indexes, self._labels, self._kept)
        return int(seen.sum())

    @property
    def label_maps(self) -> tuple[np.ndarray, ...]:
        """For each file, (labels,) int64: from its labels to the collection's."""
        return self._labels

    def locate(self, i: int) -> tuple[RecordIndex, int]:
        """The file of a record and its number there."""
        at = int(np.searchsorted(self._starts, i, side="right")) - 1
        record, chosen = i - int(self._starts[at]), self._kept[at]
        return self.indexes[at], record if chosen is None else int(chosen[record])

    def labels(self, i: np.ndarray) -> np.ndarray:
        """(N,) record numbers to (N,) int64 labels of the collection."""
        found = np.empty(len(i), np.int64)
        for which, places, record in self._by_file(i):
            found[places] = self._labels[which][self.indexes[which].records["label"][record]]
        return found

    def sources(self, i: np.ndarray) -> list[Callable[[], bytes]]:
        """For each of (N,) record numbers, what reads its encoded image."""
        found: list[Callable[[], bytes]] = [bytes] * len(i)
        for which, places, record in self._by_file(i):
            for place, source in zip(places.tolist(), self.indexes[which].sources(record)):
                found[place] = source
        return found

    def spans(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) record numbers to (N,) int64 files, offsets and lengths of their images there."""
        found = np.empty((3, len(i)), np.int64)
        for which, places, record in self._by_file(i):
            found[0, places] = which
            found[1:, places] = self.indexes[which].spans(record)
        return found[0], found[1], found[2]

    def _by_file(self, i: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(N,) record numbers as (file, places among the N, record numbers in the file)."""
        i = np.asarray(i, np.int64)
        at = np.searchsorted(self._starts, i, side="right") - 1
        for which in np.unique(at).tolist():
            places = np.flatnonzero(at == which)
            record, chosen = i[places] - self._starts[which], self._kept[which]
            yield which, places, record if chosen is None else chosen[record]

    def kept_values(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Of each file's (n, …) values, one for each of its images, those of this set's records."""
        kept = [
            rows if chosen is None else rows[chosen] for rows, chosen in zip(values, self._kept)
        ]
        return kept[0] if len(kept) == 1 else np.concatenate(kept)

    def digest(self) -> str:
        """What tells apart collections of the same files: which records are kept, as whose."""
        digest = hashlib.blake2b(digest_size=16)
        for labels, kept in zip(self._labels, self._kept):
            digest.update(np.ascontiguousarray(labels))
            digest.update(b"all" if kept is None else np.ascontiguousarray(kept))
        return digest.hexdigest()

    @classmethod
    def of(cls, index: RecordIndex) -> Collection:
        """All of one file, with its labels as they are."""
        return cls([index], stack_labels([index]), [None])

    def summary_lines(self) -> list[str]:
        """What is in each file, in words."""
        lines = []
        for index, count in zip(self.indexes, self.counts):
            summary = index.summary
            line = f"{index.path}: {summary.images} images of {summary.identities} identities"
            if summary.num_classes != summary.identities:
                line += f", labels up to {summary.num_classes - 1}"
            if count < summary.images:
                line += f", {summary.images - count} left out"
            if summary.damaged_spans:
                line += f"; {summary.damaged_spans} damaged spans are skipped"
            lines.append(line)
        return lines

    def describe(self, i: int) -> str:
        """Where a record is, for messages."""
        index, record = self.locate(i)
        return index.place(record)


def stack_labels(indexes: Sequence[RecordIndex]) -> list[np.ndarray]:
    """Every file's identities are people of their own: labels follow those of the file before."""
    counts = [index.summary.num_classes for index in indexes]
    starts = np.cumsum([0, *counts])
    return [start + np.arange(count) for start, count in zip(starts.tolist(), counts)]


def dense_labels(
    indexes: Sequence[RecordIndex],
    labels: Sequence[np.ndarray],
    kept: Sequence[np.ndarray | None],
) -> list[np.ndarray]:
    """The same, numbered from 0 on without a gap, in their order; see `Collection` for all three.

    A label that no kept record has becomes -1.
    """
    seen = _seen(indexes, labels, kept)
    numbers = np.where(seen, np.cumsum(seen) - 1, -1)
    return [numbers[mapped] for mapped in labels]


def _seen(
    indexes: Sequence[RecordIndex],
    labels: Sequence[np.ndarray],
    kept: Sequence[np.ndarray | None],
) -> np.ndarray:
    """(labels of the collection,) bool: which of them a kept record has."""
    seen = np.zeros(1 + max(int(mapped.max(initial=-1)) for mapped in labels), bool)
    for index, mapped, chosen in zip(indexes, labels, kept):
        found = index.records["label"] if chosen is None else index.records["label"][chosen]
        if len(found) and not 0 <= found.min() <= found.max() < len(mapped):
            wrong = f"labels from {found.min()} to {found.max()}"
            raise damaged_index(index.path, f"{wrong}, expected 0 to {len(mapped) - 1}")
        present = np.zeros(len(mapped), bool)
        present[found] = True
        seen[mapped[present]] = True
    return seen


def find_file(file: str, indexes: Sequence[RecordIndex], *, place: str) -> int:
    """Which index a list means by `file`.

    Args:
        file: a path as configured, a name, or a folder's name.
        place: where in the list it is said, for the error.

    Raises:
        RecordError: it is none or several; names the place in the list.
    """
    for names in (
        [str(index.path) for index in indexes],
        [index.path.name for index in indexes],
        [index.path.parent.name for index in indexes],
    ):
        if names.count(file) == 1:
            return names.index(file)
    known = ", ".join(str(index.path) for index in indexes)
    raise RecordError(f"{place}: {file!r} names none or several of the files, which are {known}")
