"""BatchNorm and what follows it in a network: as modules of torch, or together in one kernel.

Which of them is decided by the class of the norm alone: names and tensors are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.kernels import batch_norm as kernels


def norm_prelu(norm: nn.Module, prelu: nn.PReLU, x: Tensor) -> Tensor:
    """prelu(norm(x)) of (B, C, H, W)."""
    if isinstance(norm, FusedBatchNorm2d):
        return norm(x, prelu=prelu)
    return prelu(norm(x))


def norm_add(norm: nn.Module, x: Tensor, added: Tensor) -> Tensor:
    """norm(x) + added, both (B, C, H, W)."""
    if isinstance(norm, FusedBatchNorm2d):
        return norm(x, added=added)
    out = norm(x)
    out += added
    return out


class FusedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training runs by models.kernels.batch_norm, on NVIDIA GPUs.

    In evaluation it is torch's. `fuse_batch_norm` makes them.
    """

    def forward(
        self, input: Tensor, prelu: nn.PReLU | None = None, added: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W) → the same, in channels_last where it trains.

        Args:
            prelu: what follows, with a slope for each channel.
            added: what is added then, of the shape and dtype of `input`.

        Raises ValueError, as torch's does, for a single value a channel in training.
        """
        if not self.training or input.numel() == input.shape[1]:
            out = super().forward(input)
            out = out if prelu is None else prelu(out)
            return out if added is None else out + added
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return _FusedBatchNorm.apply(
            input.contiguous(memory_format=torch.channels_last),
            self.weight,
            self.bias,
            None if prelu is None else prelu.weight,
            None if added is None else added.contiguous(memory_format=torch.channels_last),
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
        )


class _FusedBatchNorm(torch.autograd.Function):
    """The arguments are those of models.kernels.batch_norm.batch_norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, *rest: Any
    ) -> Tensor:
        output, mean, rstd = kernels.batch_norm(x, weight, bias, slope, *rest)
        ctx.save_for_backward(x, mean, rstd, weight, bias, slope)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias, slope = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        input_grad, sums = kernels.batch_norm_backward(grad, x, mean, rstd, weight, bias, slope)
        of_slope = None if slope is None else sums[2].to(slope.dtype)
        of_added = grad if ctx.needs_input_grad[4] else None
        of_bias, of_weight = sums[0].to(bias.dtype), sums[1].to(weight.dtype)
        return input_grad, of_weight, of_bias, of_slope, of_added, None, None, None, None


def fuse_batch_norm(network: nn.Module) -> None:
    """Let each nn.BatchNorm2d of a network train by our kernels, with what follows it in one.

    They run where models.kernels.batch_norm.obstacle says that nothing is in the way.

    Args:
        network: changed in place; names and tensors stay.
    """
    for module in network.modules():
        fits = type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats
        if fits and module.momentum is not None:
            module.__class__ = FusedBatchNorm2d
