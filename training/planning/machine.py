"""What of the machine's memory this process has, and what a rank may take."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tools/doctor.py asks what is free, and needs no torch
    import torch

_STATUS = Path("/proc/self/status")
_MEMINFO = Path("/proc/meminfo")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB$", re.MULTILINE)
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


def free_memory() -> int:
    """Bytes of the machine that nothing takes but files, which give way.

    Some containers do not say so: then those that nothing takes at all.
    """
    known = _AVAILABLE.search(_MEMINFO.read_text()) if _MEMINFO.exists() else None
    if known:
        return int(known[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def available_memory(device: torch.device, *, local_world_size: int) -> int:
    """Bytes that a rank may take in all: free ones of its accelerator; or its share of what is free
    on the machine, and what it has already.
    """
    if device.type != "cpu":
        import torch

        return torch.get_device_module(device).mem_get_info(device)[0]
    available = free_memory() // local_world_size + own_memory()
    if _LIMIT.exists() and (allowed := _LIMIT.read_text().strip()) != "max":
        available = min(available, int(allowed) // local_world_size)
    return available
