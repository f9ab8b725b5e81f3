"""Identity-balanced batches: P identities, K images of each, as pure index arithmetic."""

from __future__ import annotations

import numpy as np

from facestream import UserError
from pipeline import counter
from pipeline.order import permute


class BalancedOrder:
    """Every global batch holds `global_batch / images` identities with `images` images each.

    Identities take turns: each comes once before any comes again, in an order that is drawn for
    every turn. An identity's images take turns likewise, on through the epochs; one that has fewer
    than `images` repeats some. An epoch is as long as with the other orders, but
    identities with few images are seen more often than they would be, and others less.

    labels: (N,) int64, each record's identity. Building it sorts them once, 8 bytes a record.

    Raises ValueError where `images` does not divide the global batch.
    """

    locality = 1

    def __init__(self, labels: np.ndarray, *, seed: int, global_batch: int, images: int) -> None:
        if images < 1 or global_batch % images:
            raise UserError(
                f"data.images_per_identity={images} does not divide "
                f"data.global_batch={global_batch}: every identity of a batch has the same number"
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
