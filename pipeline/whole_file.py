"""Files that are there as a whole or not at all, on disks that cannot rename, too."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.sync import sync

_NO_RENAME = {  # what file systems answer that cannot do it
    *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EMFILE, errno.EXDEV, errno.EPERM),
}
_ABANDONED = 3600  # seconds in which nothing was written: its writer was killed


def write_whole(file: Path, content: str | bytes, *, aside: Path | None = None) -> None:
    """Write a file so that it has, even after a power cut, its old content or the whole new one.

    Args:
        content: text is written as UTF-8; parts of names that are none, as \\udcff.
        aside: where it is written first, by default beside it under a name of this call's own, so
            that several processes, of other machines too, may write one file; the last one's stays.
            Nothing is left there, but by a process that is killed: the first write of the file
            an hour later removes that.

    Raises:
        OSError: where it cannot be written.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with writing_whole(file, aside=aside) as stream:
        stream.write(data)


@contextmanager
def writing_whole(file: Path, *, aside: Path | None = None) -> Iterator[BinaryIO]:
    """The same for what does not fit into memory: the stream that it is written into.

    Where the block raises, the file keeps its old content.

    Raises:
        OSError: where it cannot be written.
    """
    aside = aside or file.with_name(f"{file.name}.{os.urandom(4).hex()}.unfinished")
    try:
        with aside.open("wb") as stream:
            # A new file's own time is by the clock that theirs are by: that of the disk's machine.
            _remove_abandoned(file, now=os.fstat(stream.fileno()).st_mtime)
            yield stream
            stream.flush()
            sync(stream.fileno())
        replace(aside, file)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to tell
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(file)  # a full disk names none
        raise


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


def _remove_abandoned(file: Path, *, now: float) -> None:
    """What killed writers of a file have left beside it."""
    theirs = re.compile(re.escape(file.name) + r"\.[0-9a-f]{8}\.unfinished")
    with suppress(OSError), os.scandir(file.parent) as entries:
        for entry in entries:
            if theirs.fullmatch(entry.name) and now - entry.stat().st_mtime > _ABANDONED:
                os.unlink(entry)
