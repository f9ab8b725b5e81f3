"""Values beside a set's images, a row an image: landmarks, quality, group, weight.

They are in a CSV or parquet file of the user's own, and stay there: the set is not rewritten. The
first line names the columns, of which any may be missing:

    name,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5,quality,group,weight

`name` is the image's, as tools/predict.py writes it: the offset of its record in a .rec, its path
in a folder. Without names there is a row for each image, in the set's own order. Landmarks are
pixels, from the middle of the top left one: left eye, right eye, nose, left and right corner of the
mouth, as they lie in the picture. A weight is in [0, 1]. A column of any other name holds numbers,
and is read where it is asked for. What is left empty, or not listed, is not known: NaN, for a group
-1, for a weight 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facestream import UserError
from pipeline.collection import Collection
from pipeline.delimited import read_rows
from pipeline.named_path import check_path
from pipeline.records.index import RecordIndex

NAME = "name"
POINTS = tuple(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
COLUMNS = ("landmarks", "quality", "group", "weight")
FIELDS = (*POINTS, *COLUMNS[1:])
# Right for left: eyes and corners of the mouth change places in a mirror.
_MIRRORED = [1, 0, 2, 4, 3]
_FARTHEST = 1e5  # pixels
_LARGEST = float(np.finfo(np.float32).max)


class ColumnsError(UserError):
    """A file of side columns that cannot be used: names the row, and how to mend it."""


class SideColumns:
    """The columns of a collection's N records.

    Attributes:
        values: landmarks (N, 5, 2), quality (N,) and weight (N,) float32, group (N,) int64; those
            that there are, and (N,) float32 of what else was asked for.
        groups: what the groups are called, by number.
    """

    def __init__(self, values: Mapping[str, np.ndarray], groups: Sequence[str]) -> None:
        self.values, self.groups = dict(values), tuple(groups)

    def of(self, records: np.ndarray) -> dict[str, np.ndarray]:
        """The values of (B,) records."""
        return {name: rows[records] for name, rows in self.values.items()}

    def together(self, names: Sequence[str], records: np.ndarray) -> np.ndarray:
        """(B, k) float32: columns with one number a record, side by side."""
        columns = [self.values[name][records].astype(np.float32) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(records), 0), np.float32)

    def require(self, names: Sequence[str], *, reader: str) -> None:
        """Raise ColumnsError where a column that `reader` uses is not there."""
        missing = [name for name in names if name not in self.values]
        if missing:
            there = ", ".join(self.values) or "no column"
            raise ColumnsError(
                f"columns: {reader} needs {' and '.join(missing)}, found {there}; name a file "
                "that has it"
            )

    def digest(self) -> str:
        """Of all values."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self.values):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.values[name]))
        return digest.hexdigest()

    def __str__(self) -> str:
        """How much is known of each column, for the log."""
        told = []
        for name, rows in self.values.items():
            unknown = rows < 0 if name == "group" else np.isnan(rows).reshape(len(rows), -1).any(1)
            share = f" of {len(rows) - int(unknown.sum()):,} of" if unknown.any() else " of all"
            told.append(f"{name}{share} {len(rows):,}")
        return "; ".join(told)


def mirrored_landmarks(points: np.ndarray, *, width: int) -> np.ndarray:
    """(B, 5, 2) landmarks of pictures that are mirrored left to right, in the order of a face."""
    swapped = points[:, _MIRRORED].copy()
    swapped[:, :, 0] = width - 1 - swapped[:, :, 0]
    return swapped


