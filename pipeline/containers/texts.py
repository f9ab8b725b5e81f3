"""Millions of short texts, such as paths, in two arrays that a file can hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Texts(Sequence[str]):
    """N texts: `ends` (N,) int64, where each one ends in `content`, (bytes,) uint8 of UTF-8.

    What is no UTF-8, as in a folder's name, is kept and becomes Python's surrogates.
    """

    def __init__(self, ends: np.ndarray, content: np.ndarray) -> None:
        self.ends, self.content = ends, content

    @classmethod
    def of(cls, texts: Iterable[str | bytes]) -> Texts:
        raw = [
            text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
            for text in texts
        ]
        ends = np.cumsum([len(text) for text in raw], dtype=np.int64)
        return cls(ends, np.frombuffer(b"".join(raw), np.uint8))

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
