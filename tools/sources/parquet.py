"""Images from parquet files, row by row; see tools/sources/parquet_columns.py for the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.containers.parquet_columns import (
    NO_IMAGE,
    check_labels,
    class_names,
    image_column_of,
    named_label,
    reading,
)
from pipeline.containers.sample import Sample
from pipeline.passed_over import Passed, PassedOver

_ROWS = 256  # at a time: some MB of images


def read_parquet(
    files: Sequence[Path],
    passed_over: PassedOver,
    *,
    image_column: str | None = None,
    label_column: str = "label",
) -> Iterator[Sample]:
    """Every row of `files` in turn; those without an image or a label are passed over.

    Args:
        files: parquet files with the same columns.
        image_column: None for the only column that can hold images.
        label_column: integers or text.

    Raises:
        RecordError: for a file that is no parquet file, a column that is missing or of another
            type, and a label that the file has no class for; names file and row, counted from 0.
    """
    for path in files:
        with reading(path), pq.ParquetFile(path) as file:
            yield from _read_file(path, file, passed_over, image_column, label_column)


def _read_file(
    path: Path,
    file: pq.ParquetFile,
    passed_over: PassedOver,
    image_column: str | None,
    label_column: str,
) -> Iterator[Sample]:
    schema = file.schema_arrow
    image_column = image_column_of(path, schema, image_column)
    check_labels(path, schema, label_column)
    names = class_names(schema, label_column)
    first = 0
    for batch in file.iter_batches(_ROWS, columns=[image_column, label_column]):
        images = batch.column(image_column)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        labels = batch.column(label_column).to_pylist()
        for row, (image, label) in enumerate(zip(images.to_pylist(), labels), start=first):
            place = f"{path}, row {row}"
            if image is None:
                passed_over.add(Passed(NO_IMAGE, place))
                continue
            if label is None:
                passed_over.add(Passed("row without a label", place))
                continue
            yield Sample(named_label(label, names, place), image, place)
        first += len(batch)
