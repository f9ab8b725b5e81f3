"""Embeddings in a folder, with names and norms: written whole, read by memory map.

A folder has names.txt (one a line), about.json (the model and how they were made) and, by the form
that was asked for, embeddings.npy and norms.npy, or both in embeddings.safetensors, or names and
both in embeddings.parquet. What else is known of the images, such as labels, lies as norms do.
about.json is written last: without it a folder is unfinished.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.features import Features
from facestream import UserError
from pipeline.named_path import MALFORMED, check_path, read_text
from pipeline.whole_file import write_whole, writing_whole

FORMAT = 1
FORMS = ("npy", "parquet", "safetensors")
_ABOUT, _NAMES, _ROWS = "about.json", "names.txt", "embeddings.npy"
IDENTITIES = "identities.txt"
_FURTHER = ("labels", "quality")  # columns that a folder may have beside norms
_OF_PARQUET = {"norms": "norm", "labels": "label"}  # names of columns there
_OF_SAFETENSORS = {"float16": "F16", "float32": "F32", "int64": "I64"}
_BLOCK = 1 << 14  # rows at a time


class PredictedError(UserError):
    """A folder of embeddings that cannot be written or read: says why, and how to mend it."""


@dataclass(frozen=True)
class About:
    """What the embeddings of a folder are.

    Attributes:
        model: as it was named.
        digest: of its weights.
        network: "iresnet50", or "onnx".
        given: what it makes of the pixels, in words.
        precision: that it computed in.
        source: of the images, as it was named.
        flip: whether the mirror image's embedding is added.
        normalized: whether rows have unit length.
        dtype: "float32" or "float16".
        damaged: what is wrong with which images, by name: their rows are zeros.
        space: of the embeddings: those of one space can be compared; older folders have none.
    """

    model: str
    digest: str
    network: str
    given: str
    precision: str
    source: str
    flip: bool
    normalized: bool
    dtype: str
    damaged: dict[str, str]
    space: str = ""


@dataclass(frozen=True)
class Predicted:
    """A folder of embeddings, read.

    Attributes:
        embeddings: (N, D) float32 or float16, mapped from the file.
        names: of each.
        about: what they are.
    """

    embeddings: np.ndarray
    names: Sequence[str]
    about: About


def write_predicted(
    folder: Path,
    features: Features,
    names: Sequence[str],
    about: About,
    *,
    form: str = "npy",
    labels: np.ndarray | None = None,
    identities: Sequence[str] | None = None,
    quality: np.ndarray | None = None,
) -> list[Path]:
    """Write a folder of embeddings; returns the files.

    Args:
        features: as they were made; they are normalized and cast here, as `about` says.
        form: one of FORMS.
        labels: (N,) int64, who is who, -1 for none; None where that is not known.
        identities: what the labels from 0 on are called, where they are called something.
        quality: (N,) float32, of each image; None where none is known.

    Raises:
        PredictedError: a name with a line break, values too large for float16, no pyarrow.
        OSError: a folder that cannot be written.
    """
    check_names(names)
    check_names(identities or ())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _ABOUT).unlink(missing_ok=True)  # the old embeddings are replaced one by one
    for old in (IDENTITIES, *(f"{name}.npy" for name in _FURTHER)):
        (folder / old).unlink(missing_ok=True)
    columns = {"norms": np.ascontiguousarray(features.norms, np.float32)}
    if labels is not None:
        columns["labels"] = labels
    if quality is not None:
        columns["quality"] = quality
    write: dict[str, Callable[..., list[Path]]] = {
        "npy": _write_npy,
        "parquet": partial(_write_parquet, names=names),  # which has them beside the embeddings
        "safetensors": _write_safetensors,
    }
    files = write[form](folder, features, about, columns)
    if identities is not None:
        files.append(_write_lines(folder / IDENTITIES, identities))
    files.append(_write_lines(folder / _NAMES, names))
    counts = {"images": len(names), "dimension": features.embeddings.shape[1]}
    said = json.dumps({"format": FORMAT, **counts, **asdict(about)}, indent=2)
    write_whole(folder / _ABOUT, said + "\n")
    return [*files, folder / _ABOUT]


def check_names(names: Sequence[str]) -> None:
    """Raise PredictedError for a name that does not fit into one line of a file."""
    broken = next((name for name in names if "\n" in name or "\r" in name), None)
    if broken is not None:
        raise PredictedError(f"{broken!r} has a line break in its name: rename the file")


def read_predicted(folder: Path) -> Predicted:
    """A folder that was written as npy.

    Raises:
        PredictedError, PathError: no such folder, an unfinished or damaged one, or another form.
    """
    check_path(folder, called=str(folder), expected="a folder", file=False, folder=True)
    if not (folder / _ABOUT).is_file():
        raise PredictedError(
            f"{folder} has no {_ABOUT}: expected a folder that tools/predict.py has finished. Run "
            "it again: it goes on from where it was stopped"
        )
    if not (folder / _ROWS).is_file():
        raise PredictedError(
            f"{folder} has no {_ROWS}: run tools/predict.py again with --format npy"
        )
    try:
        said = json.loads(read_text(folder / _ABOUT))
        version, images, dimension = (said.pop(key) for key in ("format", "images", "dimension"))
        if version != FORMAT:
            raise ValueError(f"format {version}, expected {FORMAT}")
        about = About(**said)
        text = (folder / _NAMES).read_bytes().decode(errors="surrogateescape")
        names = text.split("\n")[:-1]
        rows = np.load(folder / _ROWS, mmap_mode="r", allow_pickle=False)
        if not (len(names) == images and rows.shape == (images, dimension)):
            raise ValueError(
                f"{_ABOUT} says {images} × {dimension}, found {len(names)} names and embeddings "
                f"{rows.shape}"
            )
    except (*MALFORMED, EOFError) as error:
        raise PredictedError(
            f"{folder} is damaged ({error}): copy it again, or run tools/predict.py again"
        ) from error
    return Predicted(rows, names, about)


def _blocks(features: Features, about: About) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows as they are to be written, some at a time."""
    for start in range(0, len(features.embeddings), _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = np.asarray(features.embeddings[block])
        if about.normalized:
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(lengths > 0, lengths, 1)
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(rows, about.dtype)
        if not np.isfinite(rows).all():
            raise PredictedError("embeddings are too large for float16: write --dtype float32")
        yield block, rows


def _write_lines(path: Path, lines: Sequence[str]) -> Path:
    text = "".join(f"{line}\n" for line in lines)
    write_whole(path, text.encode(errors="surrogateescape"))
    return path


def _write_npy(
    folder: Path, features: Features, about: About, columns: Mapping[str, np.ndarray]
) -> list[Path]:
    with writing_whole(folder / _ROWS) as file:
        header = {
            "descr": np.dtype(about.dtype).str,
            "fortran_order": False,
            "shape": features.embeddings.shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        for _, rows in _blocks(features, about):
            file.write(rows.tobytes())
    written = [folder / _ROWS]
    for name, column in columns.items():
        written.append(folder / f"{name}.npy")
        with writing_whole(written[-1]) as file:
            np.save(file, column)
    return written


def _write_safetensors(
    folder: Path, features: Features, about: About, columns: Mapping[str, np.ndarray]
) -> list[Path]:
    count, dimension = features.embeddings.shape
    ends = count * dimension * np.dtype(about.dtype).itemsize
    described: dict[str, Any] = {
        "__metadata__": {"model": about.model, "digest": about.digest},
        "embeddings": {
            "dtype": _OF_SAFETENSORS[about.dtype],
            "shape": [count, dimension],
            "data_offsets": [0, ends],
        },
    }
    for name, column in columns.items():
        described[name] = {
            "dtype": _OF_SAFETENSORS[str(column.dtype)],
            "shape": [count],
            "data_offsets": [ends, ends + column.nbytes],
        }
        ends += column.nbytes
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)  # what follows is aligned
    path = folder / "embeddings.safetensors"
    with writing_whole(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _, rows in _blocks(features, about):
            file.write(rows.tobytes())
        for column in columns.values():
            file.write(column.tobytes())
    return [path]


def _write_parquet(
    folder: Path,
    features: Features,
    about: About,
    columns: Mapping[str, np.ndarray],
    *,
    names: Sequence[str],
) -> list[Path]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise PredictedError(f"parquet needs pyarrow: pip install pyarrow ({error})") from error
    dimension = features.embeddings.shape[1]
    value = pa.from_numpy_dtype(np.dtype(about.dtype))
    kinds = {"name": pa.string(), "embedding": pa.list_(value, dimension)} | {
        _OF_PARQUET.get(name, name): pa.from_numpy_dtype(column.dtype)
        for name, column in columns.items()
    }
    schema = pa.schema(list(kinds.items()))
    path = folder / "embeddings.parquet"
    with writing_whole(path) as file, pq.ParquetWriter(file, schema) as writer:
        for block, rows in _blocks(features, about):
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dimension)
            named = [name.encode(errors="replace").decode() for name in names[block]]
            others = [pa.array(column[block]) for column in columns.values()]
            table = [pa.array(named, pa.string()), embedding, *others]
            writer.write_table(pa.Table.from_arrays(table, schema=schema))
    return [path]
