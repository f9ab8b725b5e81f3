"""Where something is measured: processes with an allocator of their own, and what results say."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from typing import Any

import torch

# By default glibc gives large tensors fresh pages at every step; the other is told to keep them.
ALLOCATORS = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "268435456",
    },
}


def in_own_process(script: str, settings: dict[str, Any], variables: dict[str, str]) -> Any:
    """What ``python script --one SETTINGS`` prints as JSON, under these environment variables."""
    command = [sys.executable, script, "--one", json.dumps(settings)]
    return json.loads(subprocess.check_output(command, text=True, env=os.environ | variables))


def about_cpu() -> dict[str, Any]:
    """What a result on this machine's CPU starts with."""
    return {
        "date": date.today().isoformat(),
        "device": "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def about_device(device: torch.device) -> dict[str, Any]:
    """What a result starts with, on any device."""
    if device.type == "cpu":
        return about_cpu()
    card = torch.get_device_module(device).get_device_properties(device)
    return about_cpu() | {
        "device": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "memory_mb": card.total_memory / 1e6,
        "cuda": torch.version.cuda,
    }
