"""Values beside a set's images, a row an image: landmarks, quality, group, weight.

They are in a CSV or parquet file of the user's own, or in the parquet files that are the set, and
stay there: the set is not rewritten. The first line names the columns; any may be missing:

    name,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5,quality,group,weight

`name` is the image's, as tools/predict.py writes it: the offset of its record in a .rec, its path
in a folder. Without names there is a row for each image, in the set's own order. Landmarks are
pixels, from the middle of the top left one: left eye, right eye, nose, left and right corner of the
mouth, as they lie in the picture. A weight is in [0, 1]. A column of any other name holds numbers.
Only what somebody reads is looked at. What is left empty, or not listed, is not known: NaN, for a
group -1, for a weight 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facestream import UserError
from pipeline.collection import Collection
from pipeline.named_path import check_path
from pipeline.records.index import RecordIndex

if TYPE_CHECKING:  # what imports pyarrow is imported where there is something to read
    from pipeline.side_table import SideTable

NAME = "name"
POINTS = tuple(f"{axis}{number}" for number in range(1, 6) for axis in "xy")
# Right for left: eyes and corners of the mouth change places in a mirror.
_MIRRORED = [1, 0, 2, 4, 3]
_FARTHEST = 1e5  # pixels


class ColumnsError(UserError):
    """A file of side columns that cannot be used: names the row, and how to mend it."""


class SideColumns:
    """The columns of a collection's N records that somebody reads.

    Attributes:
        values: landmarks (N, 5, 2) and weight (N,) float32, group (N,) int64, any other (N,)
            float32; those that there are.
        groups: what the groups are called, by number.
        found: what the files call their columns, of all that are in them.
    """

    def __init__(
        self,
        values: Mapping[str, np.ndarray],
        groups: Sequence[str] = (),
        found: Sequence[str] = (),
    ) -> None:
        self.values, self.groups = dict(values), tuple(groups)
        self.found = tuple(found) or tuple(values)

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
            there = ", ".join(self.found)[:200] or "no column"
            as_numbers = f" (landmarks as {', '.join(POINTS)})" if "landmarks" in missing else ""
            raise ColumnsError(
                f"columns: {reader} needs {' and '.join(missing)}{as_numbers}, found {there}; name "
                "a file that has it"
            )

    def require_size(self, size: int) -> None:
        """Raise ColumnsError where landmarks are not those of images of `size` pixels a side.

        Faces are in the middle of their crops, so landmarks are, on average, too.
        """
        across = self.values.get("landmarks", np.zeros((0, 5, 2), np.float32))[:, :, 0]
        known = across[~np.isnan(across)]
        if len(known) and not size / 3 <= known.mean() <= size * 2 / 3:
            raise ColumnsError(
                f"columns: landmarks are {known.mean():.0f} pixels from the left on average, in "
                f"images of {size}: expected about {size // 2}. They are of images of another "
                "size: give those of the images that are trained on"
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
        parts = []
        for name, rows in self.values.items():
            unknown = rows < 0 if name == "group" else np.isnan(rows).reshape(len(rows), -1).any(1)
            share = f" of {len(rows) - int(unknown.sum()):,} of" if unknown.any() else " of all"
            parts.append(f"{name}{share} {len(rows):,}")
        return "; ".join(parts) or f"found {', '.join(self.found)}, nothing reads them"


def mirrored_landmarks(points: np.ndarray, *, width: int) -> np.ndarray:
    """(B, 5, 2) landmarks of pictures that are mirrored left to right, in the order of a face."""
    swapped = points[:, _MIRRORED].copy()
    swapped[:, :, 0] = width - 1 - swapped[:, :, 0]
    return swapped


def read_columns(
    files: Sequence[str | Path], collection: Collection, names: Sequence[str]
) -> SideColumns:
    """The columns of a set that are in `names`, from a file for each of its files; "" for none.

    Raises:
        PathError: a file that cannot be opened or read, a column twice, what is no number.
        ColumnsError: names that are in no set or twice, a row too few, what is out of range; or
            pyarrow is not installed.
    """
    if len(files) != len(collection.indexes):
        raise ColumnsError(
            f"found {len(files)} files of columns, expected {len(collection.indexes)}: one for "
            'each file of the set, "" for one without'
        )
    rows = [
        _Rows(_read(path, names, index) if str(path) else None, index)
        for path, index in zip(files, collection.indexes)
    ]
    tables = [one.table for one in rows if one.table]
    values: dict[str, np.ndarray] = {}
    groups: list[str] = []
    for name in dict.fromkeys(names):
        if name == "landmarks":
            if any(POINTS[0] in table.wanted for table in tables):
                points = [one.numbers(POINTS, check=_is_place, expected=_PLACE) for one in rows]
                values[name] = collection.kept_values(points).reshape(-1, 5, 2)
                _require_pixels(values[name], files)
        elif not any(name in table.wanted for table in tables):
            continue
        elif name == "group":
            having = [table for table in tables if name in table.wanted]
            groups = sorted(set().union(*(table.distinct(name) for table in having)))
            values[name] = collection.kept_values([one.places(name, groups) for one in rows])
        elif name == "weight":
            weights = [one.numbers((name,), check=_is_weight, expected=_WEIGHT) for one in rows]
            values[name] = np.nan_to_num(collection.kept_values(weights)[:, 0], nan=1.0)
            if not values[name].any():
                raise ColumnsError(
                    f"{', '.join(map(str, files))}: found the weight 0 for every image, with which "
                    "nothing is learned; expected some above 0"
                )
        else:
            values[name] = collection.kept_values([one.numbers((name,)) for one in rows])[:, 0]
    return SideColumns(values, groups, list(dict.fromkeys(n for t in tables for n in t.header)))


_PLACE = "a place in pixels"
_WEIGHT = "a weight in [0, 1]; divide all by the greatest"


def _is_place(values: np.ndarray) -> np.ndarray:
    return abs(values) < _FARTHEST


def _is_weight(values: np.ndarray) -> np.ndarray:
    return (values >= 0) & (values <= 1)


def _read(path: str | Path, names: Sequence[str], index: RecordIndex) -> SideTable:
    expected = "a .csv, a .parquet, or a folder of .parquet files, with columns"
    check_path(path, called=str(path), expected=expected, folder=True)
    try:
        from pipeline.side_table import read_table
    except ImportError as error:
        raise ColumnsError(
            f"{path}: columns are read with pyarrow, which is not installed: pip install pyarrow "
            f"({error})"
        ) from error
    texts = [name for name in names if name == "group"]
    if Path(path).resolve() != index.path.resolve():  # the set's own rows are in its order
        texts.append(NAME)
    numbers = [name for name in names if name not in ("group", "landmarks")]
    lists = {"landmarks": POINTS} if "landmarks" in names else {}
    table = read_table(
        Path(path), texts=texts, numbers=[*numbers, *(POINTS if lists else ())], lists=lists
    )
    points = [name for name in POINTS if name in table.wanted]
    if points and len(points) < len(POINTS):
        raise ColumnsError(
            f"{path} has the columns {', '.join(table.header)[:200]}: expected landmarks as "
            f"{', '.join(POINTS)}"
        )
    return table


class _Rows:
    """For each image of a set, which row of a table is its own; no table has none."""

    def __init__(self, table: SideTable | None, index: RecordIndex) -> None:
        self.table = table
        self._row = np.full(len(index), -1)  # of each image; -1: not listed
        if table is None or not set(table.wanted) - {NAME}:
            return
        if NAME not in table.wanted:
            if table.rows != len(index):
                raise ColumnsError(
                    f"{table.path} has {table.rows} rows and no column {NAME}, {index.path} has "
                    f"{len(index)} images: expected a row for each, in their order, or the column "
                    f"{NAME}. An empty line is no row"
                )
            self._row = np.arange(table.rows)
            return
        images = table.places(NAME, (index.file.name(record) for record in index.records))
        if (images < 0).any():  # data.leave_out and tools/predict.py call those of a .rec so
            names = (f"record {index.file.name(record)}" for record in index.records)
            images = np.maximum(images, table.places(NAME, names))
        if (images < 0).any():
            row = int(np.argmax(images < 0))
            example = index.file.name(index.records[0]) if len(index) else ""
            raise ColumnsError(
                f"{table.place(row)}: {index.path} has no image {table.said(NAME, row)}; expected "
                f"names as {example!r}"
            )
        self._row[images] = np.arange(len(images))
        again = self._row[images] != np.arange(len(images))
        if again.any():
            row = int(np.argmax(again))
            raise ColumnsError(
                f"{table.place(row)}: the image {table.said(NAME, row)} is there again in "
                f"{table.place(int(self._row[images[row]]))}; keep one"
            )

    def numbers(
        self,
        names: Sequence[str],
        *,
        check: Callable[[np.ndarray], np.ndarray] = np.isfinite,
        expected: str = "a finite number",
    ) -> np.ndarray:
        """(images, columns) float32; NaN where nothing stands."""
        found = np.full((len(self._row), len(names)), np.nan, np.float32)
        listed = self._row >= 0
        for at, name in enumerate(names):
            if self.table and name in self.table.wanted:
                values = self.table.numbers(name)
                wrong = ~np.isnan(values) & ~check(values)
                if wrong.any():
                    row = int(np.argmax(wrong))
                    raise ColumnsError(
                        f"{self.table.place(row)}: {name} is {self.table.said(name, row)}, "
                        f"expected {expected}"
                    )
                found[listed, at] = values[self._row[listed]]
        return found

    def places(self, name: str, among: Sequence[str]) -> np.ndarray:
        """(images,) int64: where among some texts an image's own is; -1 where nothing stands."""
        found = np.full(len(self._row), -1)
        listed = self._row >= 0
        if self.table and name in self.table.wanted:
            found[listed] = self.table.places(name, among)[self._row[listed]]
        return found


def _require_pixels(points: np.ndarray, files: Sequence[str | Path]) -> None:
    """Shares of the image would all lie in its top left corner."""
    if np.nanmax(abs(points), initial=0) <= 2 and not np.isnan(points).all():
        raise ColumnsError(
            f"{', '.join(map(str, files))}: all landmarks are between -2 and 2, as shares of the "
            "image are; expected pixels"
        )
