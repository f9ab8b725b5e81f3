"""Which form a set has, found by looking."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.containers.shards import files_in
from pipeline.lmdb_file import find_lmdb
from pipeline.named_path import check_path, is_folder
from pipeline.records.recordio import RecordError

EXPECTED = (
    "a .rec file or the folder of its train.rec, a folder with a folder for each identity, a .zip "
    "of one, an LMDB, or .parquet or .tar files (WebDataset) or a folder of these"
)
_PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_SHARDS = {"tar": ".tar", "parquet": ".parquet"}
_LOOKED_INTO = 8  # folders


def form_of(path: Path, *, called: str = "") -> str:
    """rec, folder, zip, lmdb, tar or parquet; a file is a .rec unless its name says otherwise.

    Args:
        called: the path with the setting that names it, for the errors.

    Raises:
        PathError: a path that cannot be opened.
        RecordError: a folder that is none of these, or could be several.
    """
    called = called or str(path)
    check_path(path, called=called, expected=EXPECTED, folder=True)
    if not path.is_dir():
        return _form_of_file(path, called)
    if (path / "train.rec").is_file():
        return "rec"
    found = {}
    if find_lmdb(path):
        found["lmdb"] = "an LMDB (data.mdb)"
    for form, suffix in _SHARDS.items():
        if shards := files_in(path, suffix):
            found[form] = f"{len(shards)} {suffix} files, such as {shards[0].name}"
    folders = _folders(path)
    if folders and (not found or any(map(_has_images, folders[:_LOOKED_INTO]))):
        found["folder"] = f"folders of images, such as {Path(folders[0]).name}"
    if len(found) == 1:
        return next(iter(found))
    if found:
        raise RecordError(
            f"{called} could be several sets: it holds {' and '.join(found.values())}. Expected "
            "one: name a file in it, or move the others elsewhere"
        )
    packed = next((one.name for one in sorted(path.iterdir()) if one.suffix in _PACKED), "")
    raise RecordError(
        f"{called} holds no train.rec, and no folders of images"
        f"{f', but {packed}, which is packed as a whole' if packed else ''}: expected {EXPECTED}. "
        f"{'Unpack it first' if packed else 'Check the path'}"
    )


def _form_of_file(path: Path, called: str) -> str:
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise RecordError(
            f"{called} is packed as a whole ({suffix}), so that no image of it can be read by "
            f"itself: expected {EXPECTED}. Unpack it first"
        )
    if suffix in (".zip", *_SHARDS.values()):
        return suffix[1:]
    return "lmdb" if find_lmdb(path) else "rec"


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.path for entry in entries if entry.name[0] != "." and is_folder(entry)]


def _has_images(folder: str) -> bool:
    from pipeline.photos import SUFFIXES  # importing Pillow takes as long as scanning much

    with os.scandir(folder) as entries:
        return any(os.path.splitext(entry.name)[1].lower() in SUFFIXES for entry in entries)
