"""Counter-based random numbers on any device: a pure function of key and index, nothing kept.

The same draws come out after a resume, on any number of ranks and inside a replayed CUDA graph,
where the step that a key is made from is a tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 1 << 64
# splitmix64 (Steele, Lea and Flood, 2014), its unsigned constants as the int64 that torch has.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND_MULTIPLIER = 0x94D049BB133111EB - (1 << 64)


def step_key(seed: int, step: Tensor, stream: int) -> Tensor:
    """A 0-d int64 key for the draws of one kind (`stream`) at one step (0-d int64 tensor)."""
    # What no step changes is computed on the host: on a GPU each operation is a kernel.
    return mix(step * _GOLDEN + _mix_number(_mix_number(seed) + stream))


def bits(key: Tensor, index: Tensor) -> Tensor:
    """(N,) int64 of 63 random bits, never negative, for `index` (N,) int64 under a 0-d key."""
    return _shift_right(mix(key + index * _GOLDEN), 1)


def halves(key: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Two (N,) int32 of 32 random bits each, for `index` (N,) int64 under a 0-d key."""
    whole = mix(key + index * _GOLDEN)
    return whole.to(torch.int32), (whole >> 32).to(torch.int32)  # the conversion drops upper bits


def below(key: Tensor, index: Tensor, limit: Tensor | int) -> Tensor:
    """(N,) int64 uniform in [0, limit); limit: at most 2**31, a number or (N,) int64."""
    return (_shift_right(bits(key, index), 32) * limit) >> 31


def normal(key: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """(N,) standard normal numbers (Box and Muller, 1958)."""
    first = bits(key, 2 * index).double()
    second = bits(key, 2 * index + 1).double()
    radius = (-2 * torch.log((first + 1) / 2.0**63)).sqrt()  # the 1 keeps log(0) away
    return (radius * torch.cos(second * (math.tau / 2**63))).to(dtype)


def mix(state: Tensor) -> Tensor:
    """splitmix64's output function on int64 bits: a bijection that scatters neighboring states."""
    state = (state ^ _shift_right(state, 30)) * _FIRST_MULTIPLIER
    state = (state ^ _shift_right(state, 27)) * _SECOND_MULTIPLIER
    return state ^ _shift_right(state, 31)


def _mix_number(state: int) -> int:
    """`mix` of a number, which is taken modulo 2**64."""
    state = (state ^ (state % _WORD >> 30)) * _FIRST_MULTIPLIER
    state = (state ^ (state % _WORD >> 27)) * _SECOND_MULTIPLIER
    state = (state ^ (state % _WORD >> 31)) % _WORD
    return state - _WORD if state >= _WORD // 2 else state


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # int64's >> copies the sign bit in; the mask clears those copies.
    return (bits >> count) & ((1 << (64 - count)) - 1)