def read_columns(
    files: Sequence[str | Path], collection: Collection, *, also: Sequence[str] = ()
) -> SideColumns:
    """The columns of a set, from a file for each of its files; "" where one has none.

    Args:
        also: columns of names that are not in COLUMNS, to be read as numbers where they are there.

    Raises:
        PathError: a file that cannot be opened, or is no text.
        ColumnsError: names that are in no set or twice, a row too few, what is no number or out of
            range, columns of no known name.
    """
    if len(files) != len(collection.indexes):
        raise ColumnsError(
            f"found {len(files)} files of columns, expected {len(collection.indexes)}: one for "
            'each file of the set, "" for one without'
        )
    others = [name for name in also if name not in COLUMNS]
    tables = [_Table(path, index, others) for path, index in zip(files, collection.indexes)]
    present = {field for table in tables for field in table.texts}
    values: dict[str, np.ndarray] = {}
    if present & set(POINTS):
        points = [table.numbers(POINTS, check=_is_place, expected=_PLACE) for table in tables]
        values["landmarks"] = collection.kept_values(points).reshape(-1, 5, 2)
        _require_pixels(values["landmarks"], files)
    for name in ("quality", *others):
        if name in present:
            found = [table.numbers((name,)) for table in tables]
            values[name] = collection.kept_values(found)[:, 0]
    names: list[str] = []
    if "group" in present:
        names = sorted({name for table in tables for name in table.texts.get("group", ()) if name})
        numbers = {name: number for number, name in enumerate(names)} | {"": -1}
        groups = [table.text("group", numbers) for table in tables]
        values["group"] = collection.kept_values(groups)
    if "weight" in present:
        weights = [
            table.numbers(("weight",), check=_is_weight, expected=_WEIGHT) for table in tables
        ]
        values["weight"] = np.nan_to_num(collection.kept_values(weights)[:, 0], nan=1.0)
    return SideColumns(values, names)


_PLACE = "a place in pixels"
_WEIGHT = "a weight in [0, 1]; divide all by the greatest"


def _is_place(values: np.ndarray) -> np.ndarray:
    return abs(values) < _FARTHEST


def _is_weight(values: np.ndarray) -> np.ndarray:
    return (values >= 0) & (values <= 1)


class _Table:
    """A file's fields as texts, by field; and for each image of its set, which row is its own.

    Attributes:
        texts: by row, of each field that is used.
    """

    def __init__(self, path: str | Path, index: RecordIndex, others: Sequence[str]) -> None:
        self.texts: dict[str, list[str]] = {}
        self._path = path
        self._row = np.full(len(index), -1)  # of each image; -1: not listed
        if str(path) == "":
            return
        check_path(Path(path), called=str(path), expected="a CSV or parquet file of columns")
        parquet = Path(path).suffix.lower() == ".parquet"
        used = (NAME, *FIELDS, *others)
        header, self.texts = (_read_parquet if parquet else _read_csv)(path, used)
        rows = len(next(iter(self.texts.values()), ()))
        known = [name for name in self.texts if name != NAME]
        points = [name for name in known if name in POINTS]
        if not known or (points and len(points) < len(POINTS)):
            raise ColumnsError(
                f"{path} has the columns {', '.join(header)[:200] or 'none'}: expected {NAME} and "
                f"some of {', '.join((*COLUMNS, *others))}, landmarks as {', '.join(POINTS)}"
            )
        names = self.texts.get(NAME)
        if names is None:
            if rows != len(index):
                raise ColumnsError(
                    f"{path} has {rows} rows and no column {NAME}, {index.path} has {len(index)} "
                    f"images: expected a row for each, in their order, or the column {NAME}. "
                    "A line without any value is no row"
                )
            self._row = np.arange(rows)
            return
        places = {index.file.name(record): place for place, record in enumerate(index.records)}
        for row, name in enumerate(names):
            place = places.get(name)
            if place is None:
                example = index.file.name(index.records[0]) if len(index) else ""
                raise ColumnsError(
                    f"{self._where(row)}: {index.path} has no image {name[:100]!r}; expected "
                    f"names as {example!r}"
                )
            if self._row[place] >= 0:
                raise ColumnsError(
                    f"{self._where(row)}: the image {name[:100]!r} again, as in row "
                    f"{self._row[place] + 1}; keep one"
                )
            self._row[place] = row

    def numbers(
        self,
        fields: Sequence[str],
        *,
        check: Callable[[np.ndarray], np.ndarray] = np.isfinite,
        expected: str = "a number",
    ) -> np.ndarray:
        """(images, fields) float32; NaN where nothing stands."""
        found = np.full((len(self._row), len(fields)), np.nan, np.float32)
        listed = self._row >= 0
        for column, field in enumerate(fields):
            if field in self.texts:
                rows = range(len(self.texts[field]))
                values = np.array([self._number(field, row) for row in rows])
                wrong = ~np.isnan(values) & ~check(values)
                if wrong.any():
                    self._refuse(field, int(np.argmax(wrong)), expected)
                found[listed, column] = values[self._row[listed]]
        return found

    def text(self, field: str, numbers: Mapping[str, int]) -> np.ndarray:
        """(images,) int64: the number of what stands there; that of "" where nothing does."""
        found = np.full(len(self._row), numbers[""], np.int64)
        listed = self._row >= 0
        if field in self.texts:
            rows = np.array([numbers[text] for text in self.texts[field]], np.int64)
            found[listed] = rows[self._row[listed]]
        return found

    def _number(self, field: str, row: int) -> float:
        text = self.texts[field][row]
        if not text:
            return np.nan
        try:
            value = float(text)
        except ValueError:
            self._refuse(field, row, "a number")
        if abs(value) > _LARGEST or np.isnan(value):
            self._refuse(field, row, "a finite number, or nothing where it is not known")
        return value

    def _refuse(self, field: str, row: int, expected: str) -> None:
        raise ColumnsError(
            f"{self._where(row)}: {field} is {self.texts[field][row][:100]!r}, expected {expected}"
        )

    def _where(self, row: int) -> str:
        return f"{self._path}, row {row + 1}"


