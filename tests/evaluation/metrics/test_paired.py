from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.folds import Folds
from evaluation.metrics.measure import Comparisons, Plan, measure
from evaluation.metrics.paired import compare_models, verdict
from evaluation.result import Comparison, Figure
from tests.evaluation.metrics.simulated import simulated

FIGURES = ("accuracy", "auc", "tar@far=0.01", "eer", "d-prime")


def plan_of(pairs: Comparisons, draws: int = 200) -> Plan:
    folds = Folds.contiguous(len(pairs.same), 10)
    return Plan(folds=folds, draws=draws, seed=0, far_limits=(0.01, 0.001))


def with_noise(pairs: Comparisons, amount: float, seed: int = 0) -> Comparisons:
    noise = amount * np.random.default_rng(seed).normal(size=len(pairs.same))
    return replace(pairs, scores=(pairs.scores + noise).clip(-1, 1))


@pytest.fixture(scope="module")
def pairs() -> Comparisons:
    return Comparisons(**vars(simulated(0)))


def by_figure(comparisons: list[Comparison]) -> dict[str, Comparison]:
    return {one.figure: one for one in comparisons}


def test_a_model_that_is_worse_is_shown_to_be_worse(pairs: Comparisons) -> None:
    models = {"poor": with_noise(pairs, 0.2), "good": pairs}
    found = by_figure(compare_models(models, plan_of(pairs), set_name="s", figures=FIGURES))
    assert list(found) == list(FIGURES)
    for name, one in found.items():
        assert (one.set, one.first, one.second) == ("s", "poor", "good")
        assert one.difference.low <= one.difference.value <= one.difference.high
        assert one.verdict.endswith(": shown to be worse"), name
    assert found["eer"].difference.low > 0  # more errors
    assert found["accuracy"].difference.high < 0
    figures = [measure(models[name], plan_of(pairs, 0)).figures for name in ("poor", "good")]
    assert found["auc"].difference.value == figures[0]["auc"].value - figures[1]["auc"].value


def test_a_model_much_like_another_is_not_shown_to_be_better(pairs: Comparisons) -> None:
    """And its interval is much narrower than two intervals that know nothing of each other."""
    models = {"a": with_noise(pairs, 0.01, seed=1), "b": with_noise(pairs, 0.01, seed=2)}
    for one in compare_models(models, plan_of(pairs), set_name="s", figures=FIGURES):
        assert one.difference.low < 0 < one.difference.high
        assert "not shown to be" in one.verdict
    (one,) = compare_models(models, plan_of(pairs), set_name="s", figures=["auc"])
    alone = measure(models["a"], plan_of(pairs)).figures["auc"]
    assert one.difference.high - one.difference.low < 0.4 * (alone.high - alone.low)


def test_the_same_model_twice_does_not_differ(pairs: Comparisons) -> None:
    models = {"a": pairs, "b": pairs}
    for one in compare_models(models, plan_of(pairs), set_name="s", figures=FIGURES):
        assert (one.difference.value, one.difference.low, one.difference.high) == (0, 0, 0)
        assert one.verdict == "nothing is judged otherwise: not shown to differ"


def test_every_two_of_several_models_and_nothing_that_a_set_cannot_show(
    pairs: Comparisons,
) -> None:
    models = {name: with_noise(pairs, 0.1, seed) for seed, name in enumerate("abc")}
    found = compare_models(
        models, plan_of(pairs, 20), set_name="s", figures=["auc", "tar@far=0.001"]
    )
    assert [(one.first, one.second, one.figure) for one in found] == [
        ("a", "b", "auc"),
        ("a", "c", "auc"),
        ("b", "c", "auc"),
    ]


@pytest.mark.parametrize(
    ("figure", "difference", "expected"),
    [
        (
            "accuracy",
            Figure(0.002, -0.001, 0.005),
            "0.20 points better, 95 % interval −0.10 … 0.50: not shown to be better",
        ),
        (
            "eer",
            Figure(-0.01, -0.02, -0.004),
            "1.00 points better, 95 % interval 0.40 … 2.00: shown to be better",
        ),
        (
            "fnmr@fmr=0.01",
            Figure(0.01, 0.002, 0.02),
            "1.00 points worse, 95 % interval −2.00 … −0.20: shown to be worse",
        ),
        (
            "fmr at the common threshold",
            Figure(0.01, -0.002, 0.02),
            "1.00 points worse, 95 % interval −2.00 … 0.20: not shown to be worse",
        ),
        (
            "d-prime",
            Figure(-0.5, -1.0, 0.1),
            "0.50 worse, 95 % interval −1.00 … 0.10: not shown to be worse",
        ),
    ],
)
def test_the_verdict_in_words(figure: str, difference: Figure, expected: str) -> None:
    assert verdict(figure, difference) == expected
