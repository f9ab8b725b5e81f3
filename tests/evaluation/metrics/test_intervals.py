from __future__ import annotations

import numpy as np
import pytest

from evaluation.metrics.intervals import Spread, figure


def test_draws_without_the_figure_are_passed_over() -> None:
    """Such as a threshold that is infinite where no genuine pair can be accepted."""
    drawn = np.r_[np.random.default_rng(0).normal(5, 1, 2000), np.inf, np.nan]
    spread = Spread.around(np.asarray(5.0), drawn=drawn, own=np.full(10, 5.0), clusters=10_000)
    low, high = spread.interval(np.asarray(5.0))
    assert (low, high) == (pytest.approx(5 - 1.96, abs=0.15), pytest.approx(5 + 1.96, abs=0.15))
    never = Spread.around(np.asarray(5.0), drawn=np.full(9, np.inf), own=np.zeros(9), clusters=9)
    assert figure(5.0, never, rate=False).low is None


def test_few_people_widen_the_interval() -> None:
    drawn = np.random.default_rng(0).normal(0, 0.01, 4000)
    few, many = (Spread(drawn, np.zeros(10), clusters) for clusters in (30, 30_000))
    width = [np.subtract(*spread.interval(np.asarray(0.5))[::-1]) for spread in (few, many)]
    assert width[0] / width[1] == pytest.approx(np.sqrt(1.5), rel=1e-3)


def test_an_interval_of_odds_stays_between_its_ends_and_agrees_with_the_other_in_the_middle() -> (
    None
):
    drawn = np.random.default_rng(0).normal(0, 0.01, 4000)
    spread = Spread(drawn, np.zeros(4000), 10_000)
    middle = np.asarray(0.5)
    np.testing.assert_allclose(spread.interval_of_odds(middle), spread.interval(middle), atol=2e-3)
    low, high = spread.interval_of_odds(np.asarray(0.995))
    assert 0.5 < low < 0.995 < high < 1
    assert spread.interval(np.asarray(0.995))[1] > 1


def test_no_error_gives_the_rule_of_three_over_what_shares_nobody() -> None:
    still = Spread(np.zeros(100), np.zeros(100), 50)
    perfect = figure(1.0, still, rate=True, apart=300)
    assert (perfect.low, perfect.high) == (pytest.approx(0.99), 1.0)
    assert "rule of three for 300 comparisons" in perfect.note
    assert figure(0.0, still, rate=True, apart=2).high == 1.0
    assert figure(1.0, None, rate=True, apart=300).low is None
    assert figure(np.inf, still, rate=False).value is None
