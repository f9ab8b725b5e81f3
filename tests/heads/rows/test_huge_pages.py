"""The rows of a head lie on large pages where the system has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads import ArcFace, PartialFC
from heads.rows import placement
from heads.rows.huge_pages import advise_huge_pages


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


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or not Path("/proc/self/smaps").exists(),
    reason="no huge pages here",
)
def test_centers_and_momentum_ask_for_large_pages_before_they_are_written(monkeypatch):
    """Pages that are there already stay small."""
    resident = []

    def advise(matrix: Tensor) -> None:
        advise_huge_pages(matrix)
        found = mapping_at(matrix.data_ptr() + matrix.nbytes // 2)
        assert "hg" in found["VmFlags"].split()
        resident.append(int(found["Rss"].split()[0]) * 1024)

    monkeypatch.setattr(placement, "advise_huge_pages", advise)
    # Beyond 32 MB, from which on glibc gives a tensor a mapping of its own.
    head = PartialFC(5000, 2048, ArcFace())
    assert len(resident) == 2
    assert max(resident) < head.centers.nbytes / 2
    assert not head.velocity.any()


def test_what_is_small_or_elsewhere_is_left_alone():
    for matrix in (torch.zeros(0, 8), torch.zeros(3, 8), torch.zeros(1 << 20, 8, device="meta")):
        advise_huge_pages(matrix)
