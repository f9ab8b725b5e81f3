"""The device code of models.kernels.batch_norm, which launches it and says what it computes.

Maps are (M, C) in memory: M = B·H·W pixels in rows of C channels. A program takes a tile of BLOCK_R
rows and BLOCK_C channels, or every n-th such tile of its channels, n programs beside each other.
Arguments are pointers, named as the tensors are, then numbers; None compiles a kernel without what
it would do. Without triton the module still imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def _jit(function: Callable[..., None]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _load(map, at, inside):
    return tl.load(map + at, mask=inside, other=0.0).to(tl.float32)


@_jit
def _place(row, c, M, C: tl.constexpr):
    """(BLOCK_R, BLOCK_C) offsets in a map, which may pass 2^31, and which of them are in it."""
    return (row.to(tl.int64) * C)[:, None] + c[None, :], (row < M)[:, None] & (c < C)[None, :]


@_jit
def moments_kernel(x, partial, M, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of each channel, over a program's rows: the mean, the sum of squared deviations, the count.

    By Welford's recurrence, as sums of squares lose the variance of a channel that is far from 0.

    Args:
        partial: (n, 3, C) float32.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    count = tl.zeros((BLOCK_R,), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(M, BLOCK_R), tl.num_programs(1)):
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        at, inside = _place(row, c, M, C)
        value = _load(x, at, inside)
        count += tl.where(row < M, 1.0, 0.0)
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))[:, None]
        square += delta * (value - mean)
    rows = tl.sum(count, 0)
    middle = tl.sum(mean * count[:, None], 0) / rows
    apart = mean - middle[None, :]
    out = partial + tl.program_id(1) * 3 * C + c
    tl.store(out, middle, mask=c < C)
    tl.store(out + C, tl.sum(square + apart * apart * count[:, None], 0), mask=c < C)
    tl.store(out + 2 * C, rows + tl.zeros((BLOCK_C,), tl.float32), mask=c < C)


@_jit
def statistics_kernel(
    partial,
    mean,
    rstd,
    running_mean,
    running_var,
    programs,
    M,
    momentum,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Those of all programs made one, and the running statistics moved towards them.

    Args:
        partial: (programs, 3, C), from `moments_kernel`.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, programs, BLOCK_R):
        at, inside = _place(first + tl.arange(0, BLOCK_R), c, programs, 3 * C)
        inside = inside & (c < C)[None, :]
        total += _load(partial, at, inside) * _load(partial, at + 2 * C, inside)
    middle = tl.sum(total, 0) / M
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, programs, BLOCK_R):
        at, inside = _place(first + tl.arange(0, BLOCK_R), c, programs, 3 * C)
        inside = inside & (c < C)[None, :]
        apart = _load(partial, at, inside) - middle[None, :]
        total += _load(partial, at + C, inside) + apart * apart * _load(partial, at + 2 * C, inside)
    square = tl.sum(total, 0)
    tl.store(mean + c, middle, mask=c < C)
    tl.store(rstd + c, 1.0 / tl.sqrt(square / M + eps), mask=c < C)
    kept = 1.0 - momentum
    before = _load(running_mean, c, c < C)
    tl.store(running_mean + c, kept * before + momentum * middle, mask=c < C)
    before = _load(running_var, c, c < C)
    tl.store(running_var + c, kept * before + momentum * (square / (M - 1)), mask=c < C)


@_jit
def output_kernel(
    x,
    mean,
    rstd,
    weight,
    bias,
    slope,
    added,
    output,
    M,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of prelu(norm(x)) + added."""
    tiles = tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.program_id(0) // tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    at, inside = _place(row, c, M, C)
    normal = (_load(x, at, inside) - _load(mean, c, c < C)) * _load(rstd, c, c < C)
    y = normal * _load(weight, c, c < C) + _load(bias, c, c < C)
    if slope is not None:
        y = tl.where(y > 0, y, y * _load(slope, c, c < C))
    if added is not None:
        y += _load(added, at, inside)
    tl.store(output + at, y.to(output.dtype.element_ty), mask=inside)


@_jit
def _normal_gradient(grad, x, mean, rstd, weight, bias, slope, at, inside, c, C: tl.constexpr):
    """Of a tile: the normalized values, the gradient of norm(x), and the slope's share of it.

    Computed from x again, which takes less time than to read more than x and grad.
    """
    normal = (_load(x, at, inside) - _load(mean, c, c < C)) * _load(rstd, c, c < C)
    arriving = _load(grad, at, inside)
    passed, on_slope = arriving, arriving
    if slope is not None:
        y = normal * _load(weight, c, c < C) + _load(bias, c, c < C)
        passed = tl.where(y > 0, arriving, arriving * _load(slope, c, c < C))
        on_slope = tl.where(y > 0, 0.0, arriving * y)
    return normal, passed, on_slope


@_jit
def sums_kernel(
    grad,
    x,
    mean,
    rstd,
    weight,
    bias,
    slope,
    partial,
    M,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradients of bias, weight and slope, over a program's rows.

    Args:
        partial: (n, 3, C) float32, or (n, 2, C) without a slope.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    bias_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    weight_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    slope_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(M, BLOCK_R), tl.num_programs(1)):
        at, inside = _place(tile * BLOCK_R + tl.arange(0, BLOCK_R), c, M, C)
        normal, passed, on_slope = _normal_gradient(
            grad, x, mean, rstd, weight, bias, slope, at, inside, c, C
        )
        bias_sum += passed
        weight_sum += passed * normal
        if slope is not None:
            slope_sum += on_slope
    kinds: tl.constexpr = 2 if slope is None else 3
    out = partial + tl.program_id(1) * kinds * C + c
    tl.store(out, tl.sum(bias_sum, 0), mask=c < C)
    tl.store(out + C, tl.sum(weight_sum, 0), mask=c < C)
    if slope is not None:
        tl.store(out + 2 * C, tl.sum(slope_sum, 0), mask=c < C)


@_jit
def input_grad_kernel(
    grad,
    x,
    mean,
    rstd,
    weight,
    bias,
    slope,
    beside,
    sums,
    input_grad,
    M,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One tile of the gradient of x, given the whole `sums` of the bias and of the weight.

    Args:
        beside: a gradient that is added, or None.
    """
    tiles = tl.cdiv(C, BLOCK_C)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.program_id(0) // tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    at, inside = _place(row, c, M, C)
    normal, passed, _ = _normal_gradient(grad, x, mean, rstd, weight, bias, slope, at, inside, c, C)
    common = _load(sums, c, c < C) / M + normal * (_load(sums + C, c, c < C) / M)
    found = (passed - common) * (_load(weight, c, c < C) * _load(rstd, c, c < C))
    if beside is not None:
        found += _load(beside, at, inside)
    tl.store(input_grad + at, found.to(input_grad.dtype.element_ty), mask=inside)
