"""What the benchmarks share: taking turns, processes with an allocator of their own, a table, and
results that say where they were measured."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

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

_PACKAGES = ("numpy", "triton", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "simplejpeg")
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


def take_turns(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds that each way takes, in each of the rounds; those to warm up come before and do not
    count. In turn, because a machine's speed drifts, and would be taken for theirs."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(warm_up + rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    return {name: taken[warm_up:] for name, taken in seconds.items()}


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The middle one of each way's rounds."""
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def show(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table; its first column to the left, the others to the right."""
    table = Table(title=title or None)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def save(subject: str, about: Mapping[str, Any], **results: Any) -> Path:
    """Write benchmarks/results/SUBJECT_DEVICE_DATE.json and say so.

    A CPU held to fewer instruction sets than it has gets a name of its own, so that its results lie
    beside the others; so does an allocator that keeps its pages.

    Args:
        about: of `about_cpu` or `about_device`; `pages_kept` may be added.
    """
    held = f"_{about['torch_uses'].lower()}" if "held_to" in about else ""
    kept = "_pages_kept" if about.get("pages_kept") else ""
    device = re.sub(r"\W+", "-", about["device"]).lower()
    path = RESULTS / f"{subject}_{device}{held}{kept}_{about['date']}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def in_own_process(script: str, settings: dict[str, Any], variables: dict[str, str]) -> Any:
    """What ``python script --one SETTINGS`` prints as JSON, under these environment variables."""
    command = [sys.executable, script, "--one", json.dumps(settings)]
    return json.loads(subprocess.check_output(command, text=True, env=os.environ | variables))


def run_ours(script: str, *arguments: object, **variables: str) -> None:
    """Run ``python script arguments`` from the root, under these environment variables; raises
    subprocess.CalledProcessError where it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | variables)


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
        "commit": _commit(),
        "torch": torch.__version__,
        "versions": {name: version(name) for name in _PACKAGES if _is_installed(name)},
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


def _commit() -> str:
    """Of this code, with a + where it was changed since; empty where there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _cpuinfo() -> dict[str, str]:
    """What Linux knows of the first core."""
    if not CPUINFO.exists():
        return {}
    first, _, _ = CPUINFO.read_text().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
