"""Text files of rows, as tables are exported by whatever program."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.named_path import PathError, read_text


def read_rows(path: str | Path) -> list[tuple[int, list[str]]]:
    """(line, fields) of every line that is not empty, without space around the fields.

    Tabs, commas or semicolons part them, whichever the file has most of; spaces where it has none.
    Empty fields at the end of a line are none.

    Raises:
        PathError: what is no text, or a quotation mark that is never closed; with the line.
    """
    lines = [
        (number, line)
        for number, line in enumerate(read_text(path).splitlines(), start=1)
        if line.strip()
    ]
    occur = {mark: sum(line.count(mark) for _, line in lines) for mark in "\t,;"}
    mark = max(occur, key=lambda mark: occur[mark])
    if not occur[mark]:
        return [(number, line.split()) for number, line in lines]
    rows = []
    for number, line in lines:
        try:
            (fields,) = csv.reader([line], delimiter=mark, strict=True)
        except (csv.Error, ValueError) as error:
            raise PathError(
                f"{path}, line {number}: {error}. Expected fields with {mark!r} between them"
            ) from None
        fields = [field.strip() for field in fields]
        while fields and not fields[-1]:
            fields.pop()
        if fields:
            rows.append((number, fields))
    return rows
