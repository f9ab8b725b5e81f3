from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.folds import Folds
from evaluation.metrics.held_out import held_out_shares, thresholds_at
from evaluation.metrics.roc import Roc
from tests.evaluation.metrics.simulated import simulated


@pytest.mark.parametrize("of_people", [False, True])
def test_each_fold_is_judged_by_the_threshold_of_others(of_people: bool) -> None:
    set_ = simulated(0, people=30, impostors=200)
    people = set_.people[set_.first], set_.people[set_.second]
    folds = Folds.of_people(*people, 4) if of_people else Folds.contiguous(len(set_.same), 4)
    false_accepts = false_rejects = 0
    for part in range(len(folds.chosen_on)):
        judged = folds.part == part
        others = folds.chosen_on[part][folds.part] == 1
        threshold = Roc.of(set_.scores[others], set_.same[others]).threshold_at_far(0.05)
        accepted = set_.scores[judged] >= threshold
        false_accepts += int((accepted & ~set_.same[judged]).sum())
        false_rejects += int((~accepted & set_.same[judged]).sum())
    shares = held_out_shares(set_.scores, set_.same, folds, [0.05])
    assert list(shares) == ["fmr in folds@fmr=0.05", "fnmr in folds@fmr=0.05"]
    assert shares["fmr in folds@fmr=0.05"].point == false_accepts / (~set_.same).sum()
    assert shares["fnmr in folds@fmr=0.05"].point == false_rejects / set_.same.sum()


def test_a_threshold_seen_on_other_pairs_lets_more_through_than_it_promised() -> None:
    """Over many sets: the best of many thresholds looks better where it was chosen."""
    over = []
    for seed in range(30):
        set_ = simulated(seed, people=20, images=2, impostors=100)
        folds = Folds.contiguous(len(set_.same), 2)
        shares = held_out_shares(set_.scores, set_.same, folds, [0.02])
        over.append(shares["fmr in folds@fmr=0.02"].point)
    assert np.mean(over) > 0.01


def test_thresholds_are_those_of_the_curve() -> None:
    set_ = simulated(3)
    roc = Roc.of(set_.scores, set_.same)
    assert thresholds_at(set_.scores, set_.same, [0.1, 0.0]) == [
        roc.threshold_at_far(0.1),
        roc.threshold_at_far(0.0),
    ]


def test_folds_whose_others_are_of_one_kind_have_no_rates() -> None:
    same = np.array([True, True, False, False])
    assert (
        held_out_shares(np.array([0.9, 0.8, 0.1, 0.2]), same, Folds.contiguous(4, 2), [0.1]) == {}
    )
