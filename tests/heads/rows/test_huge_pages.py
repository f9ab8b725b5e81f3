"""The rows of a head lie on large pages where the system has them."""

from __future__ import annotations

from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from heads import ArcFace, PartialFC
from heads.rows import placement
from heads.rows.huge_pages import advise_huge_pages
from tests.ranks import start


def mapping_at(address: int) -> dict[str, str]:
    """What Linux says about the mapping that an address lies in."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split()[0]:
            start, stop = (int(end, 16) for end in name.split()[0].split("-"))
            inside = start <= address < stop
        elif inside:
            found[name] = value
    return found


def resident_bytes(matrix: Tensor) -> int:
    """How much of a matrix is in memory; its mapping may hold what lies beside it, too."""
    first = matrix.data_ptr() // PAGESIZE
    last = -(-(matrix.data_ptr() + matrix.nbytes) // PAGESIZE)
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * (last - first)), np.uint64)
    assert len(entries) == last - first
    return int((entries >> 62 != 0).sum()) * PAGESIZE  # bit 63: in memory, bit 62: swapped out


def build_a_head(rank: int) -> None:
    resident = []

    def advise(matrix: Tensor) -> None:
        advise_huge_pages(matrix)
        flags = mapping_at(matrix.data_ptr() + matrix.nbytes // 2)["VmFlags"]
        assert "hg" in flags.split()
        resident.append(resident_bytes(matrix))

    placement.advise_huge_pages = advise
    # Beyond 32 MB, from which on glibc gives a tensor a mapping of its own.
    head = PartialFC(5000, 2048, ArcFace())
    assert len(resident) == 2
    assert max(resident) < head.centers.nbytes / 2
    assert resident_bytes(head.centers) >= head.centers.nbytes
    assert not head.velocity.any()


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or not Path("/proc/self/pagemap").exists(),
    reason="no huge pages here",
)
def test_centers_and_momentum_ask_for_large_pages_before_they_are_written():
    """Pages that are there already stay small.

    In a process of its own: in one that has freed much, a tensor may lie where others were, on
    pages that are there already.
    """
    start(build_a_head, (), nprocs=1)


def test_what_is_small_or_elsewhere_is_left_alone():
    for matrix in (torch.zeros(0, 8), torch.zeros(3, 8), torch.zeros(1 << 20, 8, device="meta")):
        advise_huge_pages(matrix)
