"""The ROC curve as counts, and the figures that are read from it.

A comparison is accepted where its score is at or above the threshold. TAR and FAR are the shares
of genuine and impostor pairs accepted; NIST says FMR for FAR, and FNMR for 1 - TAR.

Counts may be weighted and have leading axes: the draws of a bootstrap go through the same
arithmetic as the scores themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from facestream import UserError


@dataclass(frozen=True)
class Roc:
    """The corners of a ROC curve, from the strictest threshold to the laxest.

    Attributes:
        thresholds: (K,) falling; the first is infinite and accepts nothing, the last all.
        genuine: (..., K), the number or weight of genuine pairs at or above each threshold.
        impostor: (..., K), the same of impostor pairs.
    """

    thresholds: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, same: np.ndarray) -> Roc:
        """The curve with one corner for each distinct score: scores (P,), same (P,) bool.

        Raises:
            UserError: pairs of one kind only, or scores that are not finite.
        """
        check_scores(scores, same)
        order = np.argsort(scores)[::-1]
        ends = tie_ends(scores[order])
        accepted = np.cumsum(same[order])[ends]
        return cls(
            thresholds=np.r_[np.inf, scores[order][ends].astype(np.float64)],
            genuine=np.r_[0, accepted],
            impostor=np.r_[0, ends + 1 - accepted],
        )

    @cached_property
    def tar(self) -> np.ndarray:
        """(..., K), rising from 0 to 1; NaN in a draw without genuine pairs."""
        return _shares(self.genuine)

    @cached_property
    def far(self) -> np.ndarray:
        """(..., K), rising from 0 to 1; NaN in a draw without impostor pairs."""
        return _shares(self.impostor)

    def last_within(self, limit: float) -> np.ndarray:
        """(...) the last corner whose FAR is at most `limit`: no other accepts more genuine."""
        return np.maximum((self.far <= limit).sum(axis=-1) - 1, 0)

    def tar_at_far(self, limit: float) -> np.ndarray:
        """(...) the largest TAR of one threshold whose FAR is at most `limit`, not interpolated."""
        return _at(self.tar, self.last_within(limit))

    def fnmr_at_fmr(self, limit: float) -> np.ndarray:
        """(...) the share of genuine pairs that the threshold of `tar_at_far` refuses."""
        total = self.genuine[..., -1]
        return _quotient(total - _at(self.genuine, self.last_within(limit)), total)

    def threshold_at_far(self, limit: float) -> np.ndarray:
        """(...) the strictest threshold that reaches `tar_at_far`; infinite where that is 0."""
        reached = _at(self.genuine, self.last_within(limit))
        return self.thresholds[(self.genuine < reached[..., None]).sum(axis=-1)]

    def rates_at(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """(...) FAR and TAR of a threshold that was chosen elsewhere."""
        place = np.searchsorted(-self.thresholds, -threshold, side="right") - 1
        return self.far[..., place], self.tar[..., place]

    def tar_along(self, far: np.ndarray) -> np.ndarray:
        """(..., points): `tar_at_far` for each of many rising limits."""
        curves = self.far.reshape(-1, self.far.shape[-1])
        places = np.stack([np.searchsorted(curve, far, side="right") - 1 for curve in curves])
        places = np.maximum(places, 0).reshape(*self.far.shape[:-1], len(far))
        return np.take_along_axis(self.tar, places, axis=-1)

    @property
    def auc(self) -> np.ndarray:
        """(...) the area below the curve: how often a genuine pair scores above an impostor."""
        widths = np.diff(self.far)
        return (widths * (self.tar[..., 1:] + self.tar[..., :-1]) / 2.0).sum(axis=-1)

    @property
    def eer(self) -> np.ndarray:
        """(...) the rate where FAR and FNMR are equal, on the straight line between corners."""
        excess = self.far + self.tar - 1  # FAR - FNMR, rising from -1 to 1
        after = np.clip((excess < 0).sum(axis=-1), 1, self.far.shape[-1] - 1)
        low, high = _at(excess, after - 1), _at(excess, after)
        step = -low / (high - low)
        return (1 - step) * _at(self.far, after - 1) + step * _at(self.far, after)

    @property
    def best_accuracy(self) -> np.ndarray:
        """(...) share of pairs judged right by the threshold that is best on these very pairs."""
        genuine, impostor = self.genuine[..., -1], self.impostor[..., -1]
        right = (self.genuine - self.impostor).max(axis=-1) + impostor
        return _quotient(right, genuine + impostor)


def tie_ends(ordered: np.ndarray) -> np.ndarray:
    """The places in sorted (P,) scores where a run of equal ones ends."""
    return np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]


def check_scores(scores: np.ndarray, same: np.ndarray) -> None:
    """Refuse what no curve can be drawn of.

    Raises:
        UserError: pairs of one kind only, or scores that are not finite.
        ValueError: shapes that differ, or truth values that are not bool.
    """
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"found scores of shape {scores.shape} and truth values of shape {same.shape}; "
            "expected (P,) both"
        )
    if same.dtype != np.bool_:
        raise ValueError(f"found truth values of dtype {same.dtype}; expected bool")
    if same.all() or not same.any():
        kind = "genuine" if same.all() else "impostor"
        raise UserError(f"all {len(same)} pairs are {kind} ones; expected pairs of both kinds")
    broken = int((~np.isfinite(scores)).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(scores)} scores are not finite; expected cosines of finite "
            "embeddings: the model has diverged or overflows its precision"
        )


def _shares(accepted: np.ndarray) -> np.ndarray:
    return _quotient(accepted, accepted[..., -1:])


def _quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return part / np.where(whole > 0, whole, np.nan)


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """values (..., K) at places (...)."""
    return np.take_along_axis(values, np.asarray(places)[..., None], axis=-1)[..., 0]
