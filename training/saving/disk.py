"""What a disk can do for checkpoints, tried out before the first step, and how it is asked.

Mounted buckets and shares lack much of what a local disk does: gcsfuse renames no folder that holds
anything, others sync no folder, or nothing. What is only safer is left out there; a disk that fails
or is full raises OSError as anywhere.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.sync import sync
from pipeline.whole_file import replace

_TRIAL = "probe_"  # then the process's number
_BYTES = bytes(range(256)) * 16
_PAUSES = (0.5, 2.0, 5.0)  # seconds before each further try of what a disk did not answer

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}

T = TypeVar("T")


@dataclass(frozen=True)
class Disk:
    """What a folder's disk can do beyond the least that a checkpoint needs."""

    syncs_files: bool
    syncs_folders: bool
    renames: bool
    deletes: bool

    def lacks(self) -> list[str]:
        """What it cannot do, and what may come of it."""
        lacks = []
        if not self.renames:
            lacks.append("files cannot be renamed: one whose writing is cut off is not used")
        if not self.syncs_files:
            lacks.append("files cannot be synced: a power cut may damage the newest checkpoint")
        elif not self.syncs_folders:
            lacks.append("folders cannot be synced: a power cut may cost the newest checkpoint")
        if not self.deletes:
            lacks.append("nothing can be deleted: checkpoints pile up whatever run.keep says")
        return lacks


def probe(folder: Path) -> Disk:
    """Try in a folder of its own in `folder` what saving does there; nothing is left of it.

    For whoever holds the folder alone, as what others left of this is removed.

    Raises OSError where no checkpoint could be written.
    """
    for left in folder.glob(f"{_TRIAL}*"):  # by a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    trial = folder / f"{_TRIAL}{os.getpid()}"
    trial.mkdir()
    try:
        aside, file = trial / "unfinished", trial / "file"
        with aside.open("wb") as stream:
            stream.write(_BYTES)
            stream.flush()
            syncs_files = sync(stream.fileno())
        renames = replace(aside, file)
        if file.read_bytes() != _BYTES:
            raise OSError(errno.EIO, "other bytes are read than were written", str(file))
        syncs_folders = sync_folder(trial)
    except OSError:
        shutil.rmtree(trial, ignore_errors=True)
        raise
    shutil.rmtree(trial, ignore_errors=True)
    return Disk(syncs_files, syncs_folders, renames, deletes=not trial.exists())


def persistently(read: Callable[[], T]) -> T:
    """What `read` returns; where a disk fails, as network disks do for a moment, it tries again.

    Raises OSError: at once where a file is not there, else after the last try.
    """
    for pause in _PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno in NOT_THERE:
                raise
            time.sleep(pause)
    return read()


def sync_folder(folder: Path) -> bool:
    """As `sync`, for what a folder's files are called."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return sync(descriptor)
    finally:
        os.close(descriptor)
