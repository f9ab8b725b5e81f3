"""Which form a set has, found by looking."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.named_path import check_path
from pipeline.records.recordio import RecordError

EXPECTED = "a .rec file or the folder of its train.rec, or a folder with a folder for each identity"


def form_of(path: Path, *, called: str = "") -> str:
    """`rec` or `folder`; a file is a .rec.

    Args:
        called: the path with the setting that names it, for the errors.

    Raises:
        PathError: a path that cannot be opened.
        RecordError: a folder that is none of these.
    """
    called = called or str(path)
    check_path(path, called=called, expected=EXPECTED, folder=True)
    if not path.is_dir() or (path / "train.rec").is_file():
        return "rec"
    if _has_folders(path):
        return "folder"
    raise RecordError(
        f"{called} holds no train.rec, and no folders of images: expected {EXPECTED}. Check the "
        "path"
    )


def _has_folders(path: Path) -> bool:
    with os.scandir(path) as entries:
        return any(entry.name[0] != "." and entry.is_dir() for entry in entries)
