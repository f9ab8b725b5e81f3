"""Files and folders that a user has named: why the system refuses one, and how to mend it.

What the system says is an OSError. One that is about a file or a disk is the user's to mend and is
shown in a line; any other is a mistake of this program, which shows its trace.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from facestream import UserError

_ABOUT_DISKS = {
    errno.ENOSPC: ("finds no room on the disk", "Make room there"),
    errno.EDQUOT: ("finds this user's share of the disk full", "Make room there, or ask for more"),
    errno.EFBIG: ("makes a file larger than is allowed", "Allow larger ones: ulimit -f"),
    errno.EROFS: ("is on a disk that is read-only", "Name another place"),
    errno.EIO: ("cannot be read or written, the disk fails", "Look after the disk, try again"),
    errno.ESTALE: ("is gone from the network disk", "Mount the disk again"),
    errno.EMFILE: ("is one file too many for this process", "Allow more: ulimit -n 65536"),
    errno.ENFILE: ("is one file too many for this machine", "Allow more: sysctl fs.file-max"),
}
_MAY_NOT = ("may not be used by this user", "Allow it (chmod, chown), or name another")
_ABOUT_NAMES = {
    errno.ENOENT: ("does not exist", "Check the path"),
    errno.ENOTDIR: ("leads through a file as if it were a folder", "Check the path"),
    errno.EEXIST: ("is there already", "Name another"),
    errno.EISDIR: ("is a folder", "Name a file"),
    errno.EACCES: _MAY_NOT,
    errno.EPERM: _MAY_NOT,
    errno.ENAMETOOLONG: ("is a longer name than the disk allows", "Shorten it"),
    errno.ELOOP: ("is a link that leads back to itself", "Name the file that it was to lead to"),
}

# What it raises to take a document apart that is not as it was written.
MALFORMED = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(OverflowError, RecursionError),
)


class PathError(UserError):
    """A file or folder that cannot be used: says which, why, what was expected, how to mend it."""


def check_path(
    path: str | Path, *, called: str, expected: str, file: bool = True, folder: bool = False
) -> None:
    """Raise PathError unless `path` is there, is what is expected, and can be opened to be read.

    Args:
        called: the path with the setting or argument that names it, such as "data.train=a.rec".
        expected: what it should have been, in words.
        file, folder: which of them it may be.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode) and folder:
            os.scandir(path).close()
        elif stat.S_ISREG(mode) and file:
            open(path, "rb").close()
    except OSError as error:
        reason, remedy = _reason_and_remedy(error)
        if os.path.islink(path) and error.errno == errno.ENOENT:
            reason = f"is a link to {os.readlink(path)}, which does not exist"
        raise PathError(f"{called} {reason}: expected {expected}. {remedy}") from error
    except ValueError as error:  # NUL, or what the system's names cannot be written in
        raise PathError(f"{called!r} is no name of a file ({error}): expected {expected}") from None
    if stat.S_ISDIR(mode) and not folder:
        raise PathError(f"{called} is a folder: expected {expected}")
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise PathError(f"{called} is a pipe, a socket or a device: expected {expected}")
    if not stat.S_ISDIR(mode) and not file:
        raise PathError(f"{called} is a file: expected {expected}")


def is_folder(entry: os.DirEntry[str] | os.DirEntry[bytes]) -> bool:
    """Whether it is a folder or a link to one; a link that leads back to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def mendable(error: BaseException) -> str | None:
    """The line for what a user can mend: a UserError, or an OSError about a file or a disk.

    None for any other: nothing that a user has named is at fault.
    """
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    if error.filename is None and error.errno not in _ABOUT_DISKS:
        return None
    reason, remedy = _reason_and_remedy(error)
    subject = "this process" if error.filename is None else os.fsdecode(error.filename)
    return f"{subject} {reason}. {remedy}"


def as_name(text: str) -> str:
    """A path as the system's functions take it; on the disk it is UTF-8, whatever the locale."""
    try:
        return os.fsdecode(text.encode(errors="surrogateescape"))
    except UnicodeEncodeError:  # a text that can be no name
        return text


def as_text(name: str) -> str:
    """What `as_name` undoes: words of a command line as the UTF-8 that was typed, to be saved."""
    try:
        return name.encode(errors="surrogateescape").decode(errors="surrogateescape")
    except UnicodeEncodeError:
        return name


def read_text(path: str | Path) -> str:
    """A text file, UTF-8 with or without a byte order mark; PathError for any other content."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PathError(
            f"{path} is not text: {error.reason} at byte {error.start}. Save it as UTF-8"
        ) from error


def _reason_and_remedy(error: OSError) -> tuple[str, str]:
    known = _ABOUT_NAMES | _ABOUT_DISKS
    text = error.strerror or str(error)
    number = error.errno or 0
    return known.get(number, (f"cannot be used ({text})", "Mend that, or name another"))
