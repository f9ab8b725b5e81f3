"""Labels by name: a list that says which labels of several files are the same person."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.collection import find_file
from pipeline.name_order import order_of
from pipeline.named_path import MALFORMED, read_text
from pipeline.records.index import RecordIndex
from pipeline.records.recordio import RecordError


def read_identity_map(path: str | Path, indexes: Sequence[RecordIndex]) -> list[np.ndarray]:
    """Labels by name: the same name in two files is the same person.

    Labels that are not listed are people of their own. Identities are numbered in the order of the
    names, or of their numbers where all are numbers, the others after them.

    Args:
        path: a .csv with the columns file, label and identity, or a .json of
            {file: {label: identity}}. `file` is a .rec's path as configured, its name, or, where
            that tells them apart, the name of its folder.

    Raises:
        RecordError: as `read_identity_names`.
    """
    names = read_identity_names(path, indexes)
    every = {identity for listed in names for identity in listed.values()}
    numbers = {identity: n for n, identity in enumerate(sorted(every, key=order_of(every)))}
    labels, following = [], len(numbers)
    for index, listed in zip(indexes, names):
        mapped = np.full(index.summary.num_classes, -1, np.int64)
        for label, identity in listed.items():
            mapped[label] = numbers[identity]
        alone = mapped < 0
        mapped[alone] = following + np.arange(alone.sum())
        following += int(alone.sum())
        labels.append(mapped)
    return labels


def read_identity_names(path: str | Path, indexes: Sequence[RecordIndex]) -> list[dict[int, str]]:
    """For each file, from those of its labels that are listed to the names of their people.

    Raises RecordError for a file, label or column that is not there, an identity without a name
    and a label with two, naming the line.
    """
    path = Path(path)
    names: list[dict[int, str]] = [{} for _ in indexes]
    for place, file, label, identity in _read(path):
        at = find_file(file, indexes, place=f"{path}, {place}")
        count = indexes[at].summary.num_classes
        if not 0 <= label < count:
            raise RecordError(
                f"{path}, {place}: label {label} of {file}, expected one from 0 to {count - 1}: "
                "list labels as they are in the .rec"
            )
        known = names[at].setdefault(label, identity)
        if known != identity:
            raise RecordError(
                f"{path}, {place}: label {label} of {file} is {identity} here and {known} before: "
                "expected one identity. Keep the one that it is"
            )
    return names


def _read(path: Path) -> list[tuple[str, str, int, str]]:
    """(place, file, label, identity) of each entry."""
    listed = _read_json(path) if path.suffix == ".json" else _read_csv(path)
    for place, file, label, identity in listed:
        if not identity.strip():
            raise RecordError(
                f"{path}, {place}: label {label} of {file} has no identity: expected a name. "
                "Labels that are not listed are people of their own"
            )
    return listed


def _read_csv(path: Path) -> list[tuple[str, str, int, str]]:
    """(place, file, label, identity) of each line."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = ("file", "label", "identity")
    try:
        found = reader.fieldnames or []
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise RecordError(f"{path}, line {reader.line_num}: {error}. Write it as CSV") from None
    if not set(columns) <= set(found):
        raise RecordError(
            f"{path}: columns {found}, expected file, label, identity, with commas between"
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise RecordError(
                f"{path}, line {line}: {'more' if None in row else 'fewer'} columns than the "
                f"{len(found)} of the first line; put a name that holds a comma in quotes"
            )
    return [
        (
            f"line {line}",
            row["file"],
            _label(row["label"], f"{path}, line {line}"),
            row["identity"],
        )
        for line, row in rows
    ]


def _read_json(path: Path) -> list[tuple[str, str, int, str]]:
    text = read_text(path)
    try:
        listed = json.loads(text, object_pairs_hook=_named_once)
        pairs = [
            (file, label, name) for file, names in listed.items() for label, name in names.items()
        ]
    except MALFORMED as error:
        raise RecordError(f"{path}: expected {{file: {{label: identity}}}}; {error}") from None
    for file, label, name in pairs:
        if not isinstance(name, (str, int)):
            raise RecordError(
                f"{path}, {file}, {label}: found {json.dumps(name)}, expected a name or a number"
            )
    return [
        (file, file, _label(label, f"{path}, {file}"), str(name)) for file, label, name in pairs
    ]


def _named_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, of whose equal keys Python would keep the last."""
    named = dict(pairs)
    if len(named) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return named


def _label(text: str, place: str) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise RecordError(f"{place}: label {text!r}, expected a whole number") from None