def _read_csv(path: str | Path, used: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """All names of columns, and the texts of those that are used."""
    (_, header), *lines = read_rows(path) or [(0, [""])]
    header = [name.strip() for name in header]
    if len(set(header)) != len(header):
        raise ColumnsError(f"{path}: found the columns {', '.join(header)}, expected each once")
    for line, fields in lines:
        if len(fields) > len(header):
            raise ColumnsError(
                f"{path}, line {line}: found {len(fields)} fields, expected {len(header)}, as the "
                f"first line names them: {', '.join(header)[:200]}"
            )
    return header, {
        name: [fields[place] if place < len(fields) else "" for _, fields in lines]
        for place, name in enumerate(header)
        if name in used
    }


def _read_parquet(path: str | Path, used: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """As _read_csv; a list of ten numbers may be the landmarks."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ColumnsError(
            f"{path}: parquet is read by pyarrow, which is not installed: pip install pyarrow, or "
            "give the columns as a .csv"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        header = list(file.schema_arrow.names)
        names = [name for name in dict.fromkeys(("landmarks", *used)) if name in header]
        twice = any(header.count(name) > 1 for name in names)
        columns = {} if twice else file.read(columns=names).to_pydict()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ColumnsError(f"{path} is no parquet file that can be read: {error}") from error
    if twice:
        raise ColumnsError(f"{path}: found the columns {', '.join(header)}, expected each once")
    found: dict[str, list[str]] = {}
    for name, values in columns.items():
        if name != "landmarks":
            found[name] = list(map(_said, values))
            continue
        points = [_points(value, f"{path}, row {row + 1}") for row, value in enumerate(values)]
        found |= {field: [row[place] for row in points] for place, field in enumerate(POINTS)}
    return header, found


def _points(value: Any, place: str) -> list[str]:
    """Ten numbers of a list, or of five lists of two."""
    if value is None:
        return [""] * len(POINTS)
    numbers = value if isinstance(value, list) else [value]
    if all(isinstance(pair, list) and len(pair) == 2 for pair in numbers):
        numbers = [number for pair in numbers for number in pair]
    if len(numbers) != len(POINTS):
        told = str(value)[:200]
        raise ColumnsError(f"{place}: landmarks are {told}, expected {', '.join(POINTS)}")
    return list(map(_said, numbers))


def _said(value: Any) -> str:
    """As a CSV would have it: nothing for what is not known, which many programs write as NaN."""
    return "" if value is None or value != value else str(value)


def _require_pixels(points: np.ndarray, files: Sequence[str | Path]) -> None:
    """Shares of the image would all lie in its top left corner."""
    if np.nanmax(abs(points), initial=0) <= 2 and not np.isnan(points).all():
        raise ColumnsError(
            f"{', '.join(map(str, files))}: all landmarks are between -2 and 2, as shares of the "
            "image are; expected pixels"
        )
