from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics

from evaluation.metrics.roc import Roc


def scored(pairs: int = 800, *, seed: int = 0, grid: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (P,) that overlap, on a grid where many are equal, and truth values (P,)."""
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.4
    scores = rng.normal(np.where(same, 0.5, 0.2), 0.15).clip(-1, 1)
    return (np.round(scores / grid) * grid if grid else scores), same


@st.composite
def few_values(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Up to 40 scores of 12 values, so that ties abound, with pairs of both kinds."""
    pairs = draw(st.integers(2, 40))
    scores = draw(hnp.arrays(np.int64, pairs, elements=st.integers(-6, 6))) / 6
    same = draw(hnp.arrays(np.bool_, pairs))
    same[0], same[-1] = True, False
    return scores, same


def shares(scores: np.ndarray, same: np.ndarray, threshold: float) -> tuple[float, float]:
    """FAR and TAR of a threshold, counted pair by pair."""
    accepted = [bool(s) for score, s in zip(scores, same) if score >= threshold]
    return accepted.count(False) / (~same).sum(), accepted.count(True) / same.sum()


@pytest.mark.parametrize("grid", [0, 0.05, 0.5])
def test_rates_are_scikit_learns_to_the_last_bit(grid: float) -> None:
    scores, same = scored(grid=grid)
    far, tar, thresholds = metrics.roc_curve(same, scores, drop_intermediate=False)
    roc = Roc.of(scores, same)
    np.testing.assert_array_equal(roc.far, far)
    np.testing.assert_array_equal(roc.tar, tar)
    np.testing.assert_array_equal(roc.thresholds, thresholds)
    assert roc.auc == metrics.auc(far, tar)
    assert roc.auc == pytest.approx(metrics.roc_auc_score(same, scores), abs=1e-12)


@pytest.mark.parametrize("grid", [0, 0.05])
def test_det_rates_are_scikit_learns(grid: float) -> None:
    scores, same = scored(grid=grid)
    roc = Roc.of(scores, same)
    for fmr, fnmr, threshold in zip(*metrics.det_curve(same, scores)):
        found = roc.rates_at(float(threshold))
        assert (found[0], 1 - found[1]) == (fmr, pytest.approx(fnmr, abs=1e-12))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(few_values(), st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.9]))
def test_every_figure_is_that_of_its_definition(
    pairs: tuple[np.ndarray, np.ndarray], limit: float
) -> None:
    """One threshold at a time: infinity and each score; ties fall on the side of acceptance."""
    scores, same = pairs
    roc = Roc.of(scores, same)
    tried = {t: shares(scores, same, t) for t in [np.inf, *np.unique(scores)]}

    largest = max(tar for far, tar in tried.values() if far <= limit)
    assert roc.tar_at_far(limit) == largest
    assert roc.fnmr_at_fmr(limit) == pytest.approx(1 - largest, abs=1e-12)
    threshold = roc.threshold_at_far(limit)
    assert threshold == max(t for t, (far, tar) in tried.items() if far <= limit and tar >= largest)
    assert roc.rates_at(float(threshold)) == tried[float(threshold)]
    assert roc.tar_along(np.array([limit, 1.0])).tolist() == [largest, 1.0]

    right = max(sum((s >= t) == truth for s, truth in zip(scores, same)) for t in tried)
    assert roc.best_accuracy == right / len(same)

    won = [np.sign(g - i) / 2 + 0.5 for g in scores[same] for i in scores[~same]]
    assert roc.auc == pytest.approx(np.mean(won), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert roc.auc == pytest.approx(metrics.roc_auc_score(same, scores), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(few_values())
def test_the_eer_is_where_the_curve_meets_the_diagonal(
    pairs: tuple[np.ndarray, np.ndarray],
) -> None:
    """Found by bisection on scikit-learn's curve, drawn with straight lines."""
    far, tar, _ = metrics.roc_curve(pairs[1], pairs[0], drop_intermediate=False)
    # By the length along the curve: its rates alone stand still on upright and level lines.
    length = far + tar
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        before = np.interp(middle, length, far) < 1 - np.interp(middle, length, tar)
        low, high = (middle, high) if before else (low, middle)
    assert Roc.of(*pairs).eer == pytest.approx(np.interp(low, length, far), abs=1e-9)


def test_perfect_and_hopeless_scores() -> None:
    same = np.array([True, True, False, False])
    perfect = Roc.of(np.array([0.9, 0.8, 0.2, 0.1]), same)
    assert (perfect.auc, perfect.eer, perfect.best_accuracy) == (1, 0, 1)
    assert perfect.tar_at_far(0.0) == 1
    assert perfect.threshold_at_far(0.0) == 0.8
    alike = Roc.of(np.full(4, 0.5), same)
    assert (alike.auc, alike.eer, alike.best_accuracy) == (0.5, 0.5, 0.5)
    assert alike.tar_at_far(0.1) == 0
    assert alike.threshold_at_far(0.1) == np.inf


def test_weighted_counts_with_a_leading_axis_are_pairs_repeated() -> None:
    """The arithmetic of a draw is that of a set in which a pair of weight 3 stands three times."""
    scores, same = scored(60, grid=0.1)
    weights = np.random.default_rng(1).integers(0, 4, (5, 60))
    curves = [Roc.of(np.repeat(scores, w), np.repeat(same, w)) for w in weights]
    whole = Roc.of(scores, same)
    at_or_above = scores[:, None] >= whole.thresholds
    roc = Roc(
        whole.thresholds,
        weights[:, same] @ at_or_above[same],
        weights[:, ~same] @ at_or_above[~same],
    )
    for name in ("auc", "eer", "best_accuracy"):
        expected = [getattr(curve, name) for curve in curves]
        np.testing.assert_allclose(getattr(roc, name), expected, atol=1e-12)
    for limit in (0.05, 0.2):
        np.testing.assert_allclose(roc.tar_at_far(limit), [c.tar_at_far(limit) for c in curves])
        np.testing.assert_array_equal(
            roc.threshold_at_far(limit), [c.threshold_at_far(limit) for c in curves]
        )


def test_a_draw_without_pairs_of_a_kind_has_no_figures() -> None:
    roc = Roc(np.array([np.inf, 0.5, 0.1]), np.array([[0.0, 0, 0], [0, 1, 2]]), np.ones((2, 3)))
    assert np.isnan(roc.auc).tolist() == [True, False]


def test_what_has_no_curve_is_refused() -> None:
    scores, same = scored(20)
    with pytest.raises(ValueError, match="all 20 pairs are impostor ones"):
        Roc.of(scores, np.zeros(20, dtype=bool))
    with pytest.raises(ValueError, match="2 of 20 scores are not finite"):
        Roc.of(np.r_[np.nan, np.inf, scores[2:]], same)
    with pytest.raises(ValueError, match=r"shape \(19,\) and truth values of shape \(20,\)"):
        Roc.of(scores[1:], same)
    with pytest.raises(ValueError, match="dtype int64; expected bool"):
        Roc.of(scores, same.astype(int))
