"""How well an order mixes identities: measured on a few batches, before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.order import Order

_BATCHES = 16
# Fewer distinct identities than this share of what is possible, and a batch is not well mixed.
_WANTED = 0.9


class ShuffleReport(NamedTuple):
    """Mean number of distinct identities in a global batch, and in one drawn from the whole set."""

    found: float
    ideal: float

    @property
    def is_poor(self) -> bool:
        return self.found < _WANTED * self.ideal

    def __str__(self) -> str:
        text = f"{self.found:.1f} distinct identities in a batch, {self.ideal:.1f} if ideal"
        if self.is_poor:
            text += (
                "; too few: the file is sorted by identity and the windows are small, take more "
                "blocks into a window or smaller blocks"
            )
        return text


def report_shuffle(
    order: Order,
    labels: Callable[[np.ndarray], np.ndarray],
    *,
    epoch_records: int,
    global_batch: int,
    seed: int,
) -> ShuffleReport:
    """Look at batches spread over the first epoch, and at as many drawn from all of it.

    Args:
        labels: (N,) record numbers to (N,) int64 identities.
        epoch_records: positions of an epoch.
    """
    batches = epoch_records // global_batch
    looked_at = np.unique(np.linspace(0, batches - 1, _BATCHES).astype(np.int64))
    rng = np.random.default_rng(seed)
    found, ideal = [], []
    for batch in looked_at.tolist():
        positions = np.arange(batch * global_batch, (batch + 1) * global_batch, dtype=np.int64)
        found.append(len(np.unique(labels(order(positions, 0)))))
        drawn = rng.choice(epoch_records, global_batch, replace=False, shuffle=False)
        ideal.append(len(np.unique(labels(order(drawn, 0)))))
    return ShuffleReport(float(np.mean(found)), float(np.mean(ideal)))
