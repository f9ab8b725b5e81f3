"""Images in parquet files, read where they lie: by row groups, of which a few are kept."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.containers.files import Reading
from pipeline.containers.parquet_columns import (
    NO_IMAGE,
    check_labels,
    check_rows,
    class_names,
    image_column_of,
    kind_of,
    label_columns,
    named_label,
    reading,
)
from pipeline.containers.stored import Labels, Spans, Stored, labels_of, state_of
from pipeline.containers.texts import Texts
from pipeline.photos import MOST_BYTES
from pipeline.records.record_file import DataFile
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress

_log = logging.getLogger("facestream.pipeline")

_MOST_TOGETHER = 2 << 30  # bytes of a row group: images of it are in memory together
_KEPT = 512 << 20  # bytes of row groups; at least one is kept
_ROWS_A_BYTE = 64  # of a file: more than any has
_LABELS = 1 << 16  # that are Python objects at one time


def stored_parquet(
    files: Sequence[Path], *, image_column: str | None = None, label_column: str | None = None
) -> Stored:
    """The images of all rows of `files`, named FILE:ROW, rows counted from 0.

    Args:
        image_column: as in read_parquet.
        label_column: likewise; None for the only one that can be, if any: see `label_columns`.

    Raises:
        RecordError: as read_parquet, and for row groups too large to be held in memory.
    """
    rows = Rows(files, image_column)
    with reading(files[0]):
        columns = [label_column] if label_column else label_columns(rows.opened)
    if len(columns) == 1 and columns[0] not in ("label", label_column):
        _log.warning("%s: its labels are in %r, the only column for them", files[0], columns[0])
    labeled = list(zip(files, rows.opened)) if len(columns) == 1 else []
    for path, file in labeled:
        check_labels(path, file.schema_arrow, columns[0])

    def labels() -> Labels | None:
        return labels_of(chain.from_iterable(_identities(*one, columns[0]) for one in labeled))

    if len({path.name for path in files}) < len(files):
        raise RecordError(f"two files are called {files[0].name}: rename one of them")
    names = Texts.of(
        f"{path.name}:{row}" for path, n in zip(files, rows.counts) for row in range(n)
    )
    known_by = f"{state_of(files)} {image_column}"
    would_label = "A column label would, or another one that --label-column names"
    if len(columns) > 1:
        several = " and ".join(map(repr, columns))
        would_label = f"Each of its columns {several} could be the label. {would_label}"
    return Stored(names, rows.image, known_by, labels, rows.spans, would_label)


def open_rows(files: Sequence[DataFile]) -> Callable[[int], bytes]:
    """What reads the image of a row by its offset, as `Stored.spans` has it."""
    return Rows([file.path for file in files], None, [Reading(file) for file in files]).image_at


def column_of(files: Sequence[Path], name: str) -> np.ndarray:
    """(N,) float64, a column of numbers of all rows, NaN where one has none.

    Raises RecordError for a column that is missing or holds no numbers.
    """
    found = []
    for path in files:
        with reading(path), pq.ParquetFile(path) as file:
            kind = kind_of(path, file.schema_arrow, name, role="quality")
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise RecordError(
                    f"{path}: the quality column {name!r} holds {kind}, expected numbers"
                )
            column = file.read(columns=[name]).column(name).cast(pa.float64())
            check_rows(path, file, len(column))
            found.append(column.to_numpy().astype(np.float64))
    return np.concatenate(found)


@dataclass(frozen=True)
class _Group:
    """Rows that are read together.

    Attributes:
        file, number: which file, and which of its row groups.
        first, rows: the place of the first one among all rows, and how many there are.
        begin, size: where their images begin, counted through all files, and how many bytes follow.
    """

    file: int
    number: int
    first: int
    rows: int
    begin: int
    size: int


class Rows:
    """The image of any row; threads may share them, and the last row groups are kept.

    Args:
        contents: of the files, where they are read otherwise than by their paths.

    Attributes:
        opened: the files.
        counts: of their rows.
    """

    def __init__(
        self,
        files: Sequence[Path],
        image_column: str | None,
        contents: Sequence[Reading] | None = None,
    ) -> None:
        self._files, self._lock = files, threading.Lock()
        self._kept: OrderedDict[int, pa.Array] = OrderedDict()
        self._groups: list[_Group] = []
        self._columns: list[str] = []
        self._bytes = 0  # of the files so far
        self.opened: list[pq.ParquetFile] = []
        self.counts: list[int] = []
        opened: Sequence[Path | Reading] = contents or files
        for path, content in zip(files, opened):
            with reading(path):
                self._open(path, content, image_column)
        self._firsts = np.array([group.first for group in self._groups], np.int64)
        self._begins = np.array([group.begin for group in self._groups], np.int64)
        self._starts = np.cumsum([0, *map(_size_of, opened)]).tolist()

    def _open(self, path: Path, content: Path | Reading, image_column: str | None) -> None:
        file, before = pq.ParquetFile(content), sum(self.counts)
        column = image_column_of(path, file.schema_arrow, image_column)
        if pa.types.is_struct(file.schema_arrow.field(column).type):
            column += ".bytes"
        rows = 0
        for number in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(number)
            begin, size = _check_size(path, _size_of(content), about, column)
            at = len(self.opened), number, before + rows, about.num_rows, self._bytes + begin, size
            self._groups.append(_Group(*at))
            rows += about.num_rows
        if rows != file.metadata.num_rows:
            raise RecordError(f"{path} is damaged: its row groups are not its rows")
        self._bytes += _size_of(content)
        self.opened.append(file)
        self.counts.append(rows)
        self._columns.append(column)

    def image(self, place: int) -> bytes:
        """The encoded image of a row. Raises RecordError where there is none, or none is read."""
        at = int(np.searchsorted(self._firsts, place, side="right")) - 1
        return self._image(at, place - self._groups[at].first)

    def image_at(self, offset: int) -> bytes:
        """The same by the offset that `spans` gives to the row."""
        at = int(np.searchsorted(self._begins, offset, side="right")) - 1
        return self._image(at, offset - self._groups[at].begin)

    def spans(self, progress: Progress | None = None) -> Spans:
        """Where the images lie: as they are, where nothing has packed them.

        A row's offset is that of its row group's images, and as many bytes on as rows are before
        it: it tells which row it is. Where its image does not lie there as it is, header is 0.
        """
        offset, header, length = np.zeros((3, sum(self.counts)), np.int64)
        for done, group in enumerate(self._groups):
            rows = slice(group.first, group.first + group.rows)
            offset[rows] = group.begin + np.arange(group.rows)
            images = [value.as_py() or b"" for value in self._read(group)]
            if any(images[group.size :]):  # offsets would reach into the next row group
                raise RecordError(
                    f"{self._files[group.file]} has {group.rows:,} rows in {group.size:,} bytes of "
                    "a row group: expected images that take more. Write it again with a smaller "
                    "row_group_size"
                )
            length[rows] = [len(image) for image in images]
            header[rows] = self._places(group, images) - np.arange(group.rows)
            header[rows][header[rows] < 0] = 0
            if progress:
                progress(done + 1, len(self._groups))
        return Spans(offset, header, length)

    def _places(self, group: _Group, images: Sequence[bytes]) -> np.ndarray:
        """(rows,) int64: where each image lies in the bytes of its row group, 0 if it does not.

        Bytes that are the image's are the image, however the file is laid out.
        """
        begin = group.begin - self._starts[group.file]
        with self._files[group.file].open("rb") as file:
            file.seek(begin)
            content = file.read(group.size)
        places, after = np.zeros(len(images), np.int64), 0
        for row, image in enumerate(images):
            at = content.find(image, after) if image else 0
            if at < 0:  # it was stored once, before, for two rows
                at = content.find(image)
            if at < 0:  # packed, and so are the others
                return np.zeros(len(images), np.int64)
            places[row], after = at, max(after, at + len(image))
        return places

    def _image(self, at: int, row: int) -> bytes:
        with self._lock:
            if at not in self._kept:
                self._kept[at] = self._read(self._groups[at])
                while len(self._kept) > 1 and self._kept_bytes() > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(at)
            value = self._kept[at][row]
        image = value.as_py()
        if image is None:
            raise RecordError(f"is none: {NO_IMAGE}")
        if len(image) > MOST_BYTES:
            raise RecordError(f"has {len(image):,} bytes, more than an image has")
        return image

    def _kept_bytes(self) -> int:
        return sum(images.nbytes for images in self._kept.values())

    def _read(self, group: _Group) -> pa.ChunkedArray:
        try:
            column = self._columns[group.file]
            table = self.opened[group.file].read_row_group(group.number, columns=[column])
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise RecordError(f"cannot be read: {error}") from error
        if len(table) != group.rows:
            raise RecordError("cannot be read: its row group has other rows than it says")
        images = table.column(0)
        return pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images


def _size_of(content: Path | Reading) -> int:
    return content.size if isinstance(content, Reading) else content.stat().st_size


def _check_size(
    path: Path, file_size: int, about: pq.RowGroupMetaData, column: str
) -> tuple[int, int]:
    """Where the images of a row group begin in the file, and how many bytes they take there.

    Raises RecordError where they are more than can be held in memory.
    """
    if not 0 <= about.num_rows <= _ROWS_A_BYTE * file_size:
        raise RecordError(f"{path} is damaged: it says it has {about.num_rows:,} rows")
    parts = [about.column(i) for i in range(about.num_columns)]
    images = next((part for part in parts if part.path_in_schema == column), None)
    if images is None:
        raise RecordError(f"{path} is damaged: a row group has no images")
    size = images.total_uncompressed_size
    if size > _MOST_TOGETHER:
        raise RecordError(
            f"{path} has {about.num_rows:,} rows in one row group, {size:,} bytes of images that "
            "are in memory together: write it again with a row_group_size of 1000"
        )
    begin = min(filter(None, (images.dictionary_page_offset, images.data_page_offset)))
    return begin, images.total_compressed_size


def _identities(path: Path, file: pq.ParquetFile, column: str) -> Iterator[int | str]:
    """Of all rows, "" for none."""
    names, read = class_names(file.schema_arrow, column), 0
    with reading(path):
        for batch in file.iter_batches(_LABELS, columns=[column]):
            for row, label in enumerate(batch.column(0).to_pylist(), start=read):
                yield "" if label is None else named_label(label, names, f"{path}, row {row}")
            read += len(batch)
    check_rows(path, file, read)
