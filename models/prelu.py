"""PReLU whose backward keeps up with the convolutions around it on a CPU.

torch's own kernel handles bfloat16 and float32 gradients one number at a time there, which was
more than a third of an IResNet's whole step. Nothing changes on a GPU, nor in what is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 256 << 10  # four such chunks fit the second-level cache


class PReLU(nn.PReLU):
    """max(x, 0) + weight · min(x, 0), a weight a channel (He et al., 2015, arXiv:1502.01852).

    (B, C, H, W) floating → the same shape, dtype and strides.
    """

    def forward(self, input: Tensor) -> Tensor:
        chunkable = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if input.device.type == "cpu" and chunkable and torch.is_grad_enabled():
            return _ChunkedPReLU.apply(input, self.weight)
        return nn.functional.prelu(input, self.weight.to(input.dtype))


class _ChunkedPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return nn.functional.prelu(input, weight.to(input.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        input, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        input_grad = torch.empty_like(input)
        weight_grad = torch.zeros_like(weight)
        slope = weight.to(input.dtype)
        # (B, C, H, W) in channels_last is (B·H·W, C) in memory
        inputs, grads, input_grads = (
            t.permute(0, 2, 3, 1).flatten(0, 2) for t in (input, grad, input_grad)
        )
        rows = max(1, _CHUNK_BYTES // (inputs.shape[1] * inputs.element_size()))
        for x, g, out in zip(inputs.split(rows), grads.split(rows), input_grads.split(rows)):
            positive = torch.ops.aten.threshold_backward(g, x, 0)  # g where x > 0, else 0
            negative = g - positive
            torch.addcmul(positive, negative, slope, out=out)
            weight_grad += negative.mul_(x).sum(0, dtype=weight.dtype)
        return input_grad, weight_grad
