from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics import bootstrap as bootstrap_module
from evaluation.metrics.bootstrap import Clusters, Weights, bootstrap
from evaluation.metrics.folds import Folds
from evaluation.metrics.intervals import Spread
from evaluation.metrics.scored import ScoredPairs
from tests.evaluation.metrics.simulated import simulated


def test_a_draw_weighs_a_pair_by_its_two_people_and_one_alone_by_one() -> None:
    """Read back from the weights themselves: genuine pairs tell how often each person came."""
    people = np.array([7, 7, 3, 3, 9, 9])
    first, second = np.array([0, 2, 4, 0, 2, 5]), np.array([1, 3, 5, 2, 4, 1])
    clusters = Clusters.of_pairs(first, second, people)
    assert (clusters.count, clusters.kind) == (3, "people")
    seen: list[np.ndarray] = []

    def figures(weigh: Weights) -> dict[str, np.ndarray]:
        seen.append(weigh(np.arange(6)))
        return {"sum": seen[-1].sum(axis=1)}

    bootstrap(figures, clusters, draws=100, seed=0)
    whole, *blocks = seen
    assert (whole == 1).all()
    drawn, own = np.concatenate(blocks)[:100], np.concatenate(blocks)[100:]
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    for seven, three, nine, *products in drawn:
        assert products == [seven * three, three * nine, nine * seven]
    assert (own[:, :3] == 1).all()
    assert set(own[:, 3:].ravel()) == {0, 2}


def test_draws_are_the_same_for_the_same_seed_however_many_at_a_time() -> None:
    set_ = simulated(0, people=20)
    pairs = ScoredPairs(set_.scores, set_.same, far_limits=(0.1,), folds=None)
    clusters = Clusters.of_pairs(set_.first, set_.second, set_.people)
    some, others, another = (
        bootstrap(pairs.figures, clusters, draws=70, seed=seed, at_once=at_once)["auc"].drawn
        for seed, at_once in ((3, 64), (3, 7), (4, 64))
    )
    np.testing.assert_array_equal(some, others)
    assert not np.array_equal(some, another)


def test_draws_do_not_depend_on_how_pairs_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pairs are millions they are not sorted."""
    set_ = simulated(0, people=20)
    pairs = ScoredPairs(set_.scores, set_.same, far_limits=(0.1,), folds=None)
    clusters = Clusters.of_pairs(set_.first, set_.second, set_.people)
    found = []
    for cells in (0, 1000):
        monkeypatch.setattr(bootstrap_module, "CELLS", cells)
        found.append(bootstrap(pairs.figures, clusters, draws=70, seed=0)["auc"].own)
    np.testing.assert_array_equal(*found)
    assert found[0].any()


def test_a_draw_is_the_set_with_each_pair_repeated() -> None:
    """All figures, of weights that are drawn, against those of a set that was written out."""
    set_ = simulated(1, people=12, impostors=80)
    folds = Folds.contiguous(len(set_.same), 5)
    pairs = ScoredPairs(set_.scores.round(2), set_.same, far_limits=(0.05, 0.2), folds=folds)
    weights = np.random.default_rng(0).integers(0, 3, (4, len(set_.same)))
    figures = pairs.figures(lambda places: weights[:, places])
    for draw, times in enumerate(weights):
        written_out = ScoredPairs(
            np.repeat(set_.scores.round(2), times),
            np.repeat(set_.same, times),
            far_limits=(0.05, 0.2),
            folds=Folds(np.repeat(folds.part, times), folds.chosen_on, False, 0),
        )
        written_out.roc_far = pairs.roc_far
        for name, expected in written_out.point().items():
            np.testing.assert_allclose(figures[name][draw], expected[0], atol=1e-9, err_msg=name)


def share(values: np.ndarray, clusters: Clusters, draws: int = 4000) -> Spread:
    """Spread of the mean of values (P,)."""

    def figures(weigh: Weights) -> dict[str, np.ndarray]:
        weights = weigh(np.arange(len(values)))
        return {"mean": weights @ values / weights.sum(axis=1)}

    return bootstrap(figures, clusters, draws=draws, seed=0)["mean"]


def test_pairs_that_share_nobody_have_the_interval_of_independent_ones() -> None:
    """Each image in one pair alone: the binomial's, where the mere product would be 1.7 as wide."""
    values = np.random.default_rng(0).random(2000) < 0.3
    clusters = Clusters.of_pairs(np.arange(2000), np.arange(2000, 4000))
    assert clusters.kind == "images"
    low, high = share(values, clusters).interval(values.mean())
    expected = 2 * 1.96 * np.sqrt(values.var() / 2000)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_what_depends_on_the_person_alone_has_the_interval_of_people() -> None:
    """20 searches of each of 200 people, who always succeed or always fail."""
    people = np.repeat(np.arange(200), 20)
    values = np.repeat(np.random.default_rng(0).random(200) < 0.3, 20)
    low, high = share(values, Clusters.of_searches(people)).interval(values.mean())
    expected = 2 * 1.96 * np.sqrt(values.var() / 200)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_all_pairs_of_people_have_the_variance_for_dyads() -> None:
    """The sum over all pairs of comparisons that share a person, written out."""
    rng = np.random.default_rng(0)
    one, other = np.triu_indices(40, 1)
    effect = rng.normal(size=40)
    values = effect[one] + effect[other] + 2 * rng.normal(size=len(one))
    low, high = share(values, Clusters.of_pairs(one, other, np.arange(40))).interval(0.0)
    rest = values - values.mean()
    variance = sum(
        rest[p] * rest[q]
        for p in range(len(rest))
        for q in range(len(rest))
        if {one[p], other[p]} & {one[q], other[q]}
    )
    deviation = np.sqrt(variance) / len(rest) * np.sqrt(1 + 15 / 40)
    assert (high - low) / 2 / 1.96 == pytest.approx(deviation, rel=0.1)


def test_how_many_comparisons_share_nobody() -> None:
    people = np.array([0, 0, 0, 1, 1, 2, 3])
    first, second = np.array([0, 0, 3, 0, 1, 5]), np.array([1, 2, 4, 3, 5, 6])
    clusters = Clusters.of_pairs(first, second, people)
    same = people[first] == people[second]
    assert clusters.apart(same) == 2  # persons 0 and 1
    assert clusters.apart(~same) == 2  # of 0-1, 0-2, 2-3: two have nobody in common
