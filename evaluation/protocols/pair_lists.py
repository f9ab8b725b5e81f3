"""Lists of pairs over a folder of images: LFW's pairs.txt, XQLFW's, and CSV files, by one reader.

LFW's (XQLFW's is of the same layout) begins with `10 300`: 10 sets of 300 genuine and 300 impostor
pairs. `NAME 1 4` is a genuine pair, `NAME 1 OTHER 2` an impostor; image 4 of NAME is the file
`NAME/NAME_0004.jpg`, or `NAME_0004.jpg` where the folder holds no folders. A CSV line has two paths
and whether they show one person: `a/1.jpg,b/1.jpg,0`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from facestream import UserError
from pipeline.delimited import read_rows
from pipeline.named_path import as_name, as_text, check_path
from pipeline.photos import SUFFIXES

_NUMBER = re.compile(r"[0-9]{1,9}")
_TRUTH = {"1": True, "true": True, "0": False, "false": False}
_COLUMNS = ("first", "second", "same")
# The third word of a header, as lists have it that others have made.
_HEADERS = ("same", "issame", "is_same", "label", "match", "target", "genuine", "imagenum2")
_SHOWN = 5  # missing files
_EXPECTED = (
    "expected LFW's `NAME 1 4` or `NAME 1 OTHER 2`, or two paths and 1 (same person) or 0, as in "
    "`a/1.jpg,b/1.jpg,0`"
)


class PairListError(UserError):
    """A list of pairs that cannot be used: names the line, what was expected and how to mend it."""


@dataclass(frozen=True)
class PairList:
    """P pairs over a set of images.

    Attributes:
        images: the files, each once, in the order of their first appearance.
        first, second: (P,) int64, places in `images`.
        same: (P,) bool, whether a pair shows one person.
        people: who each image shows; None where that is not known of all.
        fold: (P,) int64 from 0, which part of the set a pair is in; None where the list has none.
    """

    images: list[Path]
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    people: list[str] | None = None
    fold: np.ndarray | None = None


class _Pair(NamedTuple):
    """A line: the names under which each image may be found, the likeliest first."""

    line: int
    first: tuple[str, ...]
    second: tuple[str, ...]
    same: bool
    people: tuple[str, str] | None = None
    fold: int | None = None


def read_pair_list(path: str | Path, folder: str | Path) -> PairList:
    """Read a list of pairs whose images are in `folder`.

    An image that is not there under its name, but with another ending (.png for .jpg), is taken.
    Where a CSV does not say who is who (columns first_person, second_person under a header), the
    folders' names do if no pair contradicts them.

    Raises:
        PathError: a list or folder that cannot be opened, a list that is no text.
        PairListError: a line that is none of a list, fewer or more lines than its head says, images
            that are missing or outside the folder.
    """
    path, folder = Path(path), Path(folder)
    check_path(path, called=str(path), expected="a list of pairs, such as LFW's pairs.txt")
    check_path(
        folder, called=str(folder), expected="the folder of the images", file=False, folder=True
    )
    pairs = _parse(path)
    found = _Images(folder)
    places = [(found.place(pair.first), found.place(pair.second)) for pair in pairs]
    _check_found(path, folder, pairs, places)
    first, second = (np.array(column, np.int64) for column in zip(*places))
    for pair, a, b in zip(pairs, first, second):
        if a == b:
            raise PairListError(
                f"{path}, line {pair.line}: pairs {pair.first[0]} with itself; remove that line"
            )
    same = np.array([pair.same for pair in pairs], bool)
    _check_truth(path, pairs, first, second)
    if pairs[0].people is None:
        people = _people_of_folders(found.images, folder, first, second, same)
    else:
        people = _named_people(path, pairs, places, len(found.images))
    folds = [pair.fold for pair in pairs]
    fold = None if None in folds else np.array(folds, np.int64)
    return PairList(found.images, first, second, same, people, fold)


class _Images:
    """The images of a folder that are asked for, each with a place; folders are listed once."""

    def __init__(self, folder: Path) -> None:
        self.images: list[Path] = []
        self._folder = folder
        self._places: dict[str, int] = {}  # by path inside the folder
        self._listed: dict[str, dict[str, str]] = {}

    def place(self, names: Iterable[str]) -> int | None:
        """Its place in `images`; None where it is under none of these names."""
        for name in map(os.path.normpath, map(as_name, names)):
            parent, file = os.path.split(name)
            stem, suffix = os.path.splitext(file)
            files = self._files(parent)
            found = files.get(file) or files.get(stem if suffix.lower() in SUFFIXES else file)
            if found:
                inside = os.path.join(parent, found)
                if inside not in self._places:
                    self._places[inside] = len(self.images)
                    self.images.append(self._folder / inside)
                return self._places[inside]
        return None

    def _files(self, parent: str) -> dict[str, str]:
        """What its files are called: by their names, and images by their names without ending."""
        if parent not in self._listed:
            files: dict[str, str] = {}
            try:
                with os.scandir(self._folder / parent) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):  # no such folder, or a name that no folder can have
                names = []
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES:
                    files.setdefault(stem, name)
            self._listed[parent] = files | {name: name for name in names}
        return self._listed[parent]


def _parse(path: Path) -> list[_Pair]:
    rows = read_rows(path)
    head, counts = "", None
    words = " ".join(rows[0][1]).split() if rows else []
    if 0 < len(words) < 3 and all(map(_NUMBER.fullmatch, words)):
        head, counts, rows = " ".join(words), tuple(map(int, words)), rows[1:]
    columns: Sequence[str] = _COLUMNS
    if rows and _is_header(rows[0][1]):
        named = [field.lower() for field in rows[0][1]]
        columns = named if set(_COLUMNS) <= set(named) else _COLUMNS
        rows = rows[1:]
    if not rows:
        raise PairListError(f"{path} holds no pairs: {_EXPECTED}")
    pairs = [_pair(path, line, fields, columns) for line, fields in rows]
    if counts is None:
        return pairs
    folds, each = counts if len(counts) == 2 else (1, counts[0])
    if len(pairs) != folds * each * 2:
        raise PairListError(
            f"{path} begins with {head!r}, which announces {folds} × {each} genuine and as many "
            f"impostor pairs, {folds * each * 2} lines; found {len(pairs)}. Download it again, or "
            "remove its first line where the list is your own"
        )
    if folds == 1:
        return pairs
    return [pair._replace(fold=i // (2 * each)) for i, pair in enumerate(pairs)]


def _is_header(fields: list[str]) -> bool:
    words = [field.lower() for field in fields]
    return set(_COLUMNS) <= set(words) or (len(words) == 3 and words[2] in _HEADERS)


def _pair(path: Path, line: int, fields: list[str], columns: Sequence[str]) -> _Pair:
    numbered = [bool(_NUMBER.fullmatch(field)) for field in fields]
    if columns is _COLUMNS and numbered[1:] == [True, True]:
        name, one, other = fields
        _check_inside(path, line, name)
        return _Pair(line, _of_lfw(name, one), _of_lfw(name, other), True, (name, name))
    if columns is _COLUMNS and numbered[1::2] == [True, True] and len(fields) == 4:
        name, one, stranger, other = fields
        _check_inside(path, line, name)
        _check_inside(path, line, stranger)
        if name == stranger:
            raise PairListError(
                f"{path}, line {line}: pairs {name} with {name} as two people; a genuine pair is "
                f"`{name} {one} {other}`"
            )
        return _Pair(line, _of_lfw(name, one), _of_lfw(stranger, other), False, (name, stranger))
    row = dict.fromkeys(columns, "") | dict(zip(columns, fields))
    truth = _TRUTH.get(row["same"].lower())
    if len(fields) > len(columns) or truth is None:
        found = ", ".join(fields)[:200]
        raise PairListError(f"{path}, line {line}: found {found!r}, {_EXPECTED}")
    for name in (row["first"], row["second"]):
        _check_inside(path, line, name)
    people = (row.get("first_person", ""), row.get("second_person", ""))
    if all(people) and (people[0] == people[1]) != truth:
        raise PairListError(
            f"{path}, line {line}: same is {row['same']}, but the people are {' and '.join(people)}"
        )
    fold = row.get("fold", "")
    if fold and not _NUMBER.fullmatch(fold):
        raise PairListError(f"{path}, line {line}: fold is {fold!r}, expected a whole number")
    return _Pair(
        line,
        (row["first"],),
        (row["second"],),
        truth,
        people if all(people) else None,
        int(fold) if fold else None,
    )


def _of_lfw(name: str, number: str) -> tuple[str, str]:
    file = f"{name}_{int(number):04d}"
    return f"{name}/{file}", file


def _check_inside(path: Path, line: int, name: str) -> None:
    """A list may be anybody's: it names nothing outside the folder that its user has named."""
    if not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise PairListError(
            f"{path}, line {line}: found the path {name!r}, expected one that begins inside the "
            "folder of the images: name the folder that holds them all, and paths from there"
        )


