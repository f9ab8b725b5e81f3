"""Bytes made to last through a power cut, on disks that can do that."""

from __future__ import annotations

import errno
import os

# What file systems answer to what they do not know; a disk that fails says EIO, ENOSPC or EDQUOT.
_UNSUPPORTED = {
    *(errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP),
    *(errno.EBADF, errno.EROFS, errno.EISDIR, errno.EACCES, errno.EPERM),
}


def sync(descriptor: int) -> bool:
    """Make a file's bytes, or a folder's names, last through a power cut, if its disk can.

    Returns:
        Whether it can.

    Raises:
        OSError: where it fails.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True
