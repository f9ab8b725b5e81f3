"""A loss whose gradient was computed on the way forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class KnownGradient(torch.autograd.Function):
    """(embeddings, loss, d loss / d embeddings) → the loss, whose backward only scales the last."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        ctx.dtype = embeddings.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        # Scaled before it is narrowed, so that a loss scale lifts it over float16's underflow.
        return (loss_grad * grad).to(ctx.dtype), None, None
