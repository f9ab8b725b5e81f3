"""Error versus discard: does a quality value know which images will be mistaken?

Of the genuine pairs the share of lowest quality is discarded, and what FNMR the others have is
plotted over that share; a pair is as good as the worse of its images. The threshold stays where it
was for all pairs (ISO/IEC 29794-1; Grother and Tabassi, Performance of biometric quality measures,
2007).
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics.bootstrap import Weights

MOST = 0.5  # beyond it too few pairs are left to say anything
STEPS = 50


class Discard:
    """The curve of one quality.

    Args:
        quality: (P,) of each pair, greater for better.
        same: (P,) bool.
        accepted: (P,) bool, by the threshold for all.

    Attributes:
        shares: (points,) the shares of the genuine pairs that are discarded. Pairs of equal quality
            stay or go together, so the steps may be uneven.
    """

    def __init__(self, quality: np.ndarray, same: np.ndarray, accepted: np.ndarray) -> None:
        genuine = np.flatnonzero(same)
        self._order = genuine[np.argsort(quality[genuine], kind="stable")]
        rising = quality[self._order]
        wanted = np.round(np.linspace(0, MOST, STEPS + 1) * len(rising)).astype(np.int64)
        wanted = np.minimum(wanted, len(rising) - 1)
        # Back to the first pair of the same quality: the order of a file says nothing.
        self._begins = np.unique(np.searchsorted(rising, rising[wanted], side="left"))
        self._refused = ~accepted[self._order]
        self.shares = self._begins / len(rising)

    def fnmr(self, weigh: Weights) -> np.ndarray:
        """FNMR of the pairs that are left at each share, (draws, points)."""
        weights = weigh(self._order).astype(np.float64)
        kept = np.add.reduceat(weights, self._begins, axis=1)
        wrong = np.add.reduceat(weights * self._refused, self._begins, axis=1)
        kept, wrong = (np.cumsum(part[:, ::-1], axis=1)[:, ::-1] for part in (kept, wrong))
        return wrong / np.where(kept > 0, kept, np.nan)
