"""NVIDIA's driver, asked itself: neither torch nor nvidia-smi need be there."""

from __future__ import annotations

import ctypes
import os
from typing import Any, NamedTuple

from tools.checks.finding import Finding, fails, note, ok

_LIBRARY = "libcuda.so.1"


class Driver(NamedTuple):
    """What it says.

    Attributes:
        cuda: the newest version that it runs, such as "12.4"; empty where there is no driver.
        gpus: how many this process may use.
        fault: why there is none, in the driver's words.
    """

    cuda: str = ""
    gpus: int = 0
    fault: str = ""


def read_driver() -> Driver:
    """Starts CUDA in this process: nothing that it then forks can use a GPU."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Driver()
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    error = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(cuda, 0 if error else count.value, _words(library, error) if error else "")


def check_driver() -> Finding:
    found = read_driver()
    if not found.cuda:
        return note("driver", "none of NVIDIA's: everything runs on the CPU")
    text = f"runs CUDA up to {found.cuda}"
    if found.gpus:
        return ok("driver", f"{text}, on {found.gpus} GPU{'s' * (found.gpus > 1)}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return note(
            "driver",
            f"{text}, and CUDA_VISIBLE_DEVICES={hidden!r} leaves it no GPU",
            "unset CUDA_VISIBLE_DEVICES",
        )
    return fails(
        "driver",
        f"{text}, and has no GPU: {found.fault or 'it counts none'}",
        "look at nvidia-smi: a container wants --gpus all, a new driver its kernel module loaded",
    )


def _words(library: Any, error: int) -> str:
    name = ctypes.c_char_p()
    library.cuGetErrorName(error, ctypes.byref(name))
    return (name.value or b"").decode() or f"error {error}"
