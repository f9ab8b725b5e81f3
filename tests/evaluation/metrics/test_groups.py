from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.groups import judge_groups
from evaluation.metrics.measure import Comparisons, Plan, measure
from tests.evaluation.metrics.simulated import Simulated, simulated

USUAL = {"threshold": 0.5, "folds": 5, "draws": 20, "seed": 0, "far_limits": (0.1,)}


def pairs_of(set_: Simulated) -> Comparisons:
    return Comparisons(**vars(set_))


def test_a_group_has_the_figures_of_its_own_pairs_and_rates_at_the_common_threshold() -> None:
    set_ = simulated(0)
    group_of = np.array(["a", "b", ""])[set_.people % 3]
    groups = judge_groups(pairs_of(set_), group_of, **USUAL)
    assert list(groups) == ["a", "b"]
    own = (set_.people[set_.first] % 3 == 1) & (set_.people[set_.second] % 3 == 1)
    found, scores, same = groups["b"], set_.scores[own], set_.same[own]
    assert found.counts == {"genuine": same.sum(), "impostor": (~same).sum(), "identities": 33}
    fmr, fnmr = (found.figures[f"{rate} at the common threshold"] for rate in ("fmr", "fnmr"))
    assert fmr.value == pytest.approx((scores[~same] >= 0.5).mean())
    assert fnmr.value == pytest.approx((scores[same] < 0.5).mean())
    assert fmr.low <= fmr.value <= fmr.high
    plan = Plan(folds=None, draws=20, seed=0, far_limits=(0.1,))
    alone = measure(pairs_of(set_).within(own), plan).figures
    assert alone.items() <= found.figures.items()
    assert found.figures["accuracy"].value > 0.8


def test_a_group_without_a_genuine_pair_is_an_error_that_names_it() -> None:
    set_ = simulated(0)
    group_of = np.full(len(set_.people), "many", dtype="<U9")
    group_of[0] = "lonely"
    with pytest.raises(ValueError, match="no genuine pair of 'lonely'"):
        judge_groups(pairs_of(set_), group_of, **USUAL)
    with pytest.raises(ValueError, match="none of the images in the pairs has a group"):
        judge_groups(pairs_of(set_), np.full(len(set_.people), ""), **USUAL)


def test_a_group_without_impostors_has_what_genuine_pairs_show() -> None:
    set_ = simulated(0)
    group_of = np.where(set_.people == 5, "alone", "others")
    groups = judge_groups(pairs_of(set_), group_of, **USUAL)
    figures = groups["alone"].figures
    assert list(figures) == ["fmr at the common threshold", "fnmr at the common threshold"]
    assert figures["fmr at the common threshold"].value is None
    assert figures["fmr at the common threshold"].note == "no impostor pair in the group"
    assert figures["fnmr at the common threshold"].value is not None


def test_the_common_threshold_is_fixed_in_the_draws() -> None:
    """A group in which nothing is mistaken is shown with the rule of three."""
    set_ = simulated(0, noise=(0.1, 0.2))
    group_of = np.full(len(set_.people), "all")
    fnmr = judge_groups(pairs_of(set_), group_of, **USUAL)["all"].figures[
        "fnmr at the common threshold"
    ]
    assert (fnmr.value, fnmr.low, fnmr.high) == (0, 0, pytest.approx(0.03))
    assert "rule of three for 100 comparisons" in fnmr.note
