"""Compiles, without a GPU, every kernel that models.kernels.batch_norm would launch; prints JSON.

    python tests/models/kernels/compile_batch_norm.py 75:64:float16:prelu ...

Each argument is compute capability, channels, dtype of the maps, and what follows: `prelu`, `added`
or `alone`. The launches are recorded from the functions that a step calls, with meta tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.compiled_kernels import Launch, compile_steps, recorded_launches
from models.kernels import batch_norm


def record_step(capability: int, channels: str, dtype: str, follows: str) -> list[Launch]:
    """The launches of forward and backward, given the words of an argument."""
    batch_norm._processors = lambda _device: 100

    def parameter() -> Tensor:
        return torch.empty(int(channels), device="meta")

    x = torch.empty(512, int(channels), 56, 56, dtype=getattr(torch, dtype), device="meta")
    weight, bias = parameter(), parameter()
    slope = parameter() if follows == "prelu" else None
    added = x if follows == "added" else None
    with recorded_launches() as launches:
        _, mean, rstd = batch_norm.forward_pass(
            x, weight, bias, slope, added, parameter(), parameter(), 0.1, 1e-5
        )
        batch_norm.backward_pass(x, x, mean, rstd, weight, bias, slope, added)
    return launches


if __name__ == "__main__":
    compile_steps(sys.argv[1:], record_step)
