from __future__ import annotations

import json

import numpy as np
import pytest

from evaluation.metrics import binned
from evaluation.metrics.binned import BinnedPairs
from evaluation.metrics.bootstrap import Clusters, bootstrap
from evaluation.metrics.folds import Folds
from evaluation.metrics.judge import judge_pairs
from evaluation.metrics.roc import Roc
from evaluation.metrics.scored import ScoredPairs
from evaluation.result import Evaluation, Result
from tests.evaluation.metrics.simulated import simulated


def test_a_judgement_has_the_figures_with_intervals_around_them() -> None:
    set_ = simulated(0)
    found = judge_pairs(**vars(set_), draws=200, far_limits=(0.1, 0.01))
    assert list(found.figures) == [
        "accuracy",
        "accuracy_std",
        "threshold",
        "auc",
        "eer",
        "tar@far=0.1",
        "tar@far=0.01",
        "fnmr@fmr=0.1",
        "fnmr@fmr=0.01",
        "threshold@fmr=0.1",
        "threshold@fmr=0.01",
        "best accuracy",
        "d-prime",
        "fmr in folds@fmr=0.1",
        "fnmr in folds@fmr=0.1",
        "fmr in folds@fmr=0.01",
        "fnmr in folds@fmr=0.01",
    ]
    for name, figure in found.figures.items():
        if name != "accuracy_std":
            assert figure.low < figure.value < figure.high, name
    roc = Roc.of(set_.scores, set_.same)
    assert found.figures["tar@far=0.01"].value == roc.tar_at_far(0.01)
    assert found.figures["auc"].value == pytest.approx(roc.auc, abs=1e-12)
    assert found.counts == {"genuine": 600, "impostor": 600, "identities": 100}
    assert found.interval["clusters"] == "people"
    assert "chosen on these very pairs" in found.settings["threshold"]
    for name in ("roc", "det"):
        curve = found.curves[name]
        assert len(curve.x) == len(curve.y) == len(curve.low) == len(curve.high)
        assert all(low <= high for low, high in zip(curve.low, curve.high))
    assert sum(found.curves["genuine"].y) == 600


def test_d_prime_and_accuracy_s_threshold_are_those_of_their_definitions() -> None:
    set_ = simulated(0)
    figures = judge_pairs(**vars(set_), draws=0).figures
    genuine, impostor = set_.scores[set_.same], set_.scores[~set_.same]
    spread = np.sqrt((genuine.var() + impostor.var()) / 2)
    assert figures["d-prime"].value == pytest.approx((genuine.mean() - impostor.mean()) / spread)
    right = (set_.scores >= figures["threshold"].value) == set_.same
    assert right.mean() == pytest.approx(figures["accuracy"].value, abs=0.01)
    assert figures["accuracy"].value <= figures["best accuracy"].value


def test_what_a_set_cannot_show_stays_empty_with_the_reason() -> None:
    figures = judge_pairs(**vars(simulated(0)), draws=0, far_limits=(1e-2, 1e-3)).figures
    assert figures["tar@far=0.01"].value is not None
    for name in ("tar@far=0.001", "fnmr@fmr=0.001", "threshold@fmr=0.001"):
        assert figures[name].value is None
        assert "no error in 600 impostor pairs means a rate below 0.005" in figures[name].note


def test_a_set_shows_the_small_rates_that_it_has_the_impostors_for() -> None:
    figures = judge_pairs(**vars(simulated(0, people=20, impostors=40_000)), draws=0).figures
    shown = [name for name in figures if name.startswith("tar@far")]
    assert shown == ["tar@far=0.01", "tar@far=0.001", "tar@far=0.0001"]


def test_scores_that_allow_no_threshold_or_have_no_spread_say_so() -> None:
    set_ = vars(simulated(0, impostors=3000))
    figures = judge_pairs(**set_ | {"scores": np.full(len(set_["same"]), 0.5)}, draws=20).figures
    assert figures["threshold@fmr=0.001"].value is None
    assert "accepts any genuine pair" in figures["threshold@fmr=0.001"].note
    assert figures["d-prime"].note == "not defined for scores without spread"
    assert (figures["tar@far=0.001"].value, figures["auc"].value) == (0, 0.5)


def test_where_people_are_not_known_images_are_drawn_and_it_says_so() -> None:
    set_ = simulated(0)
    found = judge_pairs(**vars(set_) | {"people": None}, draws=50)
    assert found.interval["clusters"].startswith("images")
    assert "identities" not in found.counts


def test_without_draws_there_are_figures_and_no_intervals() -> None:
    found = judge_pairs(**vars(simulated(0)), draws=0)
    assert found.interval == {}
    assert found.curves["roc"].low == []
    assert all(figure.low is None for figure in found.figures.values())


def test_folds_can_be_of_people_or_left_out() -> None:
    set_ = simulated(0)
    of_people = judge_pairs(**vars(set_), draws=20, identity_disjoint=True)
    assert of_people.settings["folds are"] == "identity-disjoint"
    assert of_people.figures["accuracy"].value == pytest.approx(0.93, abs=0.04)
    assert "accuracy" not in judge_pairs(**vars(set_), draws=0, folds=0).figures


