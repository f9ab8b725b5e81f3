"""What of the machine's memory this process has, and what a rank may take."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def own_memory() -> int:
    """Bytes that this process takes now; 0 where the system does not say.

    Without the pages of files that it has mapped, which the system drops when it needs them: of
    libraries, of the training set, of rows that a head keeps on a disk.
    """
    known = _status()
    return known.get("VmRSS", 0) - known.get("RssFile", 0)


def own_peak() -> int:
    """About the most that `own_memory` has been.

    The system keeps no such peak without the pages of files: those of now are subtracted.
    """
    known = _status()
    if "VmHWM" in known:  # of this program; rusage counts who started it, too
        return known["VmHWM"] - known.get("RssFile", 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _status() -> dict[str, int]:
    """By name, in bytes."""
    if not _STATUS.exists():
        return {}
    fields = (line.split() for line in _STATUS.read_text().splitlines())
    return {one[0].rstrip(":"): int(one[1]) << 10 for one in fields if one[2:] == ["kB"]}


def available_memory(device: torch.device, *, local_world_size: int) -> int:
    """Bytes that a rank may take in all: free ones of its accelerator; or its share of what is free
    on the machine, and what it has already.
    """
    if device.type != "cpu":
        return torch.get_device_module(device).mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if _MEMINFO.exists():  # where what files take of the memory counts as free
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):  # some containers do not say it
                free = int(line.split()[1]) << 10
    available = free // local_world_size + own_memory()
    if _LIMIT.exists() and (allowed := _LIMIT.read_text().strip()) != "max":
        available = min(available, int(allowed) // local_world_size)
    return available
