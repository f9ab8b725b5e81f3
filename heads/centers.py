"""Where class centers start, and which of them a rank owns."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from heads import counter
from heads.sampling import Shard

_STD = 0.01
_BLOCK = 1024
_CENTERS = 3  # the kind of draws; heads.rows.step_rows has 1, heads.head_step 2 and 4


def shard_of(num_classes: int, *, rank: int, world_size: int) -> Shard:
    """Rank r of w owns the ids from r·ceil(C/w), at most ceil(C/w): DTensor's Shard(0)."""
    rows_per_rank = math.ceil(num_classes / world_size)
    first = min(rank * rows_per_rank, num_classes)
    count = min(first + rows_per_rank, num_classes) - first
    return Shard(num_classes=num_classes, first_class=first, num_local=count)


def initial_centers(first_class: int, count: int, width: int, *, seed: int) -> Tensor:
    """(count, width) float32 for the global class ids from first_class on, see initial_pieces."""
    centers = torch.empty(count, width, dtype=torch.float32, device="cpu")
    for rows, drawn in initial_pieces(first_class, count, width, seed=seed):
        centers[rows] = drawn
    return centers


def initial_pieces(
    first_class: int, count: int, width: int, *, seed: int
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their (m, width) float32 from N(0, 0.01²), in order, m at most 1024.

    Drawn on the CPU in blocks of 1024 ids, each from its own generator, so that a class starts at
    the same place whichever rank owns it and however many others there are. The generators' seeds
    are hashed from `seed`, in [0, 2**63): torch.manual_seed(seed) and seeds near it give other
    numbers.
    """
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    origin = int(counter.bits(counter.step_key(seed, zero, _CENTERS), zero))
    stop = first_class + count
    for block in range(first_class // _BLOCK, math.ceil(stop / _BLOCK)):
        # The generator keeps 32 bits of its seed: hashed alone, two of 100,000 blocks could meet.
        generator = torch.Generator().manual_seed((origin + block) & 0xFFFFFFFF)
        drawn = torch.empty(_BLOCK, width, dtype=torch.float32, device="cpu")
        drawn = drawn.normal_(std=_STD, generator=generator)
        start = block * _BLOCK
        low, high = max(start, first_class), min(start + _BLOCK, stop)
        yield slice(low - first_class, high - first_class), drawn[low - start : high - start]
