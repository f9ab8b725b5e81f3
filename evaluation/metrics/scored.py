"""Every figure of a set of scored pairs at once, for the pairs as they are or weighted in draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.metrics.folds import FoldAccuracy, Folds
from evaluation.metrics.roc import Roc, check_scores, tie_ends

ROC_POINTS = 121  # a curve that is drawn: 20 points a decade, over six


class ScoredPairs:
    """P pairs with their scores, sorted once for as many draws as are wanted.

    Args:
        scores: (P,) cosines in [-1, 1], float32 or float64.
        same: (P,) bool.
        far_limits: rates in (0, 1) at which TAR, FNMR and thresholds are given.
        folds: for the accuracy; None leaves it out.

    Raises:
        UserError: pairs of one kind only, or scores that are not finite.
    """

    def __init__(
        self,
        scores: np.ndarray,
        same: np.ndarray,
        *,
        far_limits: Sequence[float],
        folds: Folds | None,
    ) -> None:
        check_scores(scores, same)
        self.scores, self.same = scores.astype(np.float64), same
        self.far_limits = far_limits
        self._order = np.argsort(self.scores)[::-1]
        self._ends = tie_ends(self.scores[self._order])
        self._thresholds = np.r_[np.inf, self.scores[self._order][self._ends]]
        self._folds = FoldAccuracy(2 - 2 * self.scores, same, folds) if folds else None
        # FAR of the drawn curve: no set of N impostor pairs has a rate between 0 and 1/N.
        self.roc_far = np.geomspace(1 / (~same).sum(), 1, ROC_POINTS)

    def figures(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The figures by name, each of shape (draws,); "roc" is TAR at `roc_far`, (draws, points).

        Args:
            weights: (draws, P) of the pairs in each draw; None takes every pair once.
        """
        weights = np.ones((1, len(self.same))) if weights is None else weights
        roc = self.roc(weights)
        figures = {}
        if self._folds:
            accuracy, std, threshold = self._fold_accuracy(weights)
            figures |= {"accuracy": accuracy, "accuracy_std": std, "threshold": threshold}
        figures |= {"auc": roc.auc, "eer": roc.eer}
        for limit in self.far_limits:
            figures[f"tar@far={limit:g}"] = roc.tar_at_far(limit)
        for limit in self.far_limits:
            figures[f"fnmr@fmr={limit:g}"] = roc.fnmr_at_fmr(limit)
        for limit in self.far_limits:
            figures[f"threshold@fmr={limit:g}"] = roc.threshold_at_far(limit)
        figures["best accuracy"] = roc.best_accuracy
        figures["d-prime"] = self._d_prime(weights)
        figures["roc"] = roc.tar_along(self.roc_far)
        return figures

    def roc(self, weights: np.ndarray) -> Roc:
        """The curve of each draw: weights (draws, P)."""
        weights = weights[:, self._order]
        genuine = self.same[self._order]
        start = np.zeros((len(weights), 1))

        def accepted(kind: np.ndarray) -> np.ndarray:
            rising = np.cumsum(np.where(kind, weights, 0.0), axis=1)
            return np.concatenate([start, rising[:, self._ends]], axis=1)

        return Roc(self._thresholds, accepted(genuine), accepted(~genuine))

    def _fold_accuracy(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        cells, count = self._folds.cells()
        places = cells + np.arange(len(weights))[:, None] * count

        def counts(kind: np.ndarray) -> np.ndarray:
            total = np.bincount(
                places[:, kind].ravel(), weights[:, kind].ravel(), minlength=count * len(weights)
            )
            return total.reshape(len(weights), count)

        return self._folds.of_counts(counts(self.same), counts(~self.same))

    def _d_prime(self, weights: np.ndarray) -> np.ndarray:
        """Distance of the two means in units of the root of the mean variance."""
        genuine = _moments(self.scores[self.same], weights[:, self.same])
        impostor = _moments(self.scores[~self.same], weights[:, ~self.same])
        spread = np.sqrt((genuine[1] + impostor[1]) / 2)
        return (genuine[0] - impostor[0]) / np.where(spread > 0, spread, np.nan)


def _moments(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (draws,) of scores (P,) under weights (draws, P)."""
    total = weights.sum(axis=1)
    total = np.where(total > 0, total, np.nan)
    mean = weights @ scores / total
    # Around the mean of all scores: the difference of two large squares would lose digits.
    around = scores - scores.mean()
    variance = weights @ around**2 / total - (weights @ around / total) ** 2
    return mean, np.maximum(variance, 0)
