"""Counts comparisons block by block, exactly, holding none but the genuine scores.

A ROC curve has its corners at the genuine scores. Where those are known first, it is enough to
count how many impostors fall between each two of them, or on one: 10⁹ comparisons take the memory
of the genuine ones, and AUC, EER, TAR at any FAR and the best accuracy are those of all the scores.
Ranks and processes count for themselves, and their counts are added.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics.roc import Roc
from facestream import UserError

BLOCK = 1 << 20  # scores placed at a time: what that takes stays small beside the scores themselves


class ImpostorCounter:
    """Counts impostor scores against genuine ones.

    Args:
        genuine: (G,) floating, in any order.

    Attributes:
        counts: (2 · distinct genuine scores + 1,) int64, rising in score: impostors between two
            genuine scores and on one, alternately. Those of several ranks are summed into it.

    Raises:
        UserError: no genuine scores, or some that are not finite.
    """

    def __init__(self, genuine: np.ndarray) -> None:
        if len(genuine) == 0:
            raise UserError("found no genuine pairs; expected pairs of both kinds")
        _check_finite(genuine)
        self._scores, self._genuine = np.unique(genuine, return_counts=True)
        self.counts = np.zeros(2 * len(self._scores) + 1, np.int64)

    def add(self, impostors: np.ndarray) -> None:
        """Count (P,) scores of impostor pairs.

        Raises:
            UserError: scores that are not finite.
        """
        for start in range(0, len(impostors), BLOCK):
            scores = impostors[start : start + BLOCK]
            _check_finite(scores)
            # Of the genuine scores, those below and those at most as high: equal in a gap.
            place = np.searchsorted(self._scores, scores, side="right")
            on_one = self._scores[np.maximum(place - 1, 0)] == scores
            self.counts += np.bincount(2 * place - on_one, minlength=len(self.counts))

    def roc(self) -> Roc:
        """The curve of all comparisons counted, with corners just above and at genuine scores.

        Raises:
            UserError: no impostor was counted.
        """
        if not self.counts.any():
            raise UserError("found no impostor pairs; expected pairs of both kinds")
        falling = self._scores[::-1].astype(np.float64)
        above = np.nextafter(falling, np.inf)
        accepted = np.cumsum(self.counts[::-1])  # just above the highest, at it, and so on
        genuine = np.cumsum(self._genuine[::-1])
        return Roc(
            thresholds=np.r_[np.inf, np.stack([above, falling], axis=1).ravel(), -np.inf],
            genuine=np.r_[
                0, np.stack([genuine - self._genuine[::-1], genuine], axis=1).ravel(), genuine[-1]
            ],
            impostor=np.r_[0, accepted],
        )


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        broken = int((~np.isfinite(scores)).sum())
        raise UserError(
            f"{broken} of {len(scores)} scores are not finite; expected cosines of finite "
            "embeddings: the model has diverged or overflows its precision"
        )
