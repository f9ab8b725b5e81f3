"""A .csv, a .parquet or a folder of these, a row an image: Arrow reads the columns that are wanted.

Of a .csv the first line that is not empty names the columns, with tabs, commas or semicolons
between them, whichever it has most of, or spaces where it has none. Fields may be quoted; numbers
may have a decimal comma where no comma parts the fields.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from pipeline.containers.shards import shards_of
from pipeline.named_path import PathError

_LONGEST_HEADER = 1 << 20  # characters
_LOOKED_AT = 1 << 20  # bytes, for decimal commas
_AT_ONCE = 1 << 18  # texts
_SHOWN = 300  # characters of what Arrow says
# What programs write where a number is not known.
_NOTHING = ["", " ", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
_EXPECTED = (
    "Expected a header and, for each image, a row with a field for each column: text in UTF-8, "
    "numbers such as 0.5, nothing where one is not known"
)


class SideTable:
    """Columns of a file, of those that were asked for.

    Attributes:
        path: the file.
        header: what all its columns are called.
        wanted: what those are called that it has of the wanted ones.
        rows: how many there are, of any wanted column.
    """

    def __init__(
        self, path: Path, header: Sequence[str], columns: Mapping[str, pa.ChunkedArray], first: int
    ) -> None:
        self.path, self.header, self.wanted = path, tuple(header), tuple(columns)
        self.rows = len(next(iter(columns.values()), ()))
        self._columns, self._first = columns, first

    def numbers(self, name: str) -> np.ndarray:
        """(rows,) float32; NaN where nothing stands."""
        return np.asarray(pc.fill_null(self._columns[name], np.nan))

    def places(self, name: str, among: Iterable[str]) -> np.ndarray:
        """(rows,) int64: where among some texts a row's text is; -1 where it is not."""
        texts, pieces = (text.encode(errors="surrogateescape") for text in among), []
        while piece := list(islice(texts, _AT_ONCE)):
            pieces.append(pa.array(piece, pa.binary()))
        rows = pc.cast(self._columns[name], pa.binary())
        found = pc.index_in(rows, value_set=pa.chunked_array(pieces, pa.binary()))
        return np.asarray(pc.fill_null(found, -1), np.int64)

    def distinct(self, name: str) -> set[str]:
        """The texts of a column, but for the empty one."""
        return {text for text in pc.unique(self._columns[name]).to_pylist() if text}

    def said(self, name: str, row: int) -> str:
        """What stands there, for messages."""
        return repr(self._columns[name][row].as_py())[:100]

    def place(self, row: int) -> str:
        """Where a row is, for messages; rows count from 1 on, and the header of a .csv is one."""
        return f"{self.path}, row {self._first + row}"


def read_table(
    path: Path,
    *,
    texts: Sequence[str],
    numbers: Sequence[str],
    lists: Mapping[str, Sequence[str]],
) -> SideTable:
    """Those of the wanted columns that there are.

    Args:
        lists: names of columns that a .parquet may have as one, which holds lists of their numbers
            or of pairs of them.

    Raises PathError for what cannot be read, a column that is there twice, what is no number.
    """
    try:
        if path.is_dir() or path.suffix.lower() == ".parquet":
            return _read_parquet(path, texts, numbers, lists)
        return _read_csv(path, texts, numbers)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        said = " ".join(str(error).split())[:_SHOWN]
        raise PathError(f"{path}: {said}. {_EXPECTED}") from error


def _read_csv(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> SideTable:
    header, mark, lines = _first_line(path)
    wanted = _wanted(path, header, [*texts, *numbers])
    if not wanted:  # Arrow would read all
        return SideTable(path, header, {}, first=lines + 1)
    types = {name: pa.string() if name in texts else pa.float32() for name in wanted}
    try:
        found = pyarrow.csv.read_csv(
            path,
            # By one thread, which counts the rows: errors name them.
            pyarrow.csv.ReadOptions(use_threads=False, column_names=header, skip_rows=lines),
            pyarrow.csv.ParseOptions(delimiter=mark),
            pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=wanted,
                null_values=_NOTHING,
                decimal_point="." if mark == "," else _decimal_point(path),
            ),
        )
    except pa.ArrowInvalid as error:
        # It counts columns from 0 on.
        said = re.sub(r"In CSV column #(\d+)", lambda which: header[int(which[1])], str(error))
        raise pa.ArrowInvalid(said) from error
    columns = dict(zip(found.column_names, found.columns))
    return SideTable(path, header, columns | _trimmed(columns, texts), first=lines + 1)


