"""What centers take where head.place keeps them, and on their way from there to the device."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from heads.memory import HeadMemory
from training.config import Config
from training.named_files import check_named_files

# Steps whose rows are in the host's memory beside those fetched ahead: that which is computed, and
# the one before, which is written back.
_BESIDE = 2


class RowPlaces(NamedTuple):
    """Bytes of a rank.

    Attributes:
        centers, momentum: in the memory that the step is computed in.
        fetched: in it, too: rows of single steps.
        copied: what a checkpoint copies of centers and momentum.
        host: of the host's memory, beside an accelerator.
        disk: of the disk.
    """

    centers: int
    momentum: int
    fetched: int
    copied: int
    host: int
    disk: int


def place_rows(head: HeadMemory, *, place: str, prefetch: int, on_cpu: bool) -> RowPlaces:
    """Where what a head keeps will be."""
    kept, on_the_way = head.centers + head.momentum, (prefetch + _BESIDE) * head.rows
    if place == "device":
        return RowPlaces(head.centers, head.momentum, 0, kept, 0, 0)
    on_disk = place == "disk"
    copied, disk = (0, kept) if on_disk else (kept, 0)
    if not on_cpu:
        return RowPlaces(0, 0, head.rows, copied, on_the_way + 2 * copied, disk)
    centers, momentum = (0, 0) if on_disk else (head.centers, head.momentum)
    return RowPlaces(centers, momentum, on_the_way, copied, 0, disk)


def place_folder(config: Config) -> Path:
    """Where head.place=disk has its file: run.output, or what there is of the way to it.

    Raises PathError for a head.place_path that is no folder.
    """
    if config.head.place_path:
        check_named_files(config, "head.place_path")
        return Path(config.head.place_path)
    output = Path(config.run.output).absolute()
    return next(folder for folder in (output, *output.parents) if folder.is_dir())


def lack_on_disk(config: Config, size: int) -> str:
    """Why `size` bytes of centers do not fit where head.place=disk would keep them; empty: they do.

    Raises PathError for a head.place_path that is no folder.
    """
    folder = place_folder(config)
    free = shutil.disk_usage(folder).free
    if size <= free:
        return ""
    return (
        f"head.place=disk: {size / 1e6:,.0f} MB of centers and momentum of this machine's ranks do "
        f"not fit into {folder}, where {free / 1e6:,.0f} MB are free: make room there, or set "
        "head.place_path to a folder on another disk"
    )
