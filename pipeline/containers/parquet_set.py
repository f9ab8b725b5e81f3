"""Parquet files trained on as they lie.

Images that lie in a file as they are (no compression) are read by their places, with no more than
that file. Others are read by row groups, of which a few are kept: with data.order=block and a
window of few blocks that is fast, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType

import numpy as np

from facestream import UserError
from pipeline.containers.archive import columns_as_named, scan_archive
from pipeline.containers.content import Content, ImageNames
from pipeline.containers.files import FilesEndToEnd
from pipeline.containers.shards import shards_of
from pipeline.containers.stored import state_of
from pipeline.passed_over import PassedOver
from pipeline.records.scan import Progress

_log = logging.getLogger("facestream.pipeline")


def parquet_state(path: Path) -> str:
    return state_of(shards_of(path, ".parquet"))


def scan_parquet(path: Path, passed_over: PassedOver, progress: Progress | None = None) -> Content:
    """As scan_archive, of a file or a folder of them; UserError where pyarrow is not installed."""
    images = _reader()
    with columns_as_named():
        stored = images.stored_parquet(shards_of(path, ".parquet"))
        content = scan_archive(str(path), stored, passed_over, progress)
    packed = int((content.records["header"] == 0).sum())
    if packed:
        _log.warning(
            "%s: %d of its images are compressed, so that each is read with its row group, which "
            "is slow: train in block order with windows of 8 blocks (docs/data.md), or write it "
            "again with compression=None for the images",
            path,
            packed,
        )
    return content


def parquet_store(path: Path, content: Content) -> ParquetImages:
    return ParquetImages(shards_of(path, ".parquet"), ImageNames(content))


class ParquetImages(FilesEndToEnd):
    """The images in parquet files; those with header 0 are read with their row group."""

    def __init__(self, paths: Sequence[Path], names: ImageNames) -> None:
        super().__init__(paths, names)
        self._lock = Lock()
        self._opened: Callable[[int], bytes] | None = None

    def sources(self, records: np.ndarray) -> list[Callable[[], bytes]]:
        sources = super().sources(records)
        for at in np.flatnonzero(records["header"] == 0).tolist():
            sources[at] = partial(self._row, int(records["offset"][at]))
        return sources

    def _row(self, offset: int) -> bytes:
        with self._lock:
            if self._opened is None:
                self._opened = _reader().open_rows(self.files)
        return self._opened(offset)


def _reader() -> ModuleType:
    """The module that reads parquet, which takes pyarrow."""
    try:
        return import_module("pipeline.containers.parquet_images")
    except ImportError as error:
        raise UserError(
            f"parquet is read with pyarrow, which is not installed: pip install pyarrow ({error})"
        ) from error