def _check_found(
    path: Path, folder: Path, pairs: list[_Pair], places: list[tuple[int | None, int | None]]
) -> None:
    missing: dict[str, int] = {}  # name to the first line that has it
    for pair, (first, second) in zip(pairs, places):
        for names, place in ((pair.first, first), (pair.second, second)):
            if place is None:
                missing.setdefault(names[0], pair.line)
    if not missing:
        return
    named = {names[0] for pair in pairs for names in (pair.first, pair.second)}
    shown = ", ".join(f"{name} (line {line})" for name, line in [*missing.items()][:_SHOWN])
    more = ", …" if len(missing) > _SHOWN else ""
    holds = sorted(os.listdir(folder))[:3]
    raise PairListError(
        f"{path}: {len(missing)} of {len(named)} images are not in {folder}: {shown}{more}. That "
        f"folder holds {', '.join(map(as_text, holds)) or 'nothing'}{', …' if holds else ''}. Name "
        "the folder in which these paths begin, or remove the lines"
    )


def _check_truth(path: Path, pairs: list[_Pair], first: np.ndarray, second: np.ndarray) -> None:
    """A pair may come twice, but not once as genuine and once as impostor."""
    seen: dict[frozenset[int], _Pair] = {}
    for pair, *both in zip(pairs, first.tolist(), second.tolist()):
        before = seen.setdefault(frozenset(both), pair)
        if before.same != pair.same:
            raise PairListError(
                f"{path}, line {pair.line}: pairs {pair.first[0]} with {pair.second[0]} as "
                f"{'one person' if pair.same else 'two people'}, and line {before.line} does the "
                "contrary; remove the wrong line"
            )


def _named_people(
    path: Path, pairs: list[_Pair], places: list[tuple[int | None, int | None]], images: int
) -> list[str] | None:
    people = [""] * images
    for pair, both in zip(pairs, places):
        if pair.people is None:
            return None
        for place, person in zip(both, pair.people):
            if people[place] not in ("", person):
                raise PairListError(
                    f"{path}, line {pair.line}: an image of {person} is one of {people[place]} in "
                    "a line before; expected one person an image"
                )
            people[place] = person
    return people


def _people_of_folders(
    images: list[Path], folder: Path, first: np.ndarray, second: np.ndarray, same: np.ndarray
) -> list[str] | None:
    """Their folders' names, where every pair agrees that these are people."""
    people = [as_text(str(image.relative_to(folder).parent)) for image in images]
    number = {name: place for place, name in enumerate(dict.fromkeys(people))}
    of_image = np.array([number[name] for name in people])
    if "." in number or not np.array_equal(of_image[first] == of_image[second], same):
        return None
    return people
