from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from evaluation.metrics.bootstrap import Clusters, bootstrap
from evaluation.metrics.folds import DISTANCES, Folds
from evaluation.metrics.scored import ScoredPairs
from tests.evaluation.metrics.simulated import simulated

SIMULATIONS = 250
DRAWS = 200
FAR = 1e-2


@pytest.fixture(scope="module")
def truth() -> dict[str, float]:
    """Of the people whom all simulated sets are drawn from, by 10,000 of them and 10⁶ impostors."""
    sets = [simulated(10_000 + i, people=1000, impostors=100_000) for i in range(10)]
    genuine = np.sort(np.concatenate([s.scores[s.same] for s in sets]))
    impostor = np.sort(np.concatenate([s.scores[~s.same] for s in sets]))
    candidates = 1 - DISTANCES / 2
    rejected = np.searchsorted(genuine, candidates) / len(genuine)
    accepted = 1 - np.searchsorted(impostor, candidates) / len(impostor)
    return {
        "accuracy": float((1 - (rejected + accepted) / 2).max()),
        "tar": float((genuine >= np.quantile(impostor, 1 - FAR)).mean()),
    }


def intervals() -> Iterator[dict[str, tuple[float, float]]]:
    """Of sets of 100 people, 600 genuine pairs and 600 impostors."""
    for seed in range(SIMULATIONS):
        set_ = simulated(seed)
        folds = Folds.contiguous(len(set_.same), 10)
        pairs = ScoredPairs(set_.scores, set_.same, far_limits=(FAR,), folds=folds)
        pairs.roc_far = pairs.roc_far[:1]  # no curve is wanted
        clusters = Clusters.of_pairs(set_.first, set_.second, set_.people)
        spreads = bootstrap(pairs.figures, clusters, draws=DRAWS, seed=seed, at_once=pairs.at_once)
        point = pairs.point()
        yield {
            short: spreads[name].interval_of_rate(point[name][0])
            for short, name in (("accuracy", "accuracy"), ("tar", f"tar@far={FAR:g}"))
        }


@pytest.mark.slow(seconds=8)
def test_intervals_hold_the_truth_as_often_as_they_say(truth: dict[str, float]) -> None:
    """Of 250 sets of 100 people, some hard to recognize, whose pairs depend on each other."""
    found = list(intervals())
    for name, value in truth.items():
        share = np.mean([one[name][0] <= value <= one[name][1] for one in found])
        assert 0.92 <= share <= 0.98, name
