from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.discard import Discard


def test_the_curve_is_that_of_its_definition() -> None:
    """Pair by pair: those of lower quality go, of equal quality all or none, at most the share."""
    rng = np.random.default_rng(0)
    quality = rng.integers(0, 30, 400) / 10
    same, accepted = rng.random(400) < 0.5, rng.random(400) < 0.8
    weights = rng.integers(0, 3, (3, 400)).astype(np.float32)
    discard = Discard(quality, same, accepted)
    found = discard.fnmr(lambda places: weights[:, places])
    genuine = int(same.sum())
    assert discard.shares[0] == 0
    assert max(discard.shares) <= 0.5
    for point, share in enumerate(discard.shares):
        gone = round(share * genuine)
        cut = sorted(quality[same])[gone]
        assert sum(q < cut for q in quality[same]) == gone
        for draw in range(3):
            left = [i for i in range(400) if same[i] and quality[i] >= cut]
            refused = sum(weights[draw][i] for i in left if not accepted[i])
            assert found[draw, point] == pytest.approx(
                refused / sum(weights[draw][i] for i in left)
            )


def test_a_quality_that_knows_the_errors_lets_the_curve_fall_to_nothing() -> None:
    scores = np.random.default_rng(0).random(1000)
    same = np.ones(1000, dtype=bool)
    discard = Discard(scores, same, scores >= 0.1)
    (curve,) = discard.fnmr(lambda places: np.ones((1, len(places))))
    assert curve[0] == pytest.approx(0.1, abs=0.03)
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] == 0


def test_one_quality_for_all_discards_nothing() -> None:
    discard = Discard(np.ones(10), np.ones(10, dtype=bool), np.ones(10, dtype=bool))
    assert discard.shares.tolist() == [0]
