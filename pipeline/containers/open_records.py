"""Opens a set of any form: its index is read, or made where there is none of this state."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.containers.content import Content
from pipeline.containers.folder import FolderImages, folder_state, scan_folder
from pipeline.containers.forms import form_of
from pipeline.containers.lmdb_images import lmdb_state, lmdb_store, scan_lmdb
from pipeline.containers.parquet_set import parquet_state, parquet_store, scan_parquet
from pipeline.containers.set_index import (
    SetIndex,
    index_in_use,
    read_set_indexes,
    write_set_index,
)
from pipeline.containers.texts import Texts
from pipeline.containers.webdataset import scan_tars, tar_state, tar_store
from pipeline.containers.zip_images import scan_zip, zip_state, zip_store
from pipeline.passed_over import PassedOver
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.recordio import RecordError
from pipeline.records.scan import Progress
from pipeline.records.store import Store

_SHOWN = 3  # identities that are named

_log = logging.getLogger("facestream.pipeline")


class Form(NamedTuple):
    """How sets of one form are read.

    Attributes:
        state: it changes where the set does, as far as that is seen without reading images.
        scan: looks through the whole set.
        store: reads what was found.
    """

    state: Callable[[Path], str]
    scan: Callable[[Path, PassedOver, Progress | None], Content]
    store: Callable[[Path, Content], Store]


FORMS = {
    "folder": Form(folder_state, scan_folder, FolderImages),
    "zip": Form(zip_state, scan_zip, zip_store),
    "lmdb": Form(lmdb_state, scan_lmdb, lmdb_store),
    "tar": Form(tar_state, scan_tars, tar_store),
    "parquet": Form(parquet_state, scan_parquet, parquet_store),
}


def open_records(path: str | Path, progress: Progress | None = None) -> RecordIndex:
    """Open a .rec or a set of another form (forms.py), making its index when needed.

    Args:
        progress: of a scan, is called with (done, in all), of bytes or of folders.

    Raises:
        RecordError: a set that cannot be read, has no images, or has other identities than when
            its index was made, so that labels would move.
        PathError: a path that cannot be opened.
    """
    path = Path(path)
    kind = form_of(path)
    if kind == "rec":
        return open_index(path, progress)
    form = FORMS[kind]
    state, indexes = form.state(path), read_set_indexes(path)
    for index in indexes:
        if index.state == state:
            store = form.store(path, index.content)
            if store.fingerprint == index.fingerprint:
                return _opened(path, index.content, store)
    return make_index(path, progress, before=index_in_use(path, indexes))


def make_index(
    path: Path, progress: Progress | None = None, *, before: SetIndex | None = None
) -> RecordIndex:
    """Look through a set that is no .rec, and write its index.

    Args:
        before: an index that was made of it before, whose labels it must keep.

    Raises RecordError as `open_records`.
    """
    form, passed_over = FORMS[form_of(path)], PassedOver()
    state = form.state(path)  # first: what is added meanwhile is seen at the next start
    content = form.scan(path, passed_over, progress)
    if before:
        _check_names(path, before, content.names)
    for line in passed_over.lines():
        _log.warning("%s: passed over: %s", path, line)
    store = form.store(path, content)
    try:
        write_set_index(path, content, state=state, fingerprint=store.fingerprint)
    except OSError as error:
        _log.warning("%s will be looked through again at the next start: no index, %s", path, error)
    return _opened(path, content, store)


def _opened(path: Path, content: Content, store: Store) -> RecordIndex:
    return RecordIndex(
        path, content.records, content.summary, file=store, names=content.names or None
    )


def _check_names(path: Path, index: SetIndex, names: Texts) -> None:
    before = index.content.names
    if np.array_equal(before.ends, names.ends) and np.array_equal(before.content, names.content):
        return
    old, new = set(before), set(names)
    changes = [
        f"{len(some)} {how} ({', '.join(sorted(some)[:_SHOWN])}{', …' * (len(some) > _SHOWN)})"
        for how, some in (("new", new - old), ("gone", old - new))
        if some
    ]
    raise RecordError(
        f"{path} has {len(names)} identities, and had {len(before)} when {index.file} was made: "
        f"{', '.join(changes)}. Labels are places in the order of the names, so they would move, "
        f"and a run that goes on would take one person for another. Put it back as it was; or, for "
        f"a new run, number them again: `python tools/rec2idx.py {path}`"
    )
