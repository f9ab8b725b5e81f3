"""PReLU that keeps up with the convolutions around it on a CPU.

torch's kernels handle what backward needs one number at a time there, and forward too where a
channels_last tensor has few channels: together more than a third of an IResNet's step. Nothing
changes on a GPU, nor in what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# A thread: larger ones leave the caches, and at the end of each operation threads wait for one
# another, which takes long where other work, such as decoding, has their cores meanwhile.
_CHUNK_BYTES = 4 << 20


class PReLU(nn.PReLU):
    """max(x, 0) + weight · min(x, 0), a weight a channel (He et al., 2015, arXiv:1502.01852).

    (B, C, H, W) floating → the same shape, dtype and strides.

    Attributes:
        in_place: whether the input may be overwritten where no gradient is asked for. On a CPU, in
            channels_last, that spares a map of memory, whose pages often cost more than the work.
    """

    in_place = False

    def forward(self, input: Tensor) -> Tensor:
        in_rows = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        # A compiler fuses torch's own formula with its neighbors: better than any loop of ours.
        if torch.compiler.is_compiling() or input.device.type != "cpu" or not in_rows:
            return nn.functional.prelu(input, self.weight.to(input.dtype))
        # (B, C, H, W) in channels_last is (B·H, W·C) in memory: long rows, against which the
        # weights are repeated, so that loops over them are long too.
        batch, _, height, width = input.shape
        rows = input.permute(0, 2, 3, 1).reshape(batch * height, -1)
        if self.in_place and not torch.is_grad_enabled():
            weight = self.weight.to(input.dtype).repeat(width)
            for chunk in _chunks(rows):
                chunk.copy_(nn.functional.prelu(chunk, weight))
            output = rows
        else:
            output = _RowsPReLU.apply(rows, self.weight.repeat(width))
        return output.view(batch, height, width, -1).permute(0, 3, 1, 2)


class _RowsPReLU(torch.autograd.Function):
    """PReLU of (rows, columns) with a weight a column."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return nn.functional.prelu(input, weight.to(input.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        input_grad = torch.empty_like(input)
        weight_grad = torch.zeros_like(weight)
        slope = weight.to(input.dtype)
        chunks = zip(_chunks(input), _chunks(grad.contiguous()), _chunks(input_grad))
        for x, g, out in chunks:
            positive = torch.ops.aten.threshold_backward(g, x, 0)  # g where x > 0, else 0
            negative = g - positive
            torch.addcmul(positive, negative, slope, out=out)
            # Summed in float32 and rounded once a chunk; asking for float32 would copy it first.
            weight_grad += negative.mul_(x).sum(0)
        return input_grad, weight_grad


def _chunks(rows: Tensor) -> Sequence[Tensor]:
    """(rows, columns) in parts that stay in the caches."""
    chunk_bytes = _CHUNK_BYTES * torch.get_num_threads()
    return rows.split(max(1, chunk_bytes // (rows.shape[1] * rows.element_size())))