def _first_line(path: Path) -> tuple[list[str], str, int]:
    """The names in it, what parts them, and how many lines end with it."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_HEADER), ""), start=1):
            if line := line.strip(" \n"):
                mark = max("\t,;", key=line.count)
                if mark not in line and " " in line:
                    mark = " "
                (names,) = csv.reader([line], delimiter=mark)
                return [name.strip() for name in names], mark, number
    raise PathError(f"{path} is empty. {_EXPECTED}")


def _decimal_point(path: Path) -> str:
    """What stands more often between two digits."""
    with open(path, "rb") as file:
        begin = file.read(_LOOKED_AT)
    commas, points = (len(re.findall(rb"\d" + mark + rb"(?=\d)", begin)) for mark in (b",", rb"\."))
    return "," if commas > points else "."


def _read_parquet(
    path: Path, texts: Sequence[str], numbers: Sequence[str], lists: Mapping[str, Sequence[str]]
) -> SideTable:
    files = [pyarrow.parquet.ParquetFile(file) for file in shards_of(path, ".parquet")]
    if not files:
        raise PathError(f"{path} has no .parquet file. {_EXPECTED}")
    header = list(files[0].schema_arrow.names)
    wanted = _wanted(path, header, [*texts, *numbers, *lists])
    found = pa.concat_tables([file.read(columns=wanted) for file in files])
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(found.column_names, found.columns):
        if name in lists:
            columns |= _parts(column, lists[name], path, name)
        elif name in numbers:
            columns[name] = _numbers(column)
        else:
            columns[name] = column
    return SideTable(path, header, columns | _trimmed(columns, texts), first=1)


def _wanted(path: Path, header: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those of the names that the header has, once each."""
    wanted = [name for name in names if name in header]
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise PathError(f"{path}: found the columns {', '.join(header)}, expected {twice[0]} once")
    return wanted


def _trimmed(
    columns: Mapping[str, pa.ChunkedArray], texts: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """Those that are texts, without space around them; NaN is none."""
    found = {name: columns[name] for name in texts if name in columns}
    for name, column in found.items():
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        found[name] = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return found


def _numbers(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """As float32, whatever kind of number it was."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        nothing = pc.is_in(column, value_set=pa.array(_NOTHING, column.type))
        column = pc.if_else(nothing, None, column)
    return pc.cast(column, pa.float32(), safe=False)


def _parts(
    column: pa.ChunkedArray, names: Sequence[str], path: Path, called: str
) -> dict[str, pa.ChunkedArray]:
    """A column of lists as a column for each place in them."""
    pieces, first = [np.zeros((0, len(names)), np.float32)], 1
    for chunk in column.chunks:
        flat, length, wrong = pc.list_flatten(chunk), len(names), np.zeros(len(chunk), bool)
        if isinstance(flat, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
            pairs = pc.equal(pc.fill_null(pc.list_value_length(flat), 0), 2)
            wrong[pc.list_parent_indices(chunk).filter(pc.invert(pairs))] = True
            flat, length = pc.list_flatten(flat), len(names) // 2
        lengths = pc.list_value_length(chunk)
        wrong |= np.asarray(pc.fill_null(lengths, length)) != length
        if wrong.any():
            row = int(np.argmax(wrong))
            raise PathError(
                f"{path}, row {first + row}: {called} are {str(chunk[row].as_py())[:200]}, "
                f"expected {', '.join(names)}"
            )
        piece = np.full((len(chunk), len(names)), np.nan, np.float32)
        numbers = pc.fill_null(_numbers(flat), np.nan)
        piece[np.asarray(chunk.is_valid())] = np.asarray(numbers).reshape(-1, len(names))
        pieces.append(piece)
        first += len(chunk)
    whole = np.concatenate(pieces)
    return {name: pa.chunked_array([whole[:, at]]) for at, name in enumerate(names)}
