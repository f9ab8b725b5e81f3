"""keep_pages: after it, memory that is left and taken again faults in no page."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from tests.ranks import start
from training.allocator import keep_pages

FLOATS = 16 << 20  # 64 MB: more than what glibc keeps by itself
PAGES = 4 * FLOATS // resource.getpagesize()


def count_faults() -> int:
    """Of taking, filling and leaving the memory ten times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(FLOATS).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def keep_and_count(rank: int) -> None:
    torch.set_num_threads(1)
    assert keep_pages()
    count_faults()
    assert count_faults() < PAGES / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_pages_are_kept():
    """In a process of its own, as it holds for all that the process does later."""
    start(keep_and_count, (), nprocs=1)
