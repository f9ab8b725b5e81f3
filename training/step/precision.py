"""One decision about numbers: the dtype a step computes in, whether losses are scaled, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from facestream import UserError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How a step computes; parameters and their momentum are float32 whatever is chosen."""

    compute_dtype: torch.dtype  # of the backbone under autocast
    head_dtype: torch.dtype  # of the head's matrix products
    loss_scaling: bool
    tf32: bool  # whether float32 products may be rounded to TF32's 11 bits
    reason: str
    # As the loader yields images; any other would cost a copy of every batch.
    memory_format: torch.memory_format = torch.channels_last

    def apply(self) -> None:
        """Set what torch keeps for the whole process; call it before anything is computed."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32  # of convolutions, where torch's default is yes

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context the backbone's forward runs in."""
        mixed = self.compute_dtype != torch.float32
        return torch.autocast(device.type, self.compute_dtype if mixed else None, enabled=mixed)


def choose_precision(
    device: torch.device,
    requested: str = "auto",
    *,
    capability: tuple[int, int] | None = None,
) -> Precision:
    """Decide for a device; `requested` is auto, fp32, bf16 or fp16.

    Args:
        capability: compute capability of a GPU that need not be here; None: the device has it.

    Raises UserError for fp16 on a CPU, where it is emulated and slower than fp32.
    """
    if requested == "fp16" and device.type == "cpu":
        raise UserError("step.precision=fp16 is for GPUs: use bf16 or fp32 on the CPU, or auto")
    on_cpu = device.type == "cpu"
    if capability is None:
        capability = (0, 0) if on_cpu else torch.cuda.get_device_capability(device)
    major, minor = capability
    if requested != "auto":
        name, reason = requested, "the configuration asks for it"
    elif on_cpu:
        has_bf16 = cpu_has_bf16()
        name = "bf16" if has_bf16 else "fp32"
        reason = f"the CPU {'has' if has_bf16 else 'lacks'} bfloat16 instructions"
    else:
        name = "bf16" if major >= 8 else "fp16"
        reason = f"compute capability {major}.{minor} {'has' if major >= 8 else 'lacks'} bfloat16"
    if name == "bf16" and not on_cpu and major < 8:
        reason += f", though compute capability {major}.{minor} only imitates it: fp16 is faster"
    # Who asks for fp32 means all of its bits; elsewhere TF32 rounds no more than float16 does.
    tf32 = major >= 8 and name == "bf16"
    if major >= 8:
        reason += f"; float32 products are {'' if tf32 else 'not '}rounded to TF32"
    dtype = _DTYPES[name]
    return Precision(
        compute_dtype=dtype,
        head_dtype=_head_dtype(device, dtype),
        loss_scaling=name == "fp16",
        tf32=tf32,
        reason=reason,
    )


def set_determinism(wanted: bool) -> None:
    """Whether the process only uses algorithms that give the same bits in every run.

    Raises nothing here: an operator without such an algorithm raises RuntimeError when it is used.
    """
    if wanted:
        # What cuBLAS asks for; read when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted  # shapes stay, so searching once pays
    # Nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _head_dtype(device: torch.device, compute_dtype: torch.dtype) -> torch.dtype:
    """What the head's products are read and returned in.

    Logits are cosines times up to 64 and come back rounded: to 8 bits in bfloat16, off by up to an
    eighth; to 11 in float16, whose range they never leave. CPUs are slow in float16.
    """
    half = device.type != "cpu" and compute_dtype != torch.float32
    return torch.float16 if half else torch.float32


def cpu_has_bf16() -> bool:
    """Whether torch multiplies bfloat16 by the CPU's own AVX512-BF16, AMX, or Arm's extension."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # it may be held to less than there is
        return False
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    words = set(cpuinfo.read_text().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
