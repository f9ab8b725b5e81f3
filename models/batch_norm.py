"""BatchNorm and what follows it in a network: as modules of torch, or together in one kernel.

Which of them is decided by the class of the norm alone: names and tensors are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.kernels import batch_norm as kernels


def norm_prelu(norm: nn.Module, prelu: nn.Module, x: Tensor) -> Tensor:
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


def norm_fork(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """norm(x), and x for what else is done with it, (B, C, H, W): where their gradients meet."""
    if isinstance(norm, FusedBatchNorm2d):
        return norm(x, fork=True)
    return norm(x), x


class FusedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose training runs by models.kernels.batch_norm, on NVIDIA GPUs.

    In evaluation it is torch's. `fuse_batch_norm` makes them.
    """

    def forward(
        self,
        input: Tensor,
        prelu: nn.PReLU | None = None,
        added: Tensor | None = None,
        fork: bool = False,
    ) -> Any:
        """(B, C, H, W) → the same, in channels_last where it trains.

        Args:
            prelu: what follows, with a slope for each channel.
            added: what is added then, of the shape and dtype of `input`.
            fork: whether the input is returned, too.

        Raises ValueError, as torch's does, for a single value a channel in training.
        """
        if not self.training or input.numel() == input.shape[1]:
            out = super().forward(input)
            out = out if prelu is None else prelu(out)
            out = out if added is None else out + added
            return (out, input) if fork else out
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        out, same = _FusedBatchNorm.apply(
            _in_rows(input),
            self.weight,
            self.bias,
            None if prelu is None else prelu.weight,
            None if added is None else _in_rows(added),
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
        )
        return (out, same) if fork else out


def _in_rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _FusedBatchNorm(torch.autograd.Function):
    """The arguments are those of models.kernels.batch_norm.batch_norm; gives x, too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        output, mean, rstd = kernels.batch_norm(x, weight, bias, slope, *rest)
        ctx.save_for_backward(x, mean, rstd, weight, bias, slope)
        ctx.set_materialize_grads(False)  # where x is used for nothing else, there is none for it
        return output, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, beside: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias, slope = ctx.saved_tensors
        grad = _in_rows(grad)
        input_grad, sums = kernels.batch_norm_backward(
            *(grad, x, mean, rstd, weight, bias, slope),
            None if beside is None else _in_rows(beside),
        )
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
