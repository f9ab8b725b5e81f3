"""Images that are compared, in pairs or each with its best matches; shown and written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from evaluation.pair_products import pair_products
from evaluation.protocols.protocol import unit_rows
from pipeline.whole_file import writing_whole

_SHOWN = 20  # lines on the console
_IMAGES = 1024  # that are looked for at a time
_LINES = 1 << 16  # that are written at a time


@dataclass(frozen=True)
class Side:
    """Images of which embeddings are known.

    Attributes:
        rows: (N, D), of any length.
        names: of each.
        translated: whether they are an older model's, translated.
    """

    rows: np.ndarray
    names: Sequence[str]
    translated: bool = False

    @cached_property
    def places(self) -> dict[str, int]:
        """By name."""
        return {name: place for place, name in enumerate(self.names)}

    def lengths(self, places: np.ndarray) -> np.ndarray:
        """(P,) float32 of the rows at places (P,); each is measured once."""
        unknown = np.unique(places[np.isnan(self._lengths[places])])
        for start in range(0, len(unknown), _IMAGES):
            some = unknown[start : start + _IMAGES]
            self._lengths[some] = np.linalg.norm(self.rows[some].astype(np.float32), axis=1)
        return self._lengths[places]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.full(len(self.rows), np.nan, np.float32)


@dataclass(frozen=True)
class Pairs:
    """P pairs, of an image of each side.

    Attributes:
        first, second: (P,) their places on the left and on the right.
    """

    left: Side
    right: Side
    first: np.ndarray
    second: np.ndarray

    def cosines(self, *, threads: int) -> np.ndarray:
        """(P,) float32; NaN where an image has no embedding."""
        left, right = (self.left.rows, self.first), (self.right.rows, self.second)
        lengths = self.left.lengths(self.first), self.right.lengths(self.second)
        with np.errstate(invalid="ignore", divide="ignore"):
            return pair_products(left, right, threads=threads) / lengths[0] / lengths[1]


class Listing:
    """Pairs as they are compared: the first ones are kept for the console, a file takes all.

    Args:
        file: for lines of CSV; None where none is wanted.
        decided: whether each pair gets a word.

    Attributes:
        count: pairs so far.
    """

    def __init__(self, file: BinaryIO | None, *, decided: bool) -> None:
        self._file, self._decided, self._shown = file, decided, list[str]()
        self.count = 0
        if file:
            file.write(b"a,b,cosine,decision\n" if decided else b"a,b,cosine\n")

    def add(self, pairs: Pairs, scores: np.ndarray, words: np.ndarray | None) -> None:
        """Some more.

        Args:
            scores: (P,) cosines.
            words: (P,) what is decided; None where nothing is.

        Raises OSError where the file cannot be written.
        """
        self.count += len(scores)
        kept = slice(0, _SHOWN - len(self._shown))
        decided = [""] * _SHOWN if words is None else [f", {word}" for word in words[kept]]
        for score, one, other, word in zip(
            scores[kept], pairs.first[kept], pairs.second[kept], decided
        ):
            alone = f"cosine        {score:.4f}{word}"
            named = f"{score:<13.4f} {pairs.left.names[one]}  {pairs.right.names[other]}{word}"
            self._shown.append(alone if self.count == 1 else named)
        if self._file is None:
            return
        for start in range(0, len(scores), _LINES):
            block = slice(start, start + _LINES)
            columns = [
                [_quoted(pairs.left.names[place]) for place in pairs.first[block].tolist()],
                [_quoted(pairs.right.names[place]) for place in pairs.second[block].tolist()],
                map("{:.6f}".format, scores[block].tolist()),
                *(() if words is None else (words[block],)),
            ]
            lines = "".join(",".join(row) + "\n" for row in zip(*columns))
            self._file.write(lines.encode(errors="surrogateescape"))

    def lines(self) -> list[str]:
        """For the console."""
        more = self.count - len(self._shown)
        return self._shown + ([f"and {more} more: --output CSV has all"] if more else [])


@contextmanager
def listing(path: Path | None, *, decided: bool) -> Iterator[Listing]:
    """A listing, with a file that is there when it is whole. Raises OSError."""
    if path is None:
        yield Listing(None, decided=decided)
        return
    with writing_whole(path) as file:
        yield Listing(file, decided=decided)


def best_matches(left: Side, right: Side, *, top: int) -> Pairs:
    """Of each image on the left, those on the right that are most like it, the best first."""
    theirs = unit_rows(right.rows).T
    top = min(top, theirs.shape[1])
    second = []
    for start in range(0, len(left.rows), _IMAGES):
        scores = unit_rows(left.rows[start : start + _IMAGES]) @ theirs
        near = np.sort(np.argpartition(-scores, top - 1, axis=1)[:, :top], axis=1)
        best = np.argsort(-np.take_along_axis(scores, near, axis=1), axis=1, kind="stable")
        second.append(np.take_along_axis(near, best, axis=1))
    return Pairs(left, right, np.arange(len(left.rows)).repeat(top), np.concatenate(second).ravel())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name
