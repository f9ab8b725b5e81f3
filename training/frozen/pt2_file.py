"""The texts beside the graph in a torch.export file (.pt2), its extra_files, without loading it.

A .pt2 file is a zip archive. Only the entries of the texts are read: nothing is unpickled or run.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from facestream import UserError

SUFFIX = ".pt2"
_FOLDERS = ("extra", "extra_files")  # of the texts: torch 2.8 and later, and before
_LONGEST = 16 << 20  # bytes of a text


class Pt2Error(UserError):
    """A .pt2 file that cannot be read, as a sentence without its name."""


def extra_files(path: Path) -> dict[str, str]:
    """By name. Raises Pt2Error for what is no such archive, or whose texts are damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.infolist():
                if not _is_text(entry.filename):
                    continue
                if entry.file_size > _LONGEST:
                    raise Pt2Error(
                        f"{entry.filename} has {entry.file_size:,} bytes, which no text has"
                    )
                found[entry.filename.rpartition("/")[2]] = archive.read(entry).decode()
            return found
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        if isinstance(error, Pt2Error):
            raise
        raise Pt2Error(
            f"it cannot be read as a .pt2 file ({error}): copy or export it again"
        ) from error


def add_extra_files(path: Path, texts: Mapping[str, str]) -> None:
    """Put further texts beside those that a file has; none of them is there yet.

    Raises OSError where it cannot be written.
    """
    with zipfile.ZipFile(path, "a") as archive:
        (folder, *_) = (entry.rpartition("/")[0] for entry in archive.namelist() if _is_text(entry))
        for name, text in texts.items():
            archive.writestr(f"{folder}/{name}", text)


def _is_text(entry: str) -> bool:
    return entry.rpartition("/")[0].rpartition("/")[2] in _FOLDERS
