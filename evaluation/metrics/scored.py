"""Every figure of a set of scored pairs at once, for the pairs as they are or weighted in draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.metrics.bootstrap import WORD, Once, Weights
from evaluation.metrics.folds import FoldAccuracy, Folds
from evaluation.metrics.roc import Roc, check_scores, tie_ends

HELD = 1 << 22  # weights at a time
ROC_POINTS = 121  # of a curve that is drawn: 20 a decade, over six


class ScoredPairs:
    """P pairs with their scores, sorted once for as many draws as are wanted.

    Args:
        scores: (P,) cosines in [-1, 1], float32 or float64.
        same: (P,) bool.
        far_limits: rates in (0, 1) at which TAR, FNMR and thresholds are given.
        folds: for the accuracy; None leaves it out.

    Attributes:
        at_once: draws that fit the memory at a time.
        roc_far: (points,) FAR of the drawn curve, from one impostor pair to all.

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
        self._order = np.argsort(scores)[::-1]
        self._scores = scores[self._order].astype(np.float64)
        self._genuine = same[self._order]
        self._ends = tie_ends(self._scores)
        self._thresholds = np.r_[np.inf, self._scores[self._ends]]
        self._far_limits = far_limits
        self._folds = (
            FoldAccuracy(2 - 2 * scores.astype(np.float64), same, folds) if folds else None
        )
        self.at_once = int(np.clip(HELD // len(same), 1, WORD))
        self.roc_far = np.geomspace(1 / (~same).sum(), 1, ROC_POINTS)

    def point(self) -> dict[str, np.ndarray]:
        """The figures of the pairs as they are; shapes as `figures`, of one draw."""
        return self.figures(Once())

    def figures(self, weigh: Weights) -> dict[str, np.ndarray]:
        """By name, each (draws,); "roc" is TAR at `roc_far`, (draws, points)."""
        weights = weigh(self._order).astype(np.float64)  # (draws, P), as the scores fall
        roc = Roc(self._thresholds, self._accepted(weights, True), self._accepted(weights, False))
        return {
            **(self._accuracies(weights) if self._folds else {}),
            **roc_figures(roc, self._far_limits),
            "d-prime": self._d_prime(weights),
            "roc": roc.tar_along(self.roc_far),
        }

    def _accepted(self, weights: np.ndarray, kind: bool) -> np.ndarray:
        rising = np.cumsum(weights * (self._genuine == kind), axis=1)
        return np.concatenate([np.zeros((len(weights), 1)), rising[:, self._ends]], axis=1)

    def _accuracies(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        cells, count = self._folds.cells()
        cells = cells[self._order] + np.arange(len(weights))[:, None] * count

        def counts(kind: bool) -> np.ndarray:
            of_kind = self._genuine == kind
            total = np.bincount(
                cells[:, of_kind].ravel(),
                weights[:, of_kind].ravel(),
                minlength=count * len(weights),
            )
            return total.reshape(len(weights), count)

        return fold_figures(self._folds, counts(True), counts(False))

    def _d_prime(self, weights: np.ndarray) -> np.ndarray:
        genuine, impostor = self._genuine, ~self._genuine
        return d_prime(
            moments(self._scores[genuine], weights[:, genuine]),
            moments(self._scores[impostor], weights[:, impostor]),
        )


def roc_figures(roc: Roc, far_limits: Sequence[float]) -> dict[str, np.ndarray]:
    """What is read from a curve, by name, in the order to show."""
    return {
        "auc": roc.auc,
        "eer": roc.eer,
        **{f"tar@far={limit:g}": roc.tar_at_far(limit) for limit in far_limits},
        **{f"fnmr@fmr={limit:g}": roc.fnmr_at_fmr(limit) for limit in far_limits},
        **{f"threshold@fmr={limit:g}": roc.threshold_at_far(limit) for limit in far_limits},
        "best accuracy": roc.best_accuracy,
    }


def fold_figures(
    accuracy: FoldAccuracy, genuine: np.ndarray, impostor: np.ndarray
) -> dict[str, np.ndarray]:
    """From the weights (draws, cells) of genuine and impostor pairs."""
    names = ("accuracy", "accuracy_std", "threshold")
    return dict(zip(names, accuracy.of_counts(genuine, impostor)))


def moments(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (draws,) of scores (n,) under weights (draws, n)."""
    total = weights.sum(axis=1)
    total = np.where(total > 0, total, np.nan)
    # Around the mean of all scores: the difference of two large squares would lose digits.
    center = scores.mean()
    mean = weights @ (scores - center) / total
    variance = weights @ (scores - center) ** 2 / total - mean**2
    return mean + center, np.maximum(variance, 0)


def d_prime(
    genuine: tuple[np.ndarray, np.ndarray], impostor: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Distance of the two means in units of the root of the mean variance; NaN without spread."""
    spread = np.sqrt((genuine[1] + impostor[1]) / 2)
    return (genuine[0] - impostor[0]) / np.where(spread > 0, spread, np.nan)
