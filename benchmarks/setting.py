"""Where something is measured: processes with an allocator of their own, and what results say."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from facestream import VERSION

# By default glibc gives large tensors fresh pages at every step; the other is told to keep them.
ALLOCATORS = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "268435456",
    },
}

CPUINFO = Path("/proc/cpuinfo")
# What a result on a CPU depends on, of all that is listed there.
_INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
# Variables that hold torch and its libraries to fewer of them. A CPU without AVX-512 and bfloat16
# is imitated by ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
HOLDING_BACK = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)


def in_own_process(script: str, settings: dict[str, Any], variables: dict[str, str]) -> Any:
    """What ``python script --one SETTINGS`` prints as JSON, under these environment variables."""
    command = [sys.executable, script, "--one", json.dumps(settings)]
    return json.loads(subprocess.check_output(command, text=True, env=os.environ | variables))


def about_cpu() -> dict[str, Any]:
    """What a result on this machine's CPU starts with.

    `held_to` is there where fewer instruction sets were used than the CPU has.
    """
    known = _cpuinfo()
    # A virtual machine's name may hide which CPU it is; vendor, family and model say it.
    names = ("model name", "vendor_id", "cpu family", "model")
    flags = (known.get("flags") or known.get("Features") or "").split()
    held_to = {name: os.environ[name] for name in HOLDING_BACK if name in os.environ}
    return {
        "date": date.today().isoformat(),
        "device": "cpu",
        "cpu": {name: known[name] for name in names if name in known},
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
        **({"held_to": held_to} if held_to else {}),
        "cores": len(os.sched_getaffinity(0)),
        "facestream": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def file_name(subject: str, about: dict[str, Any]) -> str:
    """What a result on a CPU is called: results of fewer instruction sets lie beside the others."""
    held = f"_{about['torch_uses'].lower()}" if "held_to" in about else ""
    return f"{subject}_cpu{held}_{about['date']}"


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


def _cpuinfo() -> dict[str, str]:
    """What Linux knows of the first core."""
    if not CPUINFO.exists():
        return {}
    first, _, _ = CPUINFO.read_text().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
