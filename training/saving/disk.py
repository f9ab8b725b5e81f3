"""What a disk can do for checkpoints, tried out before the first step, and how it is asked.

Mounted buckets and shares lack much of what a local disk does: gcsfuse renames no folder that holds
anything, others sync no folder, or nothing. What is only safer is left out there; a disk that fails
or is full raises OSError as anywhere.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.sync import sync

_NO_RENAME = {  # what file systems answer that cannot do it
    *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EMFILE, errno.EXDEV, errno.EPERM),
}
_TRIAL = "probe_"  # then the process's number
_BYTES = bytes(range(256)) * 16


@dataclass(frozen=True)
class Disk:
    """What a folder's disk can do beyond the least that a checkpoint needs."""

    syncs_files: bool
    syncs_folders: bool
    renames: bool
    deletes: bool

    def __str__(self) -> str:
        """One line for the log."""
        aside = "aside and renamed" if self.renames else "in place, as files cannot be renamed"
        lacks = []
        if not self.syncs_files:
            lacks.append("files cannot be synced: a power cut may damage the newest checkpoint")
        elif not self.syncs_folders:
            lacks.append("folders cannot be synced: a power cut may cost the newest checkpoint")
        if not self.deletes:
            lacks.append("nothing can be deleted: checkpoints pile up whatever run.keep says")
        manifest = f"a checkpoint is complete once its manifest is there, written {aside}"
        return "; ".join([manifest, *lacks])


def probe(folder: Path) -> Disk:
    """Try in a folder of its own in `folder` what saving does there; nothing is left of it.

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


def sync_folder(folder: Path) -> bool:
    """As `sync`, for what a folder's files are called."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return sync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> bool:
    """Rename a file, or copy it where files cannot be renamed; returns whether they can."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
    else:
        return True
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)
        write.flush()
        sync(write.fileno())
    source.unlink()
    return False
