"""Which record when: pure functions of (seed, epoch, position, world).

An epoch is a permutation of the records, never stored: a Feistel network over the record numbers
answers for any position on its own, so that resuming is free at any point and any world size. The
position counts samples of the global batch; rank r of w takes the r-th of w equal slices of each.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline import counter

# Four passes over either half: below that, small sets show which neighbors stayed together.
_ROUNDS = 8


def permute(position: np.ndarray, *, num_records: int, seed: int, epoch: int) -> np.ndarray:
    """Positions of an epoch, (N,) int64 in [0, num_records), to record numbers, (N,) int64.

    A bijection for every (seed, epoch). The network runs over a rectangle `rows × columns` that
    barely holds the records; the few images outside them walk on until they fall inside.
    """
    rows = max(1, math.isqrt(num_records))
    columns = -(-num_records // rows)
    keys = [counter.key(seed, epoch, "order", r) for r in range(_ROUNDS)]

    def encipher(x: np.ndarray) -> np.ndarray:
        row, column = np.divmod(x, columns)
        for r, round_key in enumerate(keys):
            if r % 2 == 0:
                row = (row + (counter.bits(round_key, column) >> np.uint64(33)).view("i8")) % rows
            else:
                column = (
                    column + (counter.bits(round_key, row) >> np.uint64(33)).view("i8")
                ) % columns
        return row * columns + column

    record = encipher(np.asarray(position, np.int64))
    outside = np.flatnonzero(record >= num_records)
    while len(outside):
        record[outside] = encipher(record[outside])
        outside = outside[record[outside] >= num_records]
    return record


def steps_per_epoch(num_records: int, global_batch: int) -> int:
    """Whole global batches in an epoch; ValueError when there is not even one."""
    if global_batch > num_records:
        raise ValueError(
            f"a global batch of {global_batch} does not fit {num_records} records: "
            "lower data.global_batch"
        )
    return num_records // global_batch


def rank_positions(position: int, *, global_batch: int, rank: int, world_size: int) -> np.ndarray:
    """The positions rank `rank` takes of the global batch that starts at `position`, (B,) int64.

    Raises ValueError when the global batch does not split evenly over the ranks.
    """
    if global_batch % world_size:
        raise ValueError(
            f"a global batch of {global_batch} does not split evenly over {world_size} ranks"
        )
    batch = global_batch // world_size
    return np.arange(position + rank * batch, position + (rank + 1) * batch, dtype=np.int64)
