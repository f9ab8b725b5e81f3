"""What every launch of a Triton kernel here needs: whether it runs, block sizes, the hardware."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heads.negatives import Negatives

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

_MAX_DIM = 1024
_UNBENT = Negatives()


def jit(function: Callable[..., Any]) -> Any:
    """A kernel; where there is no triton the function as it is, which nothing calls."""
    return function if triton is None else triton.jit(function)


class Tiles(NamedTuple):
    """Block sizes of the matrix products: powers of two, at least 16.

    Attributes:
        batch, classes, depth: of the cosine tiles, (batch, classes) with D read in steps of
            `depth`.
        block, width: of the two gradient products' tiles, (block, width) with `width` columns of D
            and a step of `depth` along the sum.
    """

    batch: int
    classes: int
    depth: int
    block: int
    width: int
    warps: int
    stages: int


def tiles(
    capability: tuple[int, int] | None,
    embedding_dim: int,
    *,
    subcenters: int = 1,
    negatives: Negatives = _UNBENT,
) -> Tiles:
    """The one table of block sizes.

    Cosines: 128 registers in each of 256 threads suffice for a tile's sums and all that happens to
    a cosine, so that of two programs on a multiprocessor one can multiply while the other takes
    exponentials: 128 x 64 with the tensor cores of sm_80 and sm_120, 128 x 128 with those of sm_90,
    which read both sides from shared memory. What is kept of sub-centers, and what bends the
    negatives, takes registers besides: smaller tiles where they would spill. The gradients have
    little such epilogue: full squares, on sm_90 twice as wide, as each further tile of columns
    reads all coefficients again. Shared memory: 227 KiB on sm_90, where a deeper step feeds its
    wider instructions; 99 KiB or more on the others.

    Args:
        capability: of the CUDA device, None for the interpreter.
    """
    if capability is None:
        size = Tiles(batch=16, classes=16, depth=16, block=16, width=16, warps=1, stages=1)
    else:
        classes, depth, width = (128, 64, 256) if capability[0] == 9 else (64, 32, 128)
        if subcenters > 1 or negatives.hard_above is not None:
            classes = 64
        if negatives.threshold is not None:
            classes = 32
        size = Tiles(128, classes, depth, block=128, width=width, warps=8, stages=3)
    fits = max(16, 1 << (embedding_dim - 1).bit_length())
    return size._replace(depth=min(size.depth, fits), width=min(size.width, fits))


def available(device: torch.device, embedding_dim: int, compute_dtype: torch.dtype) -> str | None:
    """None where these kernels can be used, else in words why not.

    Triton has left out the tensor cores before Ampere since its version 3.3. PyTorch's products use
    a T4's, so they are the better choice there.
    """
    if triton is None:
        return "triton is not installed"
    if compute_dtype not in (torch.float16, torch.bfloat16):
        kind = str(compute_dtype).removeprefix("torch.")
        return f"the head computes in {kind}, triton's kernels in 16 bits"
    if embedding_dim > _MAX_DIM:
        return f"embeddings of more than {_MAX_DIM} dimensions go through PyTorch"
    if not isinstance(jit(ceil), triton.runtime.JITFunction):
        if device.type != "cpu":
            return "triton interprets its kernels in this process, on the CPU only"
        if compute_dtype == torch.bfloat16:
            return "triton's interpreter takes the bits of bfloat16 for integers in products"
        return None
    if torch.get_device_module(device) is not torch.cuda or torch.version.hip is not None:
        return f"the kernels are for NVIDIA GPUs, the head is on {device}"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "triton needs a C compiler, and there is neither cc nor gcc nor clang"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"triton has no tensor cores on compute capability {major}.{minor}, only from 8.0 on"
    return None


def on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be the first argument's."""

    @functools.wraps(function)
    def launch(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *args, **kwargs)

    return launch


def hardware(device: torch.device) -> tuple[tuple[int, int] | None, int]:
    """Compute capability and multiprocessors; None and 2 where kernels are interpreted."""
    if device.type == "cpu":
        return None, 2
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def ceil(number: int, block: int) -> int:
    return -(-number // block)
