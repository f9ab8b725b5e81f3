"""Pairs of images that are compared: named by a list, or the best matches; shown and written."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.predicted import pair_cosines
from evaluation.protocols.protocol import unit_rows
from facestream import UserError
from pipeline.named_path import check_path
from pipeline.whole_file import writing_whole

_SHOWN = 20  # lines on the console
_IMAGES = 1024  # that are looked for at a time
_LINES = 1 << 16  # that are written at a time
_HEADERS = {"a", "first", "name1", "image1", "image_1", "file1", "left"}


@dataclass(frozen=True)
class Side:
    """Images of which embeddings are known: rows (N, D) of any length, by name."""

    rows: np.ndarray
    names: Sequence[str]


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
        return pair_cosines(left, right, threads=threads)

    def lines(self, scores: np.ndarray, words: np.ndarray | None) -> list[str]:
        """For the console: the first ones.

        Args:
            scores: (P,) cosines.
            words: (P,) what is decided; None where nothing is.
        """
        decided = [""] * _SHOWN if words is None else [f", {word}" for word in words[:_SHOWN]]
        if len(scores) == 1:
            return [f"cosine        {scores[0]:.4f}{decided[0]}"]
        lines = [
            f"{score:<13.4f} {self.left.names[one]}  {self.right.names[other]}{word}"
            for score, one, other, word in zip(scores, self.first, self.second, decided)
        ]
        more = len(scores) - len(lines)
        return lines + ([f"and {more} more: --output CSV has all"] if more else [])

    def write(self, path: Path, scores: np.ndarray, words: np.ndarray | None) -> None:
        """All of them as CSV. Raises OSError where it cannot be written."""
        with writing_whole(path) as file:
            file.write(b"a,b,cosine\n" if words is None else b"a,b,cosine,decision\n")
            for start in range(0, len(scores), _LINES):
                block = slice(start, start + _LINES)
                columns = [
                    [_quoted(self.left.names[place]) for place in self.first[block].tolist()],
                    [_quoted(self.right.names[place]) for place in self.second[block].tolist()],
                    map("{:.6f}".format, scores[block].tolist()),
                    *(() if words is None else (words[block],)),
                ]
                lines = "".join(",".join(row) + "\n" for row in zip(*columns))
                file.write(lines.encode(errors="surrogateescape"))


def read_pairs(path: Path, place_of: Callable[[str], int]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) and (P,) places of the two images that each line names; further fields are passed over.

    Raises:
        UserError: with the line, what is no pair; what `place_of` raises.
    """
    check_path(path, called=str(path), expected="a CSV of pairs")
    first, second = array("q"), array("q")
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file)
        try:
            for row in rows:
                if len(row) < 2:
                    if not row:
                        continue
                    raise UserError(
                        f"{path}, line {rows.line_num}: found {row[0][:200]!r}, expected two names "
                        "with a comma between them"
                    )
                if rows.line_num == 1 and row[0].strip().lower() in _HEADERS:
                    continue
                try:
                    first.append(place_of(row[0]))
                    second.append(place_of(row[1]))
                except KeyError as error:
                    raise UserError(
                        f"{path}, line {rows.line_num}: {error.args[0]!r} is no name of an image "
                        "there: names are those of names.txt"
                    ) from None
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: {error}: expected a CSV") from None
    if not first:
        raise UserError(f"{path} has no pairs: expected lines of two names")
    return np.frombuffer(first, np.int64), np.frombuffer(second, np.int64)


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
