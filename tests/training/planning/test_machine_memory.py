"""What this process has of the machine's memory, and what a rank may take."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch

from training.planning import machine
from training.planning.machine import available_memory, own_memory, own_peak

CPU = torch.device("cpu")
SIZE = 64 << 20  # of what is held


def test_ranks_of_a_machine_share_what_is_free_and_have_what_they_took(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    monkeypatch.setattr(machine, "_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(machine, "own_memory", lambda: 100 << 10)
    assert available_memory(CPU, local_world_size=1) == 8100 << 10
    assert available_memory(CPU, local_world_size=4) == 2100 << 10
    (tmp_path / "memory.max").write_text(f"{4000 << 10}\n")  # of the container
    assert available_memory(CPU, local_world_size=4) == 1000 << 10


def test_a_container_that_says_less_of_its_memory_leaves_what_the_system_says(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\n")
    monkeypatch.setattr(machine, "_LIMIT", tmp_path / "none")
    monkeypatch.setattr(machine, "own_memory", lambda: 0)
    monkeypatch.setattr(machine.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_AVPHYS_PAGES": 10}.get)
    assert available_memory(CPU, local_world_size=2) == 5 * 4096


def shared_memory() -> int:
    """Bytes of the pages of files in memory that this process has mapped."""
    return machine._status().get("RssShmem", 0)


def test_pages_of_files_that_are_read_are_not_its_own_and_what_it_allocates_is(tmp_path: Path):
    """As those of a training set or of rows on a disk, which the system takes back."""
    (tmp_path / "rows").write_bytes(bytes(SIZE))
    gc.collect()  # or it may free what other tests left in the meantime
    before, peak, shared = own_memory(), own_peak(), shared_memory()
    with (tmp_path / "rows").open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as pages:
        assert sum(pages[start] for start in range(0, SIZE, mmap.PAGESIZE)) == 0
        if shared_memory() - shared > SIZE / 2:
            pytest.skip("the folder of the tests is on no disk, but in memory (tmpfs)")
        assert own_memory() - before < SIZE / 4
        assert own_peak() - peak < SIZE / 4
    # Not by the C library, which may have as much free of what other tests took.
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for start in range(0, SIZE, mmap.PAGESIZE):
            held[start] = 1
        assert own_memory() - before > SIZE * 3 / 4
        assert own_peak() >= own_memory() - SIZE / 4
