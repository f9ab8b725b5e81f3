"""The machine around a run: Python, cores, memory, shared memory, disks, compilers."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from pipeline.ahead import cores
from pipeline.cache_folder import cache_folders
from tools.checks.driver import read_driver
from tools.checks.finding import Finding, fails, note, ok
from training.planning.machine import free_memory

OLDEST, NEWEST = (3, 10), (3, 14)  # Pythons
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARED = Path("/dev/shm")
_LARGER = "docker run --ipc=host or --shm-size=8g, or a larger emptyDir of medium Memory"


def check_python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()}, {platform.machine()}"
    tested = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
    if platform.system() != "Linux":
        return fails(
            "python", f"{found}: expected Linux", "use a Linux machine, WSL2 or a container"
        )
    if sys.version_info[:2] < OLDEST:
        return fails(
            "python", f"{found}: expected {tested}", "make an environment of a newer Python"
        )
    if sys.version_info[:2] > NEWEST:
        return note("python", f"{found}: tested are {tested}")
    return ok("python", found)


def check_cores() -> Finding:
    """Those that may be used: a container's quota counts, which no count of cores shows."""
    usable, gpus = cores(), max(1, read_driver().gpus)
    quota, _, period = (_text(_QUOTA) or "max").partition(" ")
    if quota != "max" and int(quota) < usable * int(period):
        usable = max(1, int(quota) // int(period))
    found = f"{usable} of {os.cpu_count()}"
    if usable < 2 * gpus:
        return note(
            "cores",
            f"{found}, for {gpus} ranks: each wants one that decodes and one that computes",
            "give the job or the container more cores, or decode on the GPU (data.decode=gpu)",
        )
    return ok("cores", found)


def check_memory() -> Finding:
    free, limit = free_memory(), _text(_LIMIT) or "max"
    held = "" if limit == "max" else f"; the container may use {_gb(int(limit))} in all"
    free = min(free, int(limit)) if held else free
    found = f"{_gb(free)} free{held}"
    if free < 4e9:
        return note(
            "memory", found, "close other programs; train_dist.py --dry-run says what a run takes"
        )
    return ok("memory", found)


def check_shared_memory() -> Finding:
    """Through which ranks of one machine exchange."""
    if not os.access(_SHARED, os.W_OK):
        return fails("/dev/shm", "it is not there, or not to be written", _LARGER)
    size, free = _room(_SHARED)
    found = f"{_gb(free)} of {_gb(size)} free"
    return note("/dev/shm", found, _LARGER) if free < 1e9 else ok("/dev/shm", found)


def check_disks() -> list[Finding]:
    """The folder in which runs are made unless run.output says otherwise, and the cache's."""
    cache = next((path for path in cache_folders() if _is_writable(path)), None)
    found = [_check_disk("disk", Path.cwd(), good=10e9, use="runs: set run.output")]
    if cache is None:
        tried = " and ".join(map(str, cache_folders()))
        return [*found, fails("cache", f"not to be written: {tried}", "set XDG_CACHE_HOME")]
    use = "the cache: set XDG_CACHE_HOME"
    return [*found, _check_disk("cache", cache, good=1e9, use=use)]


def check_compiler() -> Finding:
    """Triton and model.compile make code of their own: with gcc, and Python's headers."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    header = Path(sysconfig.get_path("include"), "Python.h").exists()
    if compiler and header:
        return ok("compiler", compiler)
    lacking = [*(["no C++ compiler"] * (not compiler)), *(["no Python.h"] * (not header))]
    python = "python{}.{}-dev".format(*sys.version_info)
    return note(
        "compiler",
        f"{', '.join(lacking)}: the head's kernels and model.compile are out of reach",
        f"apt-get install g++ {python}, or what your system calls them",
    )


def _check_disk(subject: str, folder: Path, *, good: float, use: str) -> Finding:
    """Never fails: a run may have its folders elsewhere."""
    if not _is_writable(folder):
        return note(subject, f"{folder} is not to be written", f"choose another place for {use}")
    _, free = _room(_nearest(folder))
    found = f"{_gb(free)} free at {folder}"
    if free >= good:
        return ok(subject, found)
    return note(subject, found, f"make room, or choose another place for {use}")


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return True
    except OSError:
        return False


def _nearest(folder: Path) -> Path:
    """The folder itself, or what it would be made in."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _room(folder: Path) -> tuple[int, int]:
    """Bytes in all, and free."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _text(path: Path) -> str:
    """A file's text, empty where there is none."""
    return path.read_text().strip() if path.exists() else ""


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
