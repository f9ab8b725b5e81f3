"""Where a rank's rows are kept: on its device, in the host's memory, or in a file on a disk."""

from __future__ import annotations

import errno
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from facestream import UserError
from heads.rows.huge_pages import advise_huge_pages

PLACES = ("device", "host", "disk")


class Placement:
    """Makes the matrices that rows are kept in.

    A file on the disk is scratch: it has no name, and is gone with the head or with the process,
    however that ends. It is mapped into memory, of which the system keeps as much there as fits
    beside the rest.

    Args:
        place: one of PLACES.
        folder: for "disk", a folder of the disk to use.
        device: of the head.

    Raises:
        UserError: an unknown place, or "disk" without a folder.
    """

    def __init__(self, place: str, folder: str | os.PathLike[str] | None, device: torch.device):
        if place not in PLACES:
            raise UserError(f"place={place!r}, expected one of {', '.join(PLACES)}")
        if place == "disk" and not (folder and Path(folder).is_dir()):
            raise UserError(
                f"place_path={str(folder or '')!r}, expected a folder that exists, on a local "
                "disk with room for the centers: place=disk keeps them there"
            )
        self.place, self._folder, self.device = place, folder, device
        self._files: dict[int, IO[bytes]] = {}  # by the address of the first byte

    @property
    def away(self) -> bool:
        """Whether rows must be fetched to where the arithmetic is."""
        return self.place != "device"

    def __reduce__(self) -> tuple:
        """A copy's rows are in the host's memory: the files stay with the original."""
        place = "host" if self.place == "disk" else self.place
        return Placement, (place, None, self.device)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A matrix of zeros, with its memory reserved.

        Raises:
            UserError: the disk has no room, or cannot map files.
        """
        if self.place == "device":
            matrix = torch.empty(*shape, dtype=dtype, device=self.device)
            advise_huge_pages(matrix)  # before it is written, `torch.zeros` writes at once
            return matrix.zero_()
        size = math.prod(shape) * dtype.itemsize
        if self.place == "host" or size == 0:
            return torch.zeros(*shape, dtype=dtype, device="cpu", pin_memory=self.pins)
        return self._mapped(size).view(dtype).view(*shape)

    @property
    def pins(self) -> bool:
        """Whether host memory is to be pinned, so that copies to and from the device run beside."""
        return self.device.type not in ("cpu", "meta")

    def will_need(self, matrix: Tensor, rows: Tensor) -> None:
        """Have the system read (m,) rows of a mapped matrix, all at once.

        A row that is met when it is read costs a wait of its own, and 128 KB beside it.
        """
        file = self._files.get(matrix.data_ptr())
        if file is None or not hasattr(os, "posix_fadvise"):
            return
        descriptor, size = file.fileno(), matrix.stride(0) * matrix.element_size()
        for row in rows.tolist():
            os.posix_fadvise(descriptor, row * size, size, os.POSIX_FADV_WILLNEED)

    def _mapped(self, size: int) -> Tensor:
        """(size,) uint8 zeros in a file of its own."""
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise UserError(self._no_room(size, free))
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                if hasattr(os, "posix_fallocate"):  # all but macOS
                    # A hole in the file would end the process where the disk is full later on.
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                memory = mmap.mmap(file.fileno(), size)
                kept = os.fdopen(os.dup(file.fileno()), "rb")
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(self._no_room(size, free)) from error
            if error.errno in (errno.EDQUOT, errno.EFBIG):
                raise UserError(
                    f"place=disk: {size / 1e6:,.0f} MB of centers or their momentum may not be "
                    f"written at place_path={str(self._folder)!r} ({error}): have the quota or the "
                    "limit of a file's size (ulimit -f) raised, or name a folder on another disk"
                ) from error
            raise UserError(
                f"place_path={str(self._folder)!r}: no file there can be mapped into memory "
                f"({error}): expected a folder on a local disk"
            ) from error
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        self._files[tensor.data_ptr()] = kept
        return tensor

    def _no_room(self, size: int, free: int) -> str:
        return (
            f"place=disk: {size / 1e6:,.0f} MB of centers or their momentum do not fit where "
            f"{free / 1e6:,.0f} MB are free, place_path={str(self._folder)!r}: make room there, or "
            "name a folder on another disk"
        )
