"""Error rates at thresholds that were chosen on other pairs, as whoever deploys one meets them.

Within a fold the threshold is the one whose FMR on the other folds is at most the limit. What FMR
it has on the fold itself shows whether the promise holds on faces that did not help to make it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.metrics.folds import Folds
from evaluation.metrics.impostor_counter import ImpostorCounter
from evaluation.metrics.shares import Share


def thresholds_at(scores: np.ndarray, same: np.ndarray, limits: Sequence[float]) -> list[float]:
    """For each limit the threshold with the largest TAR whose FMR on these pairs is within it.

    Infinite where no genuine pair can be accepted within the limit.

    Raises:
        UserError: pairs of one kind only, or scores that are not finite.
    """
    counter = ImpostorCounter(scores[same])  # what it takes beside the scores stays small
    counter.add(scores[~same])
    roc = counter.roc()
    return [float(roc.threshold_at_far(limit)) for limit in limits]


def held_out_shares(
    scores: np.ndarray, same: np.ndarray, folds: Folds, limits: Sequence[float]
) -> dict[str, Share]:
    """FMR and FNMR over all folds, by name.

    Args:
        scores: (P,) floating; same: (P,) bool.
        limits: of the FMR.

    Returns:
        "fmr in folds@fmr=0.01" and "fnmr in folds@fmr=0.01" for each limit; none where the other
        folds of some fold have pairs of one kind only.
    """
    thresholds = np.empty((len(limits), len(folds.chosen_on)))
    for part, chosen_on in enumerate(folds.chosen_on):
        choosing = chosen_on[folds.part] == 1
        if same[choosing].all() or not same[choosing].any():
            return {}
        thresholds[:, part] = thresholds_at(scores[choosing], same[choosing], limits)
    found = {}
    for limit, of_part in zip(limits, thresholds):
        accepted = scores >= of_part[folds.part]
        found[f"fmr in folds@fmr={limit:g}"] = Share(~same, accepted)
        found[f"fnmr in folds@fmr={limit:g}"] = Share(same, ~accepted)
    return found
