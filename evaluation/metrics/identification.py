"""The figures of 1:N, closed-set and open-set, for searches as they are or weighted in draws.

NIST's definitions (FRVT Part 2, NISTIR 8271), of a gallery of N people, R candidates and a
threshold T:

- FPIR(N, T): the share of searches for people who are not in the gallery (non-mated) that return
  any entry with a score at or above T.
- FNIR(N, R, T): the share of searches for people who are in it (mated) that do not return the
  person among the first R candidates with a score at or above T.
- The rate of rank R, a point of the CMC, is 1 - FNIR(N, R, -inf): it asks for no threshold.

FNIR at an FPIR is that of the lowest T whose FPIR is at most the limit, without interpolation.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics.searches import Searches


def rank_rates(
    searches: Searches, ranks: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """(draws, ranks) shares of the mated searches that return the person so early.

    Args:
        weights: (draws, Q) of the searches in each draw; None takes every search once.
    """
    weights = _mated(searches, weights)
    found = searches.rank[searches.mated][:, None] <= ranks
    return weights @ found.astype(np.float64) / _positive(weights.sum(axis=1, keepdims=True))


def mean_precision(searches: Searches, weights: np.ndarray | None = None) -> np.ndarray:
    """(draws,) mAP: the mean of the mated searches' average precisions."""
    weights = _mated(searches, weights)
    return weights @ searches.precision[searches.mated] / _positive(weights.sum(axis=1))


def fnir(
    searches: Searches, limits: np.ndarray, *, rank: int = 1, weights: np.ndarray | None = None
) -> np.ndarray:
    """(draws, limits) FNIR(N, rank, T) of the lowest T whose FPIR is at most each limit.

    NaN in a draw without mated or without non-mated searches.
    """
    weights = _every(searches) if weights is None else weights
    alarms, false = _falling(searches.other, ~searches.mated, weights)
    scores, true = _falling(searches.mate, searches.mated & (searches.rank <= rank), weights)
    mated = _positive(weights[:, searches.mated].sum(axis=1))
    fpir = false / _positive(false[:, -1:])
    found = np.full((len(weights), len(limits)), np.nan)
    for draw in np.flatnonzero(false[:, -1] > 0):
        # T is just above the first alarm that is too many; -inf where none is.
        first = np.searchsorted(fpir[draw, 1:], limits, side="right")
        too_many = np.append(alarms, -np.inf)[first]
        accepted = np.searchsorted(-scores, -too_many, side="left")
        found[draw] = 1 - true[draw, accepted] / mated[draw]
    return found


def threshold(searches: Searches, limit: float) -> float:
    """The score that the T of `fnir` is just above."""
    alarms = np.sort(searches.other[~searches.mated])[::-1]
    first = int(np.searchsorted(np.arange(1, len(alarms) + 1) / len(alarms), limit, side="right"))
    return float(alarms[first]) if first < len(alarms) else -np.inf


def rates_at(searches: Searches, threshold: float) -> tuple[float, float]:
    """FPIR, and FNIR of rank 1, of all scores above a threshold that was chosen elsewhere."""
    alarms = searches.other[~searches.mated] > threshold
    hits = (searches.rank == 1) & (searches.mate > threshold)
    missed = ~hits[searches.mated]
    fpir, fnir = (float(of.mean()) if len(of) else np.nan for of in (alarms, missed))
    return fpir, fnir


def _falling(
    scores: np.ndarray, of: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of these searches from the highest, and (draws, 1 + searches) weights so far."""
    order = np.flatnonzero(of)[np.argsort(-scores[of], kind="stable")]
    so_far = np.zeros((len(weights), 1 + len(order)))
    np.cumsum(weights[:, order], axis=1, out=so_far[:, 1:])
    return scores[order], so_far


def _mated(searches: Searches, weights: np.ndarray | None) -> np.ndarray:
    return (_every(searches) if weights is None else weights)[:, searches.mated]


def _every(searches: Searches) -> np.ndarray:
    return np.ones((1, len(searches.mated)))


def _positive(weight: np.ndarray) -> np.ndarray:
    """What may be divided by: NaN for 0."""
    return np.where(weight > 0, weight, np.nan)
