"""Which class centers take part in a step (PartialFC, An et al., 2022, arXiv:2203.15565).

Pure functions of tensors on any device, with static shapes and no host synchronization, so they can
be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood, 2014), its unsigned constants as the int64 that torch has.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST_MULTIPLIER = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND_MULTIPLIER = 0x94D049BB133111EB - (1 << 64)
_INT64_MAX = (1 << 63) - 1


def sample_size(num_local: int, global_batch: int, sample_rate: float) -> int:
    """Rows that take part in a step: sample_rate · num_local, but never fewer than may be needed.

    num_local: center rows of this rank, >= 0. global_batch: rows of all ranks' batches together.
    sample_rate: in (0, 1].

    The bound counts what could happen, not what does: a global batch names at most `global_batch`
    different classes, and all of them may live on this rank. So every positive always fits, and the
    size is the same at every step, whatever the labels are.
    """
    return min(num_local, max(round(sample_rate * num_local), global_batch))


def sample_rows(
    labels: Tensor, *, num_local: int, size: int, seed: int, step: Tensor, first_class: int
) -> Tensor:
    """Rows of this rank for a step: all its positives, then uniformly random negatives.

    labels: (G,) int64 row of each sample's class on this rank, -1 where another rank owns it.
    size: from sample_size; holds every positive. step: 0-d int64 tensor on the labels' device.
    first_class: global class id of this rank's row 0.

    Returns (size,) int64 row ids, ascending, without repetition.

    A row's place in the draw is a hash of (seed, step, global class id): the same after a resume,
    and different from rank to rank because the class ids are.
    """
    step_key = _mix(_mix(torch.full_like(step, seed)) + step * _GOLDEN)
    # One slot past the last row takes the labels that are not ours, then is cut off.
    classes = torch.arange(num_local + 1, device=labels.device) + first_class
    keys = _mix(step_key + classes * _GOLDEN) & (_INT64_MAX >> 1)
    keys.index_fill_(0, torch.where(labels >= 0, labels, num_local), _INT64_MAX)
    return keys[:num_local].topk(size, sorted=False).indices.sort().values


def _mix(state: Tensor) -> Tensor:
    """splitmix64's output function on int64 bits: a bijection that scatters neighboring states."""
    state = (state ^ _shift_right(state, 30)) * _FIRST_MULTIPLIER
    state = (state ^ _shift_right(state, 27)) * _SECOND_MULTIPLIER
    return state ^ _shift_right(state, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # int64's >> copies the sign bit in; the mask clears those copies.
    return (bits >> count) & ((1 << (64 - count)) - 1)
