"""Where rows are kept: in memory or in a file without a name, which is there as a whole."""

from __future__ import annotations

import copy
import errno
import os
import resource

import pytest
import torch

from facestream import UserError
from heads.rows import placement
from heads.rows.placement import Placement

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_rows_on_a_disk_are_zeros_that_can_be_written(tmp_path, dtype):
    on_disk = Placement("disk", tmp_path, CPU)
    matrix = on_disk.zeros((5000, 3), dtype)
    assert not matrix.view(torch.uint8).any()
    matrix[4999] = torch.ones(3, dtype=dtype)
    on_disk.will_need(matrix, torch.tensor([0, 4999]))
    assert matrix.float().sum() == 3
    (file,) = on_disk._files.values()
    last = os.pread(file.fileno(), 3 * dtype.itemsize, 4999 * 3 * dtype.itemsize)
    assert last == matrix[4999].view(torch.uint8).numpy().tobytes(), "it is the file's memory"
    assert not list(tmp_path.iterdir()), "nothing to be left behind"


def test_room_is_taken_before_it_is_needed(tmp_path):
    """A hole that cannot be filled later on would end the process."""
    on_disk = Placement("disk", tmp_path, CPU)
    matrix = on_disk.zeros((1000, 1024), torch.float32)
    (file,) = on_disk._files.values()
    assert os.fstat(file.fileno()).st_blocks * 512 >= matrix.nbytes


def test_no_rows_take_no_file(tmp_path):
    assert Placement("disk", tmp_path, CPU).zeros((0, 4), torch.float32).shape == (0, 4)


def test_a_copy_keeps_its_rows_in_memory(tmp_path):
    copied = copy.deepcopy(Placement("disk", tmp_path, CPU))
    assert copied.place == "host"


def test_a_disk_without_room_is_said_with_what_there_is(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"place=disk: 4,\d{3},\d{3},\d{3} MB .* MB are free"):
        Placement("disk", tmp_path, CPU).zeros((1 << 40, 1 << 10), torch.float32)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(placement.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="do not fit where"):
        Placement("disk", tmp_path, CPU).zeros((4, 4), torch.float32)


def test_a_limit_of_the_size_of_files_is_said_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"2 MB .* may not be written .* have the quota or the"):
            Placement("disk", tmp_path, CPU).zeros((1000, 500), torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_maps_nothing_is_said(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(placement.mmap, "mmap", refuse)
    with pytest.raises(UserError, match=r"No such device.*expected a folder on a local disk"):
        Placement("disk", tmp_path, CPU).zeros((4, 4), torch.float32)


@pytest.mark.parametrize(
    ("place", "folder", "message"),
    [
        ("moon", None, "place='moon', expected one of device, host, disk"),
        ("disk", None, "place_path='', expected a folder"),
        ("disk", "/no/such/folder", "place_path='/no/such/folder', expected a folder"),
    ],
)
def test_what_is_no_place_is_refused(place, folder, message):
    with pytest.raises(UserError, match=message):
        Placement(place, folder, CPU)
