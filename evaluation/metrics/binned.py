"""The figures of millions of pairs: exact for the pairs as they are, over bins in the draws.

A draw weighs every pair, and to sort weights that do not fit the caches would take minutes. Bins
of 0.0005 in cosine are far finer than any interval; the draws' figures are only ever taken less
that of the same bins without weights, so what the bins round off does not shift them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from evaluation.metrics.bootstrap import Weights
from evaluation.metrics.folds import DISTANCES, FoldAccuracy, Folds
from evaluation.metrics.impostor_counter import ImpostorCounter
from evaluation.metrics.roc import Roc, check_scores
from evaluation.metrics.scored import (
    ROC_POINTS,
    d_prime,
    fold_figures,
    moments,
    roc_figures,
)

SPLIT = 10  # bins in each step of the folds' candidates
EDGES = (DISTANCES[:, None] + np.arange(SPLIT) * (DISTANCES[1] / SPLIT)).ravel()
BINS = len(EDGES) + 1
CENTERS = 1 - (np.r_[EDGES[0], EDGES] + DISTANCES[1] / SPLIT / 2) / 2
AT_ONCE = 1 << 12  # pairs weighted at a time: few enough for the caches, exact in float32


class BinnedPairs:
    """P pairs with their scores, as `ScoredPairs` takes them and with the figures it gives."""

    at_once = 256

    def __init__(
        self,
        scores: np.ndarray,
        same: np.ndarray,
        *,
        far_limits: Sequence[float],
        folds: Folds | None,
    ) -> None:
        check_scores(scores, same)
        self._scores, self._same, self._far_limits = scores, same, far_limits
        self._folds = (
            FoldAccuracy(2 - 2 * scores.astype(np.float64), same, folds) if folds else None
        )
        self._parts = len(folds.chosen_on) if folds else 1
        part = folds.part if folds else np.zeros(len(same), np.int32)
        # A distance is below the edge k where k is at or after its bin.
        bin_of = np.searchsorted(EDGES, 2 - 2 * scores, side="right").astype(np.int32)
        cells = (same * np.int32(self._parts) + part.astype(np.int32)) * np.int32(BINS) + bin_of
        self._order = np.argsort(cells, kind="stable")
        self._cells = cells[self._order]
        self.roc_far = np.geomspace(1 / (~same).sum(), 1, ROC_POINTS)

    def point(self) -> dict[str, np.ndarray]:
        """The figures of the pairs as they are, exact; shapes as `figures`, of one draw."""
        counter = ImpostorCounter(self._scores[self._same])
        counter.add(self._scores[~self._same])
        roc = counter.roc()
        roc = Roc(roc.thresholds, roc.genuine[None], roc.impostor[None])
        accuracies = {}
        if self._folds:
            names = ("accuracy", "accuracy_std", "threshold")
            accuracies = {name: np.array([value]) for name, value in zip(names, self._folds())}
        of_kind = [self._scores[kind].astype(np.float64) for kind in (self._same, ~self._same)]
        d = d_prime(*(moments(scores, np.ones((1, len(scores)))) for scores in of_kind))
        return {
            **accuracies,
            **roc_figures(roc, self._far_limits),
            "d-prime": d,
            "roc": roc.tar_along(self.roc_far),
        }

    def figures(self, weigh: Weights) -> dict[str, np.ndarray]:
        """By name, each (draws,); "roc" is TAR at `roc_far`, (draws, points)."""
        weights = self._weights(weigh)  # (draws, 2, parts, bins)
        impostor, genuine = (weights[:, kind].sum(axis=1) for kind in (0, 1))
        roc = Roc(
            np.r_[1 - EDGES / 2, -np.inf],
            np.cumsum(genuine, axis=1),
            np.cumsum(impostor, axis=1),
        )
        return {
            **(self._accuracies(weights) if self._folds else {}),
            **roc_figures(roc, self._far_limits),
            "d-prime": d_prime(moments(CENTERS, genuine), moments(CENTERS, impostor)),
            "roc": roc.tar_along(self.roc_far),
        }

    def _weights(self, weigh: Weights) -> np.ndarray:
        """(draws, 2, parts, bins) of impostor and of genuine pairs."""
        total: np.ndarray | None = None
        for start in range(0, len(self._order), AT_ONCE):
            rows = weigh.rows(self._order[start : start + AT_ONCE]).astype(np.float32)
            if total is None:
                total = np.zeros((2 * self._parts * BINS, rows.shape[1]))
            cells = self._cells[start : start + AT_ONCE]
            begins = np.flatnonzero(np.diff(cells, prepend=-1))
            # A loop: reduceat goes through memory column by column, and takes ten times as long.
            for begin, end in pairwise([*begins.tolist(), len(cells)]):
                total[cells[begin]] += rows[begin:end].sum(axis=0)
        return total.T.reshape(-1, 2, self._parts, BINS)

    def _accuracies(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        # The candidates are every SPLIT-th edge: bin 0 lies before them all.
        starts = np.r_[0, np.arange(1, BINS, SPLIT)]
        coarse = np.add.reduceat(weights, starts, axis=-1).reshape(len(weights), 2, -1)
        return fold_figures(self._folds, coarse[:, 1], coarse[:, 0])
