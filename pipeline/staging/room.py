"""Room for copies in a stage folder, asked for before a byte is copied, and what lies there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from facestream import UserError
from pipeline.named_path import MALFORMED
from pipeline.staging.copier import ABOUT, gigabytes
from pipeline.staging.local_copy import PREFIX, LocalCopy


def require_room(stage: Path, copies: Sequence[LocalCopy]) -> str:
    """How much is still to be copied, and how much of the disk that leaves, in words.

    Other processes may fill the disk meanwhile: then a copy stays unfinished, and the run goes on.

    Raises UserError where it does not fit, naming what else lies in the folder.
    """
    missing = sum(copy.original.size - copy.copied for copy in copies if not copy.is_whole)
    disk = os.statvfs(stage)
    free = disk.f_bavail * disk.f_frsize
    others = left_over(stage, copies)
    if missing > free:
        remedy = "Make room, or leave stage out and read from where the set lies"
        raise UserError(
            f"stage={stage}: {gigabytes(missing)} GB are to be copied there, {gigabytes(free)} GB "
            f"are free. {remedy}" + "".join(f". Left over there: {line}" for line in others)
        )
    text = f"{gigabytes(missing)} GB to copy, {gigabytes(free - missing)} GB are left free then"
    return "; ".join([text, *(f"left over: {line}" for line in others)])


def left_over(stage: Path, copies: Sequence[LocalCopy]) -> list[str]:
    """Copies of other files, or of these as they were, a line each: nobody removes them."""
    own = {copy.folder for copy in copies}
    lines = []
    for folder in sorted(stage.glob(f"{PREFIX}*")):
        if folder in own or not folder.is_dir():
            continue
        try:
            size = f"{gigabytes(sum(file.lstat().st_blocks * 512 for file in folder.iterdir()))} GB"
        except OSError:  # another user's, or another process renames a file at this moment
            size = "of unknown size"
        lines.append(f"{folder} ({size}, of {_source(folder)})")
    return lines


def _source(folder: Path) -> str:
    try:
        return str(json.loads((folder / ABOUT).read_text())["path"])
    except (OSError, *MALFORMED):
        return "an unknown file"
