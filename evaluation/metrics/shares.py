"""Error rates at thresholds that are given: shares of the comparisons of a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.bootstrap import Weights

AT_ONCE = 1 << 14  # comparisons weighted at a time


@dataclass(frozen=True)
class Share:
    """The share of some comparisons that are of a kind.

    Attributes:
        counted: (P,) bool, the comparisons that it is a share of.
        hit: (P,) bool, those of the kind; looked at where counted.
    """

    counted: np.ndarray
    hit: np.ndarray

    @property
    def point(self) -> float:
        """Of the comparisons as they are; NaN where none is counted."""
        counted = int(self.counted.sum())
        return float((self.hit & self.counted).sum() / counted) if counted else np.nan


def weighted_shares(shares: Mapping[str, Share], weigh: Weights) -> dict[str, np.ndarray]:
    """Each share (draws,) of the comparisons as the draws weigh them."""
    return {name: _weighted(share, weigh) for name, share in shares.items()}


def _weighted(share: Share, weigh: Weights) -> np.ndarray:
    places = np.flatnonzero(share.counted)
    hit = share.hit[places].astype(np.float32)
    hits = whole = np.zeros(1)
    for start in range(0, len(places), AT_ONCE):
        weights = weigh(places[start : start + AT_ONCE])
        hits = hits + weights @ hit[start : start + AT_ONCE]
        whole = whole + weights.sum(axis=1)
    return hits / np.where(whole > 0, whole, np.nan)
