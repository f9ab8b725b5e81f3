"""A disk that lacks what mounted buckets and shares lack, by patched calls of the system.

nodirrename    a folder that holds anything is not renamed: gcsfuse
nofsyncdir     a folder is not synced: vboxsf, old cifs
nofsync        nothing is
directio       nothing is mapped shared: rclone, mergerfs
norename       no file is renamed: buckets mounted for writing once
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

FAULTS = ("nodirrename", "nofsyncdir", "nofsync", "directio", "norename")


def break_disk(patch: pytest.MonkeyPatch, *faults: str) -> None:
    """Let every disk have these faults until the patch is undone."""
    for fault in faults:
        {
            "nodirrename": lambda: _refuse_renames(patch, os.path.isdir, errno.EMFILE),
            "norename": lambda: _refuse_renames(patch, os.path.isfile, errno.ENOSYS),
            "nofsyncdir": lambda: _refuse_syncs(patch, stat.S_ISDIR),
            "nofsync": lambda: _refuse_syncs(patch, lambda mode: True),
            "directio": lambda: _refuse_shared_maps(patch),
        }[fault]()


def _refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _refuse_renames(patch: pytest.MonkeyPatch, refused: Callable[[Any], bool], number: int) -> None:
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def rename(source: Any, target: Any, real: Callable[..., None] = real, **more: Any) -> None:
            # An empty folder is renamed by gcsfuse, too.
            if refused(source) and not (os.path.isdir(source) and not os.listdir(source)):
                _refuse(number)
            real(source, target, **more)

        patch.setattr(os, name, rename)


def _refuse_syncs(patch: pytest.MonkeyPatch, refused: Callable[[int], bool]) -> None:
    real = os.fsync
    patch.setattr(
        os,
        "fsync",
        lambda file: _refuse(errno.EINVAL) if refused(os.fstat(file).st_mode) else real(file),
    )


def _refuse_shared_maps(patch: pytest.MonkeyPatch) -> None:
    real = mmap.mmap

    def map_file(fileno: int, *args: Any, flags: int = mmap.MAP_SHARED, **more: Any) -> mmap.mmap:
        if fileno >= 0 and flags & mmap.MAP_SHARED:
            _refuse(errno.ENODEV)
        return real(fileno, *args, flags=flags, **more)

    patch.setattr(mmap, "mmap", map_file)
