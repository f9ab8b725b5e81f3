"""Lists of pairs by name, read some lines at a time: ten million need not fit into memory."""

from __future__ import annotations

import codecs
import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from facestream import UserError
from pipeline.named_path import check_path

_BYTES = 1 << 22  # of the file at a time
_ROWS = 1 << 16  # lines that csv reads at a time
_HEADERS = {b"a", b"first", b"name1", b"image1", b"image_1", b"file1", b"left"}
_COMMA, _LINE = b",\n"
_COLUMNS = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())


class PlaceOf(NamedTuple):
    """By name, the place of the first and of the second image of a pair; KeyError for none."""

    first: Callable[[str], int]
    second: Callable[[str], int]


class Places(NamedTuple):
    """(P,) int64 places of the first and of the second images of P pairs."""

    first: np.ndarray
    second: np.ndarray


def read_pairs(path: Path, place_of: PlaceOf) -> Iterator[Places]:
    """The two images that each line names, some lines at a time; further fields are passed over.

    Raises:
        UserError: with the line, what is no pair, and names that have no place.
    """
    check_path(path, called=str(path), expected="a CSV of pairs")
    found = False
    with (
        path.open("rb") as file,
        Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task(path.name, total=os.fstat(file.fileno()).st_size)
        for places in _blocks(path, file, place_of):
            found = True
            yield places
            bar.update(task, completed=file.tell())
    if not found:
        raise UserError(f"{path} has no pairs: expected lines of two names")


def _blocks(path: Path, file: BinaryIO, place_of: PlaceOf) -> Iterator[Places]:
    """Lines taken apart at their commas; from the first block that is not so plain on, by csv.

    csv alone would take three times as long.
    """
    done = 0  # lines
    while text := file.read(_BYTES) + file.readline():
        if not done:
            text = text.removeprefix(codecs.BOM_UTF8)
            head, _, rest = text.partition(b"\n")
            if head.partition(b",")[0].strip(b' "\r').lower() in _HEADERS:
                text, done = rest, 1
        fields = _plain_fields(text)
        try:
            if fields is None:
                raise KeyError
            yield Places(*map(_places, fields, place_of))
        except KeyError:  # csv says in which line
            yield from _by_csv(path, [*text.splitlines(keepends=True)], file, place_of, done=done)
            return
        done += len(fields[0])


def _plain_fields(text: bytes) -> tuple[list[str], list[str]] | None:
    """The first two fields of each line; None unless all have as many, two or more, unquoted."""
    text = text.replace(b"\r\n", b"\n")
    if not text.endswith(b"\n"):
        text += b"\n"
    content = np.frombuffer(text, np.uint8)
    marks = content[(content == _COMMA) | (content == _LINE)] == _LINE
    width = int(np.argmax(marks)) + 1
    if b'"' in text or b"\r" in text or width < 2 or len(marks) % width:
        return None
    lines = marks.reshape(-1, width)
    if lines[:, :-1].any() or not lines[:, -1].all():
        return None
    decoded = text.decode("utf-8", errors="surrogateescape")
    fields = decoded.replace("\n", ",").split(",")
    return fields[:-1:width], fields[1::width]


def _places(names: list[str], place_of: Callable[[str], int]) -> np.ndarray:
    return np.fromiter(map(place_of, names), np.int64, len(names))


def _by_csv(
    path: Path, begun: Iterable[bytes], file: BinaryIO, place_of: PlaceOf, *, done: int
) -> Iterator[Places]:
    lines = itertools.chain(begun, file)
    rows = csv.reader(line.decode("utf-8", errors="surrogateescape") for line in lines)

    def checked() -> Iterator[list[str]]:
        for row in rows:
            if len(row) == 1:
                raise UserError(
                    f"{where()}: found {row[0][:200]!r}, expected two names with a comma between "
                    "them"
                )
            if row:
                yield row

    def where() -> str:
        return f"{path}, line {done + rows.line_num}"

    try:
        pairs = ((place_of.first(row[0]), place_of.second(row[1])) for row in checked())
        while block := list(itertools.islice(pairs, _ROWS)):
            first, second = np.array(block, np.int64).T
            yield Places(first, second)
    except csv.Error as error:
        raise UserError(f"{where()}: {error}: expected a CSV") from None
    except KeyError as error:
        raise UserError(
            f"{where()}: {error.args[0]!r} is no name of an image there: names are those of "
            "names.txt"
        ) from None
