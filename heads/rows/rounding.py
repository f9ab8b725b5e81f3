"""Stochastic rounding of rows to bfloat16 and float8_e4m3, the same bits wherever it is done.

A value between two neighbors goes to the upper one with the probability of its distance from the
lower one, so that what many small updates add up to is not lost: in expectation nothing is. What is
exactly representable stays. The noise of an element is a function of the row's key and its column
alone, the upper bits of their product modulo 2^32. Keys of rows are uniform and columns' are odd,
so that the product is uniform too: no value is favored.

    bfloat16    (bits(w) + noise of 16 bits) >> 16
    float8      w = scale · y,  (bits(y · 2^-120) + noise of 20 bits) >> 20

with the bits of float32. 2^-120 is between the two types' exponents: it takes float8's subnormal
numbers to float32's, and one rule holds for all. A float8 scale is a power of two. Another would
not use the range better by more than one bit of the smallest values, and with it every value that
is kept is exact in float32 and in bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heads import counter
from heads.passes.workspace import Workspace

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max  # 448
_ALIGN = 2.0**-120
# float8's subnormal numbers and float16's lie 2^8 apart, and both types have room for the other's.
_HALF_ALIGN = 2.0**8


def column_keys(width: int, device: torch.device) -> Tensor:
    """(width,) int32 odd, the same for every matrix."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return counter.halves(zero, torch.arange(width, device=device))[0] | 1


def round_to_bfloat16(rows: Tensor, keys: Tensor | None, out: Tensor, workspace: Workspace) -> None:
    """Round float32 rows (m, W) into bfloat16 `out`; what lies above its range becomes inf.

    Args:
        keys: (m,) int32 of the rows; None: to the nearest.
    """
    bits = _add_noise(rows, keys, cut=16, workspace=workspace)
    out.copy_(bits.bitwise_and_(-1 << 16).view(torch.float32))


def round_to_float8(
    rows: Tensor, scales: Tensor, keys: Tensor | None, out: Tensor, workspace: Workspace
) -> Tensor:
    """Round float32 rows (m, K·D) into float8_e4m3fn `out`; returns their scales (m, K) float32.

    No finite row overflows; the scale of one that is not finite is NaN.

    Args:
        scales: (m, K) that the rows had, which are kept where they still serve: so a row that has
            not moved stays as it is, bit for bit.
        keys: as in `round_to_bfloat16`.
    """
    parts = rows.unflatten(1, (scales.shape[1], -1))  # (m, K, D)
    aligned = workspace.take("rounding: aligned", parts.shape, torch.float32)
    scales = _fitting(torch.abs(parts, out=aligned).amax(2), scales)
    # In two steps: no one factor takes every row there.
    torch.mul(parts, scales.reciprocal().unsqueeze(2), out=aligned).mul_(_ALIGN)
    bits = _add_noise(aligned.view_as(rows), keys, cut=20, workspace=workspace)
    codes = out.view(torch.int8)
    # The low bits of both: a conversion to int8 drops the others.
    sign = torch.bitwise_right_shift(bits, 24, out=aligned.view(torch.int32).view_as(bits))
    codes.copy_(bits.bitwise_right_shift_(20).bitwise_or_(sign.bitwise_and_(0x80)))
    return scales


def from_float8(values: Tensor, scales: Tensor, out: Tensor, workspace: Workspace) -> Tensor:
    """Read (m, K·D) float8_e4m3fn with scales (m, K) into `out`, exactly; returns it."""
    # By way of float16's bits: torch converts float8 value by value, which takes ten times as long.
    bits = workspace.take("rounding: half", values.shape, torch.int16)
    bits.copy_(values.view(torch.int8)).bitwise_left_shift_(7).bitwise_and_(~(1 << 14))
    out.copy_(bits.view(torch.float16))
    out.unflatten(1, (scales.shape[1], -1)).mul_((scales * _HALF_ALIGN).unsqueeze(2))
    return out


def _fitting(largest: Tensor, scales: Tensor) -> Tensor:
    """Powers of two that bring the largest value of each sub-center into (224, 448], the old scale
    where it does, its rounding to 224 among it; NaN for what is not finite."""
    top = largest.view(torch.int32)
    # 448 is 1.75 · 2^8: a mantissa above 1.75 carries into the exponent.
    exponent = ((top + 0x1FFFFF) >> 23) - 8
    fitting = (exponent.clamp_min(1) << 23).view(torch.float32)
    serve = (largest <= _LARGEST * scales) & (largest >= _LARGEST / 2 * scales)
    fitting = torch.where(serve | (largest == 0), scales, fitting)
    return torch.where(largest < torch.inf, fitting, torch.nan)


def _add_noise(rows: Tensor, keys: Tensor | None, *, cut: int, workspace: Workspace) -> Tensor:
    """(m, W) int32: the bits of float32 rows, plus noise in the lower `cut` of them."""
    bits = workspace.take("rounding: bits", rows.shape, torch.int32)
    if keys is None:
        return torch.add(rows.view(torch.int32), 1 << (cut - 1), out=bits)
    torch.mul(keys.unsqueeze(1), column_keys(rows.shape[1], rows.device), out=bits)
    bits.bitwise_right_shift_(32 - cut).bitwise_and_((1 << cut) - 1)
    return bits.add_(rows.view(torch.int32))