def test_the_hardest_pairs_are_those_furthest_on_the_wrong_side() -> None:
    set_ = simulated(0)
    names = [f"{i}.jpg" for i in range(len(set_.people))]
    hardest = judge_pairs(**vars(set_), draws=0, names=names).hardest
    accepted, rejected = hardest["false accepts"], hardest["false rejects"]
    assert accepted[0].score == set_.scores[~set_.same].max()
    assert rejected[0].score == set_.scores[set_.same].min()
    assert [pair.score for pair in accepted] == sorted(set_.scores[~set_.same])[::-1][:24]
    place = int(np.flatnonzero(set_.scores == rejected[0].score)[0])
    assert (rejected[0].a, rejected[0].b) == (names[set_.first[place]], names[set_.second[place]])


def test_a_judgement_fits_a_result_that_json_takes() -> None:
    found = judge_pairs(**vars(simulated(0)), draws=20)
    result = Result("m", "s", "verification/1", headline="accuracy", **vars(found))
    assert json.loads(Evaluation(models=[], results=[result]).as_json())["results"]


@pytest.mark.parametrize("folds", [10, 0])
def test_above_a_million_pairs_bins_give_the_same(
    folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures exact, the draws' figures within what a bin of 0.0005 in cosine can move them."""
    monkeypatch.setattr(binned, "AT_ONCE", 700)
    set_ = simulated(0, people=60, images=6, impostors=6000)
    parts = Folds.contiguous(len(set_.same), folds) if folds else None
    exact, in_bins = (
        kind(set_.scores, set_.same, far_limits=(0.1, 0.01), folds=parts)
        for kind in (ScoredPairs, BinnedPairs)
    )
    for name, value in exact.point().items():
        np.testing.assert_allclose(in_bins.point()[name], value, atol=1e-12, err_msg=name)
    clusters = Clusters.of_pairs(set_.first, set_.second, set_.people)
    some, others = (
        bootstrap(pairs.figures, clusters, draws=100, seed=0, at_once=64)
        for pairs in (exact, in_bins)
    )
    for name in ("accuracy", "threshold") if folds else ():
        np.testing.assert_array_equal(some[name].drawn, others[name].drawn)
    for name, slack in (("auc", 5e-5), ("eer", 2e-3), ("tar@far=0.01", 8e-3), ("d-prime", 1e-3)):
        np.testing.assert_allclose(some[name].drawn, others[name].drawn, atol=slack, err_msg=name)


def test_quality_gives_a_curve_and_the_settings_say_how() -> None:
    set_ = simulated(0)
    quality = np.random.default_rng(0).random(len(set_.people))
    found = judge_pairs(**vars(set_), draws=20, quality={"norm": quality, "sharpness": -quality})
    curve = found.curves["discard"]
    assert curve.x[0] == 0
    assert curve.y[0] == pytest.approx(found.figures["fnmr@fmr=0.01"].value)
    assert len(curve.low) == len(curve.high) == len(curve.x)
    assert "discard by sharpness" in found.curves
    assert found.settings["discarded by"].startswith("norm, sharpness")
    assert found.settings["common threshold"].endswith("of FMR 0.01 on the whole set")
    with pytest.raises(ValueError, match=r"quality 'norm': \d+ of 1200 pairs have an image whose"):
        judge_pairs(**vars(set_), draws=0, quality={"norm": np.r_[np.nan, quality[1:]]})


def test_groups_are_judged_with_the_set_s_threshold() -> None:
    set_ = simulated(0)
    group_of = np.array(["even", "odd"])[set_.people % 2]
    found = judge_pairs(**vars(set_), draws=20, groups=group_of)
    assert list(found.groups) == ["even", "odd"]
    within = sum(
        sum(group.counts[k] for k in ("genuine", "impostor")) for group in found.groups.values()
    )
    assert found.settings["pairs of two groups, or of none"] == len(set_.same) - within


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draws", [0, 1, 50])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("pairs", "folds"), [(2, 2), (3, 2), (12, 4)])
def test_the_smallest_sets_are_judged_without_a_word_from_numpy(
    pairs: int, folds: int, known: bool, draws: int
) -> None:
    """Draws may have no pair of a kind, or none at all."""
    rng = np.random.default_rng(pairs)
    same = np.arange(pairs) % 2 == 0
    first, second = np.arange(pairs) * 2, np.arange(pairs) * 2 + 1
    people = np.arange(2 * pairs)
    people[second[same]] = people[first[same]]
    found = judge_pairs(
        rng.uniform(-1, 1, pairs),
        same,
        first=first,
        second=second,
        people=people if known else None,
        folds=folds,
        draws=draws,
        groups=np.full(2 * pairs, "all"),
        quality={"norm": rng.random(2 * pairs)},
    )
    assert 0 <= found.figures["accuracy"].value <= 1
    for figure in found.figures.values():
        if figure.low is not None:
            assert figure.low <= figure.high
