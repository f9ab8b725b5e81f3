"""What columns of parquet files hold: images, labels and their names.

The image column is a struct {bytes, path} or plain binary, as Hugging Face's datasets have it; the
label column holds integers or text. Names that the files give to integer labels (ClassLabel) become
the names of the identities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.named_path import MALFORMED, mendable
from pipeline.records.recordio import RecordError

NO_IMAGE = "row without an image (a data set of paths must embed its images first)"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around the reading of a file: what is wrong with it is a RecordError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path} cannot be read as parquet: {_why_and_remedy(path, error)}"
        ) from error


def check_rows(path: Path, file: pq.ParquetFile, read: int) -> None:
    """Raise RecordError unless so many rows were read of a column as the file says it has: of a
    damaged page Arrow may leave rows out without a word, and all after them would move up."""
    if read != file.metadata.num_rows:
        raise RecordError(
            f"{path} is damaged: of {file.metadata.num_rows:,} rows in a column, {read:,} can be "
            "read. Download or write it again"
        )


def named_label(label: int | str, names: list[str] | None, place: str) -> int | str:
    """A label by the name that the file gives to the number, if it gives names.

    Args:
        place: of the row, for the error.

    Raises RecordError for a number that has no name.
    """
    if names is None:
        return label
    assert isinstance(label, int)
    if not 0 <= label < len(names):
        raise RecordError(
            f"{place}: label {label}, but the file names {len(names)} classes: expected one of "
            "these"
        )
    return names[label]


def image_column_of(path: Path, schema: pa.Schema, name: str | None) -> str:
    """The column of images: the one named, or the only one that can be.

    Raises RecordError where it is missing, holds something else, or is one of several.
    """
    name = name or _only_image_column(path, schema)
    kind = kind_of(path, schema, name, role="image")
    if not _holds_images(kind):
        raise _of_another_kind(path, name, kind, "image", "binary or a struct {bytes, path}")
    return name


def check_labels(path: Path, schema: pa.Schema, name: str) -> None:
    """Raise RecordError unless the column `name` is there and holds integers or text."""
    kind = kind_of(path, schema, name, role="label")
    if not _holds_labels(kind):
        raise _of_another_kind(path, name, kind, "label", "integers or text")


def label_columns(files: Sequence[pq.ParquetFile]) -> list[str]:
    """The columns of some files that may hold the labels: `label`, or the only ClassLabel, or
    those of integers or text in which some value comes twice; others name images."""
    schema = files[0].schema_arrow if files else pa.schema([])
    if "label" in schema.names:
        return ["label"]
    fitting = [field.name for field in schema if _holds_labels(field.type)]
    named = [name for name in fitting if class_names(schema, name) is not None]
    if len(named) == 1:
        return named
    return [name for name in fitting if any(_repeats(file, name) for file in files)]


def _repeats(file: pq.ParquetFile, name: str) -> bool:
    if name not in file.schema_arrow.names:
        return False
    values = file.read(columns=[name]).column(name)
    return len(values.unique()) < len(values)


def kind_of(path: Path, schema: pa.Schema, name: str, *, role: str) -> pa.DataType:
    """What a column holds. Raises RecordError where there is none of this name.

    Args:
        role: what it is to hold, for the error.
    """
    if schema.names.count(name) > 1:
        raise RecordError(f"{path} has {schema.names.count(name)} columns {name!r}: expected one")
    if name not in schema.names:
        raise RecordError(
            f"{path} has no column {name!r}: found {', '.join(schema.names)}. Name the {role} "
            f"column with --{role}-column"
        )
    return schema.field(name).type


def class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """The names that the metadata of Hugging Face's datasets give to integer labels, if any."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][label_column]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else None
    except MALFORMED:
        return None
    if not isinstance(names, list) or not pa.types.is_integer(schema.field(label_column).type):
        return None
    return [str(name) for name in names]


def _why_and_remedy(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:  # of the system; Arrow's own have no number
        error.filename = error.filename or str(path)
        return str(mendable(error))
    return f"{str(error).rstrip('. ')}. Download or write it again"


def _of_another_kind(
    path: Path, name: str, kind: pa.DataType, role: str, expected: str
) -> RecordError:
    return RecordError(
        f"{path}: the {role} column {name!r} holds {kind}, expected {expected}. Name another with "
        f"--{role}-column"
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_binary(kind.field(at).type)
    return _is_binary(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _only_image_column(path: Path, schema: pa.Schema) -> str:
    fitting = [field.name for field in schema if _holds_images(field.type)]
    if len(fitting) != 1:
        raise RecordError(
            f"{path}: of its columns {', '.join(schema.names)}, {len(fitting)} can hold images, "
            "expected one: name it with --image-column"
        )
    return fitting[0]
