"""One decision about numbers: the dtype a step computes in, whether losses are scaled, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How a step computes; parameters and their momentum are float32 whatever is chosen."""

    compute_dtype: torch.dtype  # of the backbone under autocast
    head_dtype: torch.dtype  # of the head's matrix products
    loss_scaling: bool
    reason: str

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context the backbone's forward runs in."""
        mixed = self.compute_dtype != torch.float32
        return torch.autocast(device.type, self.compute_dtype if mixed else None, enabled=mixed)


def choose_precision(device: torch.device, requested: str = "auto") -> Precision:
    """Decide for a device; `requested` is auto, fp32, bf16 or fp16.

    Raises ValueError for fp16 on a CPU, where it is emulated and slower than fp32.
    """
    if requested == "fp16" and device.type == "cpu":
        raise ValueError("step.precision=fp16 is for GPUs: use bf16 or fp32 on the CPU, or auto")
    if requested != "auto":
        name, reason = requested, "the configuration asks for it"
    elif device.type == "cpu":
        has_bf16 = _cpu_has_bf16()
        name = "bf16" if has_bf16 else "fp32"
        reason = f"the CPU {'has' if has_bf16 else 'lacks'} bfloat16 instructions"
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = "bf16" if major >= 8 else "fp16"
        reason = f"compute capability {major}.{minor} {'has' if major >= 8 else 'lacks'} bfloat16"
    dtype = _DTYPES[name]
    return Precision(
        compute_dtype=dtype,
        head_dtype=_head_dtype(device, dtype),
        loss_scaling=name == "fp16",
        reason=reason,
    )


def _head_dtype(device: torch.device, compute_dtype: torch.dtype) -> torch.dtype:
    """What the head's products are read and returned in.

    Logits are cosines times up to 64 and come back rounded: to 8 bits in bfloat16, off by up to an
    eighth; to 11 in float16, whose range they never leave. CPUs are slow in float16.
    """
    half = device.type != "cpu" and compute_dtype != torch.float32
    return torch.float16 if half else torch.float32


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX512-BF16, AMX, or Arm's bf16 extension)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    words = set(cpuinfo.read_text().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
