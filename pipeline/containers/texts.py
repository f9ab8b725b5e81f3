"""Millions of short texts, such as paths, in two arrays that a file can hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

_PIECE = 1 << 16  # texts that are Python objects at one time


class Texts(Sequence[str]):
    """N texts: `ends` (N,) int64, where each one ends in `content`, (bytes,) uint8 of UTF-8.

    What is no UTF-8, as in a folder's name, is kept and becomes Python's surrogates.
    """

    def __init__(self, ends: np.ndarray, content: np.ndarray) -> None:
        self.ends, self.content = ends, content

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> Texts:
        rest, pieces = iter(texts), []
        while piece := list(islice(rest, _PIECE)):
            raw = [
                text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
                for text in piece
            ]
            ends = np.cumsum([len(text) for text in raw], dtype=np.int64)
            pieces.append(cls(ends, np.frombuffer(b"".join(raw), np.uint8)))
        return pieces[0] if len(pieces) == 1 else cls.joined(pieces)

    @classmethod
    def joined(cls, pieces: Sequence[Texts]) -> Texts:
        """All texts of some, in turn."""
        starts = np.cumsum([0, *(len(piece.content) for piece in pieces)])
        ends = [piece.ends + start for piece, start in zip(pieces, starts.tolist())]
        none = np.zeros(0, np.int64)
        content = [np.zeros(0, np.uint8), *(piece.content for piece in pieces)]
        return cls(np.concatenate([none, *ends]), np.concatenate(content))

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        for piece in range(0, len(self), _PIECE):
            ends = self.ends[piece : piece + _PIECE].tolist()
            begin = first = int(self.ends[piece - 1]) if piece else 0
            content = self.content[first : ends[-1]].tobytes()
            for end in ends:
                yield content[begin - first : end - first].decode(errors="surrogateescape")
                begin = end

    def take(self, places: np.ndarray) -> Texts:
        """Those at (M,) places, in their order."""
        if np.array_equal(places, np.arange(len(self))):
            return self
        pieces = [places[at : at + _PIECE] for at in range(0, len(places), _PIECE)]
        return Texts.joined([self._take(piece) for piece in pieces])

    def find_twice(self) -> str | None:
        """One that is there twice, if any."""
        digests = np.fromiter(map(hash, self), np.int64, len(self))
        order = np.argsort(digests, kind="stable")
        alike = np.flatnonzero(np.diff(digests[order]) == 0)
        for one, other in zip(order[alike].tolist(), order[alike + 1].tolist()):
            if self.raw(one) == self.raw(other):
                return self[one]
        return None

    def _take(self, places: np.ndarray) -> Texts:
        begins = np.where(places > 0, self.ends[places - 1], 0)
        lengths = self.ends[places] - begins
        ends = np.cumsum(lengths)
        moved = np.repeat(begins - (ends - lengths), lengths)  # of each byte, how far
        return Texts(ends, self.content[moved + np.arange(len(moved))])

    def raw(self, place: int) -> bytes:
        """The bytes of one."""
        begin = int(self.ends[place - 1]) if place else 0
        return self.content[begin : int(self.ends[place])].tobytes()

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        return self.raw(range(len(self))[place]).decode(errors="surrogateescape")
