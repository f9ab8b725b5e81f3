from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import KFold

from evaluation.metrics.folds import DISTANCES, FoldAccuracy, Folds


def scored(pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    same = rng.random(pairs) < 0.5
    return rng.normal(np.where(same, 0.9, 1.6), 0.3).clip(0, 4), same


def best_threshold(distances: np.ndarray, same: np.ndarray) -> float:
    """The first of the candidates that judges most pairs right, one pair at a time."""
    right = [sum((d < c) == s for d, s in zip(distances, same)) for c in DISTANCES]
    return float(DISTANCES[np.argmax(right)])


@pytest.mark.parametrize(("pairs", "folds"), [(60, 10), (107, 10), (23, 4)])
def test_contiguous_folds_are_scikit_learns(pairs: int, folds: int) -> None:
    part = Folds.contiguous(pairs, folds).part
    for fold, (_, judged) in enumerate(KFold(folds).split(np.empty(pairs))):
        np.testing.assert_array_equal(np.flatnonzero(part == fold), judged)


def test_accuracy_is_that_of_the_protocol_written_out() -> None:
    distances, same = scored(107)
    accuracies, chosen = [], []
    for others, fold in KFold(10).split(distances):
        threshold = best_threshold(distances[others], same[others])
        accuracies.append(np.mean((distances[fold] < threshold) == same[fold]))
        chosen.append(1 - threshold / 2)
    found = FoldAccuracy(distances, same, Folds.contiguous(107, 10))()
    assert found == (np.mean(accuracies), np.std(accuracies), np.mean(chosen))


@pytest.mark.slow
def test_nobody_is_judged_by_a_threshold_that_he_helped_to_choose() -> None:
    rng = np.random.default_rng(2)
    distances, same = scored(70)
    first = rng.integers(0, 30, 70)
    second = np.where(same, first, (first + rng.integers(1, 30, 70)) % 30)
    folds = Folds.of_people(first, second, 5)
    right = 0
    for i in range(70):
        others = folds.chosen_on[folds.part[i]][folds.part] == 1
        assert not {first[i], second[i]} & {*first[others], *second[others]}
        right += (distances[i] < best_threshold(distances[others], same[others])) == same[i]
    assert FoldAccuracy(distances, same, folds)()[0] == pytest.approx(right / 70, abs=1e-12)
    assert folds.choosing == min(
        (folds.chosen_on[part][folds.part] == 1).sum() for part in folds.part
    )


def test_folds_of_people_are_the_contiguous_ones_where_those_share_nobody() -> None:
    """As in LFW's official list: four parts, each of people of its own."""
    same = scored(80, seed=3)[1]
    part = np.repeat(np.arange(4), 20)
    within = np.tile(np.arange(20) % 10, 4)
    first = part * 10 + within
    second = np.where(same, first, part * 10 + (within + 1) % 10)
    of_people, contiguous = Folds.of_people(first, second, 4), Folds.contiguous(80, 4)
    np.testing.assert_array_equal(of_people.part, contiguous.part)
    np.testing.assert_array_equal(of_people.chosen_on, contiguous.chosen_on)


def test_weighted_cells_are_pairs_repeated() -> None:
    distances, same = scored(50, seed=4)
    weights = np.random.default_rng(5).integers(0, 3, 50)
    folds = Folds.contiguous(50, 5)
    accuracy = FoldAccuracy(distances, same, folds)
    cells, count = accuracy.cells()
    found = accuracy.of_counts(
        np.bincount(cells[same], weights[same], minlength=count),
        np.bincount(cells[~same], weights[~same], minlength=count),
    )
    repeated = Folds(np.repeat(folds.part, weights), folds.chosen_on, False, 0)
    expected = FoldAccuracy(np.repeat(distances, weights), np.repeat(same, weights), repeated)()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_folds_that_cannot_be_made_are_named() -> None:
    with pytest.raises(ValueError, match="9 pairs for 10 folds"):
        Folds.contiguous(9, 10)
    people = np.arange(6)
    with pytest.raises(ValueError, match="6 people for 10 identity-disjoint folds"):
        Folds.of_people(people, people, 10)
    with pytest.raises(ValueError, match="at least 3 folds"):
        Folds.of_people(people, people, 2)
    star = np.zeros(5, dtype=int)
    with pytest.raises(ValueError, match="no pair is left to choose a threshold"):
        Folds.of_people(star, np.arange(1, 6), 3)
