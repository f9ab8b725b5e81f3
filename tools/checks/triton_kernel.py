"""A kernel of Triton's, so small that only the way to the GPU can be at fault."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.passes.kernels.kernel_launch import jit, tl


@jit
def _double_kernel(source, target, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    tl.store(target + place, 2 * tl.load(source + place, inside), inside)


def double(numbers: Tensor) -> Tensor:
    """Twice each of (N,) numbers on a GPU."""
    target = torch.empty_like(numbers)
    _double_kernel[(-(-len(numbers) // 64),)](numbers, target, len(numbers), BLOCK=64)
    return target
