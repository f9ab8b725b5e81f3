"""Values by name from CSV files: the group of an image or a person, the quality of an image."""

from __future__ import annotations

import math
from pathlib import Path

from facestream import UserError
from pipeline.delimited import read_rows
from pipeline.named_path import check_path


class ColumnError(UserError):
    """A CSV file of values that cannot be used: names the line, and what was expected."""


def read_groups(given: str) -> dict[str, str]:
    """The group of each name, of images or people; see `read_column`."""
    return read_column(given, expected="a CSV file of `image or person,group`")


def read_quality(given: str) -> dict[str, float]:
    """The quality of each image, greater for better; see `read_column`."""
    values = read_column(given, expected="a CSV file of `image,quality`")
    return {name: _number(given, name, value) for name, value in values.items()}


def read_column(given: str, *, expected: str) -> dict[str, str]:
    """The second column of a CSV file by its first, or the one that FILE:COLUMN names.

    Semicolons or tabs may stand between the fields, too. What is left empty is "".

    A first line is a header where a column is named, or where its second field is one of the words
    group and quality.

    Raises:
        PathError: no such file, no text, or a quotation mark that is never closed.
        ColumnError: a line that is too long, a name with two values, no such column.
    """
    path, column = given, ""
    if not Path(given).exists() and ":" in given:
        path, _, column = given.rpartition(":")
    check_path(path, called=path, expected=expected)
    rows = [fields for _, fields in read_rows(path)]
    if not rows:
        raise ColumnError(f"{path} is empty: expected {expected}")
    place, header = 1, rows[0]
    if len(header) < 2:
        raise ColumnError(f"{path}: found {header[0][:100]!r}, expected {expected}")
    if column:
        if column not in header[1:]:
            raise ColumnError(
                f"{given}: found the columns {', '.join(header)}, expected one called {column}"
            )
        place = header.index(column)
    elif len(header) > 2:
        raise ColumnError(
            f"{path} has {len(header)} columns: name one of {', '.join(header[1:])}, as in "
            f"{path}:{header[1]}"
        )
    if column or header[-1].lower() in ("group", "quality"):
        rows = rows[1:]
    found: dict[str, str] = {}
    for row in rows:
        row += [""] * (len(header) - len(row))  # values at the end that are left empty
        if len(row) > len(header):
            raise ColumnError(f"{path}: found {','.join(row)[:100]!r}, expected {expected}")
        name, value = row[0], row[place]
        if found.setdefault(name, value) != value:
            raise ColumnError(f"{path}: {name} is {found[name]} and {value}; expected one value")
    return found


def _number(given: str, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ColumnError(f"{given}: the quality of {name} is {value!r}, expected a number")
    return number
