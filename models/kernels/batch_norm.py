"""BatchNorm in training, with the PReLU or the addition that follows it, as Triton kernels.

Where every operation is a kernel of its own, most of a network's time goes into reading and writing
maps. Here x is read twice, for its statistics and for the output; in backward x and the gradient
are, and what lies between them is computed again instead of kept.

x is (B, C, H, W) float16, bfloat16 or float32, contiguous in channels_last, and so are the other
maps; parameters and statistics are (C,). Everything is computed in float32 and rounded once. Shapes
are static, the host waits for nothing, and no sum depends on which program ends first: a step is
the same bits at every run and can be captured in a CUDA graph, after one step outside of it, in
which Triton compiles.
"""

from __future__ import annotations

import os
import shutil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.kernels import batch_norm_code as code

# Programs of a multiprocessor where something is summed up: two to four run beside each other.
_PROGRAMS = 4
# Channels of a program that puts together what those found: it reads many rows of few values.
_FEW = 16


class Launch(NamedTuple):
    """How the kernels are started for a map.

    Attributes:
        sums: the grid of those that sum over rows: tiles of channels, programs beside each other.
        tiles: the grid of those that take a tile each.
        options: what all of them are given.
    """

    sums: tuple[int, int]
    tiles: tuple[int]
    options: dict[str, int]


def launch_of(x: Tensor) -> Launch:
    """For x and maps like it.

    A program of 256 threads has 16 values in each, two loads of 16 bytes, so that sums of three
    kinds fit beside them. 64 channels of 16 bits are the 128 bytes that a GPU reads at once.
    """
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    fits = 1 << (channels - 1).bit_length()
    if x.device.type == "cpu":  # the interpreter's
        processors, size, width, warps = 1, 512, min(fits, 16), 1
    else:
        processors, size, width, warps = _processors(x.device), 4096, min(fits, 64), 8
    row_tiles, channel_tiles = _ceil(rows, size // width), _ceil(channels, width)
    beside = max(1, min(_PROGRAMS * processors // channel_tiles, row_tiles))
    options = {"C": channels, "BLOCK_R": size // width, "BLOCK_C": width, "num_warps": warps}
    return Launch((channel_tiles, beside), (row_tiles * channel_tiles,), options)


def obstacle(device: torch.device) -> str | None:
    """None where these kernels can be used, else in words why not."""
    triton = code.triton
    if triton is None:
        return "triton is not installed"
    if not isinstance(code.moments_kernel, triton.runtime.JITFunction):
        return None if device.type == "cpu" else "triton interprets its kernels in this process"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"the kernels are for NVIDIA GPUs, the network is on a {device.type}"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "triton needs a C compiler, and there is neither cc nor gcc nor clang"
    return None


def forward_pass(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    added: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """prelu(norm(x)) + added, by the statistics of x, at least two values a channel.

    Moves the running statistics, the variance by its unbiased estimate, as nn.BatchNorm2d does.

    Args:
        slope: of the PReLU, or None for none.
        added: a map like x, or None.

    Returns:
        The map, and mean and reciprocal standard deviation of each channel, (C,) float32.
    """
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    output = torch.empty_like(x)
    mean = x.new_empty(channels, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    with torch.cuda.device_of(x):
        launch = launch_of(x)
        programs = launch.sums[1]
        partial = mean.new_empty(programs, 3, channels)
        code.moments_kernel[launch.sums](x, partial, rows, **launch.options)
        code.statistics_kernel[(_ceil(channels, _FEW),)](
            *(partial, mean, rstd, running_mean, running_var),
            *(programs, rows, momentum, eps),
            **{"C": channels, "BLOCK_R": 256, "BLOCK_C": _FEW, "num_warps": 8},
        )
        code.output_kernel[launch.tiles](
            x, mean, rstd, weight, bias, slope, added, output, rows, **launch.options
        )
    return output, mean, rstd


def backward_pass(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None,
    beside: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients for `grad`, that of the output; `added` has the same as the output.

    Args:
        beside: a gradient that reaches x on another way, or None.

    Returns:
        The whole gradient of x, and those of bias, weight and, where there is one, slope:
        (2 or 3, C) float32.
    """
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    input_grad = torch.empty_like(x)
    given = (grad, x, mean, rstd, weight, bias, slope)
    with torch.cuda.device_of(x):
        launch = launch_of(x)
        partial = mean.new_empty(launch.sums[1], 2 if slope is None else 3, channels)
        code.sums_kernel[launch.sums](*given, partial, rows, **launch.options)
        sums = partial.sum(0)
        code.input_grad_kernel[launch.tiles](
            *given, beside, sums, input_grad, rows, **launch.options
        )
    return input_grad, sums


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _backward_fake(grad: Tensor, x: Tensor, mean: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    slope = rest[3]
    return torch.empty_like(x), mean.new_empty(2 if slope is None else 3, x.shape[1])


# As operators of torch, so that tensors without memory go through them, too. By `custom_op` each
# call would take 30 µs more of the host.
_LIBRARY = torch.library.Library("facestream", "FRAGMENT")
_LIBRARY.define(
    "batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor? slope, Tensor? added, "
    "Tensor(a!) running_mean, Tensor(b!) running_var, float momentum, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "batch_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, "
    "Tensor bias, Tensor? slope, Tensor? beside) -> (Tensor, Tensor)"
)
for _name, _kernels, _fake in (
    ("batch_norm", forward_pass, _forward_fake),
    ("batch_norm_backward", backward_pass, _backward_fake),
):
    _LIBRARY.impl(_name, _kernels, "CompositeExplicitAutograd")
    torch.library.register_fake(f"facestream::{_name}", _fake, lib=_LIBRARY)
batch_norm = torch.ops.facestream.batch_norm.default
batch_norm_backward = torch.ops.facestream.batch_norm_backward.default


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _ceil(number: int, block: int) -> int:
    return -(-number // block)
