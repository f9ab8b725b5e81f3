"""Which record when: pure functions of (seed, epoch, position, world).

An epoch is a permutation of the records, never stored: a Feistel network over the record numbers
answers for any position on its own, so that resuming is free at any point and any world size. The
position counts samples of the global batch; rank r of w takes the r-th of w equal slices of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from facestream import UserError
from pipeline import counter


class Order(Protocol):
    """Which record when; `locality`: positions in a row whose records lie close in the file."""

    locality: int

    def __call__(self, position: np.ndarray, epoch: int) -> np.ndarray:
        """(N,) int64 positions of an epoch to (N,) int64 record numbers."""


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
    """Whole global batches in an epoch; UserError when there is not even one."""
    if global_batch > num_records:
        raise UserError(
            f"a global batch of {global_batch} does not fit {num_records} records: "
            "lower global_batch"
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


class GlobalOrder:
    """A true permutation of the whole set in every epoch."""

    locality = 1

    def __init__(self, num_records: int, *, seed: int) -> None:
        self._num_records, self._seed = num_records, seed

    def __call__(self, position: np.ndarray, epoch: int) -> np.ndarray:
        """(N,) int64 positions of an epoch to (N,) int64 record numbers."""
        return permute(position, num_records=self._num_records, seed=self._seed, epoch=epoch)


class BlockOrder:
    """Near-sequential reads, for network disks: blocks of neighbors, mixed inside windows.

    The set is cut into blocks of `block` consecutive records; the blocks are permuted, and the
    records of each window of `window` blocks permuted among themselves. So at any time a run reads
    from `window` places of the file, each of them in one piece. Where the cuts fall is drawn for
    each epoch again. Every record comes once an epoch.

    Raises ValueError for a block or window below 1.
    """

    def __init__(self, num_records: int, *, seed: int, block: int, window: int) -> None:
        if block < 1 or window < 1:
            raise ValueError(f"blocks of {block} records, windows of {window} blocks: at least 1")
        self._num_records, self._seed = num_records, seed
        self._block, self._window = block, window
        self.locality = block * window

    def __call__(self, position: np.ndarray, epoch: int) -> np.ndarray:
        """(N,) int64 positions of an epoch to (N,) int64 record numbers."""
        position = np.asarray(position, np.int64)
        size = self._block * self._window
        record = np.empty_like(position)
        for window in np.unique(position // size).tolist():  # a batch lies in one or two
            here = position // size == window
            place = permute(
                position[here] - window * size,
                num_records=min(size, self._num_records - window * size),
                seed=counter.word(self._seed, "window", window),
                epoch=epoch,
            )
            record[here] = self._read(window * self._window, place, epoch)
        rotation = counter.word(self._seed, epoch, "rotation") % self._num_records
        return (record + rotation) % self._num_records

    def _read(self, first_block: int, place: np.ndarray, epoch: int) -> np.ndarray:
        """Records at places of the window that begins with the `first_block`-th permuted block."""
        block, into = np.divmod(place, self._block)
        block += first_block
        # What the last block lacks is at the end of the set: it stays in its place, and the
        # rotation makes it another stretch in every epoch.
        whole = self._num_records // self._block
        inside = block < whole
        block[inside] = permute(
            block[inside], num_records=whole, seed=counter.word(self._seed, "blocks"), epoch=epoch
        )
        return block * self._block + into


class WeightedOrder:
    """Sets that are seen more or less often than once an epoch.

    A set shown in part goes on in the next epoch where it stopped; one shown more than once begins
    again.

    Args:
        order: over the records of an epoch, sum of `shown`.
        counts: records of each set, in a row.
        shown: how many of each an epoch shows.
    """

    def __init__(self, order: Order, *, counts: Sequence[int], shown: Sequence[int]) -> None:
        self._order, self.locality = order, order.locality
        self._counts, self._shown = np.array(counts), np.array(shown)
        self._ends = np.cumsum(self._shown)
        self._starts = np.cumsum(self._counts) - self._counts

    def __call__(self, position: np.ndarray, epoch: int) -> np.ndarray:
        """(N,) int64 positions of an epoch to (N,) int64 record numbers."""
        place = self._order(position, epoch)
        at = np.searchsorted(self._ends, place, side="right")
        into = place - (self._ends - self._shown)[at] + epoch * self._shown[at]
        return self._starts[at] + into % self._counts[at]


class BalancedOrder:
    """Every global batch holds `global_batch / images` identities with `images` images each.

    Identities take turns: each comes once before any comes again, in an order that is drawn for
    every turn. An identity's images take turns likewise, on through the epochs; one that has fewer
    than `images` repeats some. An epoch is as long as with the other orders, but
    identities with few images are seen more often than they would be, and others less.

    Args:
        labels: (N,) int64, each record's identity. Building it sorts them once, 8 bytes a record.

    Raises:
        UserError: `images` does not divide the global batch.
    """

    locality = 1

    def __init__(self, labels: np.ndarray, *, seed: int, global_batch: int, images: int) -> None:
        if images < 1 or global_batch % images:
            raise UserError(
                f"images={images} does not divide global_batch={global_batch}: every identity of a "
                "batch has the same number"
            )
        self._records = np.argsort(labels, kind="stable")
        self._starts = np.flatnonzero(np.diff(labels[self._records], prepend=-1))
        self._counts = np.diff(self._starts, append=len(labels))
        self._seed, self._images = seed, images
        self._batch_identities = global_batch // images
        self._batches = len(labels) // global_batch  # an epoch

    def __call__(self, position: np.ndarray, epoch: int) -> np.ndarray:
        """(N,) int64 positions of an epoch to (N,) int64 record numbers."""
        pick, image = np.divmod(np.asarray(position, np.int64), self._images)
        # Picks are counted through the epochs, so that turns do not end with them.
        pick += epoch * self._batches * self._batch_identities
        turn, place = np.divmod(pick, len(self._starts))
        identity = np.empty_like(pick)
        for one in np.unique(turn).tolist():
            here = turn == one
            identity[here] = permute(
                place[here], num_records=len(self._starts), seed=self._seed, epoch=one
            )
        return self._records[self._starts[identity] + self._image(identity, turn, image)]

    def _image(self, identity: np.ndarray, turn: np.ndarray, image: np.ndarray) -> np.ndarray:
        """(N,) which of its images an identity shows as its `image`-th in a turn.

        Around and around its images, with a step that shares no divisor with their number: any
        `count` in a row are all of them.
        """
        count = self._counts[identity]
        drawn = counter.bits(counter.key(self._seed, "images"), identity)
        start = (drawn >> np.uint64(33)).astype(np.int64)
        step = _coprime((drawn & np.uint64(0xFFFF)).astype(np.int64), count)
        return (start + (turn * self._images + image) % count * step) % count


def _coprime(wish: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(N,) the first number from wish mod count on that shares no divisor with count."""
    step = wish % count
    shares = np.gcd(step, count) != 1
    while shares.any():
        step = np.where(shares, step + 1, step)
        shares = np.gcd(step, count) != 1
    return step
