"""Images from parquet files, in the layout of Hugging Face's datasets.

The image column is a struct {bytes, path} or plain binary; the label column holds integers or
text. Names that the files give to integer labels (ClassLabel) become the names of the identities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.named_path import MALFORMED
from pipeline.records.recordio import RecordError
from tools.sources.passed_over import Passed, PassedOver
from tools.sources.sample import Sample

_ROWS = 256  # at a time: some MB of images
_NO_IMAGE = "row without an image (a data set of paths must embed its images first)"


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
        try:
            with pq.ParquetFile(path) as file:
                yield from _read_file(path, file, passed_over, image_column, label_column)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise RecordError(f"{path} cannot be read as parquet: {error}") from error


def _read_file(
    path: Path,
    file: pq.ParquetFile,
    passed_over: PassedOver,
    image_column: str | None,
    label_column: str,
) -> Iterator[Sample]:
    schema = file.schema_arrow
    image_column = image_column or _only_image_column(path, schema)
    image_kind = _kind_of(path, schema, image_column, role="image")
    label_kind = _kind_of(path, schema, label_column, role="label")
    for name, kind, fits, role, expected in (
        (image_column, image_kind, _holds_images, "image", "binary or a struct {bytes, path}"),
        (label_column, label_kind, _holds_labels, "label", "integers or text"),
    ):
        if not fits(kind):
            raise RecordError(
                f"{path}: the {role} column {name!r} holds {kind}, expected {expected}. Name "
                f"another with --{role}-column"
            )
    names = _class_names(schema, label_column)
    first = 0
    for batch in file.iter_batches(_ROWS, columns=[image_column, label_column]):
        images = batch.column(image_column)
        if pa.types.is_struct(images.type):
            images = pc.struct_field(images, "bytes")
        labels = batch.column(label_column).to_pylist()
        for row, (image, label) in enumerate(zip(images.to_pylist(), labels), start=first):
            place = f"{path}, row {row}"
            if image is None:
                passed_over.add(Passed(_NO_IMAGE, place))
                continue
            if label is None:
                passed_over.add(Passed("row without a label", place))
                continue
            if names is not None:
                if not 0 <= label < len(names):
                    raise RecordError(
                        f"{place}: label {label}, but the file names {len(names)} classes: "
                        "expected one of these"
                    )
                label = names[label]
            yield Sample(label, image, place)
        first += len(batch)


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


def _kind_of(path: Path, schema: pa.Schema, name: str, *, role: str) -> pa.DataType:
    if name not in schema.names:
        raise RecordError(
            f"{path} has no column {name!r}: found {', '.join(schema.names)}. Name the {role} "
            f"column with --{role}-column"
        )
    return schema.field(name).type


def _class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
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
