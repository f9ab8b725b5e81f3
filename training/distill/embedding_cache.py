"""What a frozen network makes of every image of a .rec, kept in a file beside the index's sidecar.

`train.<teacher>.fsemb` is 4096 bytes of JSON about both, then a row of float16 for each image, in
the order of the records. One that is being written has another name, and its length says how far
it has got. The teacher is known here by a fingerprint alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from facestream import UserError
from pipeline.collection import Collection
from pipeline.named_path import MALFORMED
from pipeline.records.index import RecordIndex
from pipeline.records.record_file import map_bytes
from pipeline.records.sidecar import output_folder, sidecar_folders
from pipeline.sync import sync
from pipeline.whole_file import replace

CACHE_SUFFIX = ".fsemb"
_FORMAT = "facestream-embeddings-1"
_PREAMBLE = 4096
_REMEDY = "Run `python tools/cache_teacher.py CONFIG`, or set distill.cached=false"


class EmbeddingCacheError(UserError):
    """Cached embeddings that are not there, or not of this file and this teacher."""


class CachedEmbeddings:
    """Looks up the embeddings of a collection's records; `embedding_dim` is their length.

    Raises EmbeddingCacheError where a file of the collection has none of this teacher.
    """

    def __init__(self, records: Collection, *, teacher: str) -> None:
        self._records = records
        self._rows = {index: open_embeddings(index, teacher=teacher) for index in records.indexes}
        self.embedding_dim = next(iter(self._rows.values())).shape[1]

    def __call__(self, records: np.ndarray) -> np.ndarray:
        """(B,) int64 record numbers of the collection to (B, D) float16."""
        found = np.empty((len(records), self.embedding_dim), np.float16)
        for place, i in enumerate(records.tolist()):
            index, record = self._records.locate(i)
            found[place] = self._rows[index][record]
        return found


def open_embeddings(index: RecordIndex, *, teacher: str) -> np.ndarray:
    """The embeddings of all records of a .rec, (N, D) float16, memory-mapped."""
    name = _cache_name(index, teacher)
    for folder in sidecar_folders(index.path):
        if (folder / name).is_file():
            return _read(folder / name, index, teacher)
    others = [
        str(path)
        for folder in sidecar_folders(index.path)
        for path in sorted(folder.glob(f"{index.path.stem}.*{CACHE_SUFFIX}"))
    ]
    instead = f"; other teachers' are there: {', '.join(others)}" if others else ""
    raise EmbeddingCacheError(
        f"{index.path} has no embeddings of the teacher {teacher} ({name}){instead}. {_REMEDY}"
    )


def write_embeddings(
    index: RecordIndex,
    rows_from: Callable[[int], Iterable[np.ndarray]],
    *,
    teacher: str,
    embedding_dim: int,
) -> Path:
    """Write the cache of a .rec, complete or not at all; returns its path.

    What an interrupted run has written is kept, and resumed from.

    Args:
        index: of the .rec file.
        rows_from: yields the embeddings from a record number on, (n, embedding_dim) floats at a
            time.
        teacher: its fingerprint.

    Raises:
        EmbeddingCacheError: for embeddings that are not finite in float16.
    """
    target = output_folder(index.path) / _cache_name(index, teacher)
    unfinished = target.with_name(target.name + ".unfinished")
    about = _about(index, teacher) | {"dim": embedding_dim}
    preamble = json.dumps(about).encode().ljust(_PREAMBLE - 1) + b"\n"
    done = _rows_written(unfinished, preamble, embedding_dim)
    with unfinished.open("r+b" if done else "wb") as file:
        file.write(preamble)
        file.truncate(_PREAMBLE + 2 * embedding_dim * done)
        file.seek(0, os.SEEK_END)
        for rows in rows_from(done):
            with np.errstate(over="ignore"):
                halves = rows.astype(np.float16)
            if not np.isfinite(halves).all():
                raise EmbeddingCacheError(
                    f"the teacher's embeddings of records {done} to {done + len(rows) - 1} of "
                    f"{index.path} are not finite in float16: is it the right network, and is "
                    "it given the pixels that it expects?"
                )
            file.write(halves.tobytes())
            file.flush()
            done += len(rows)
        assert done == len(index), "rows_from yields one row for each record"
        sync(file.fileno())
    replace(unfinished, target)
    return target


def _cache_name(index: RecordIndex, teacher: str) -> str:
    return f"{index.path.stem}.{teacher}{CACHE_SUFFIX}"


def _about(index: RecordIndex, teacher: str) -> dict[str, Any]:
    """What a cache must say of itself to be used for this file and this teacher."""
    rec = index.file.fingerprint
    return {"format": _FORMAT, "rec": rec, "teacher": teacher, "records": len(index)}


def _rows_written(unfinished: Path, preamble: bytes, embedding_dim: int) -> int:
    """Whole rows of an unfinished file; none where it was begun for something else."""
    if not unfinished.is_file():
        return 0
    with unfinished.open("rb") as file:
        same = file.read(_PREAMBLE) == preamble
    return (unfinished.stat().st_size - _PREAMBLE) // (2 * embedding_dim) if same else 0


def _read(path: Path, index: RecordIndex, teacher: str) -> np.ndarray:
    with path.open("rb") as file:
        preamble = file.read(_PREAMBLE)
    try:
        about = json.loads(preamble)
        dim = int(about.pop("dim"))
    except MALFORMED as error:
        raise EmbeddingCacheError(f"{path} is no cache of embeddings. {_REMEDY}") from error
    expected = _about(index, teacher)
    for key, value in expected.items():
        if about.get(key) != value:
            raise EmbeddingCacheError(
                f"{path} was made of something else: its {key} is {about.get(key)!r}, expected "
                f"{value!r} for {index.path}. {_REMEDY}"
            )
    size = _PREAMBLE + 2 * dim * len(index)
    if path.stat().st_size != size:
        raise EmbeddingCacheError(
            f"{path} has {path.stat().st_size} bytes, expected {size}: it is cut off. Remove it. "
            + _REMEDY
        )
    return map_bytes(path, offset=_PREAMBLE).view(np.float16).reshape(-1, dim)
