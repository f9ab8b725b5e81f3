"""Paired tests: in words of two models, as a square of many, marked where something is shown."""

from __future__ import annotations

from dataclasses import replace

from evaluation.report.differences import differences
from tests.evaluation.report import made_up


def test_two_models_are_compared_in_words():
    evaluation = made_up.evaluation(2)
    (grid,) = differences(evaluation, "lfw.bin+blur")
    assert [cell.text for cell in grid.rows[0]] == [
        "r50_rate1.0 − r50_rate0.9",
        "accuracy, %",
        "0.20 points better, 95 % interval −0.10 … 0.50: not shown to be better",
    ]
    assert differences(evaluation, "tinyface") == []


def test_of_many_models_each_stands_against_each_with_the_sign_turned():
    evaluation = made_up.evaluation(4, places=("a",), searches=False)
    (grid,) = differences(evaluation, "a")
    assert len(grid.rows) == len(grid.columns) - 1 == 4
    assert all(grid.rows[i][i + 1].text == "" for i in range(4))
    above, below = grid.rows[0][2], grid.rows[1][1]
    assert (above.text, above.doubt, above.best) == ("+0.20", "[0.1, 0.5]", True)
    assert (below.text, below.doubt, below.best) == ("−0.20", "[−0.5, −0.1]", False)


def test_of_errors_the_fewer_are_the_better():
    evaluation = made_up.evaluation(4, places=("a",), searches=False)
    errors = [replace(one, figure="eer") for one in evaluation.comparisons]
    (grid,) = differences(replace(evaluation, comparisons=errors), "a")
    assert not grid.rows[0][2].best
    assert grid.rows[1][1].best
