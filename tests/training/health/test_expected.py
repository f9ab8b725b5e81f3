"""What is expected of a recipe is of its own settings, and a run's values are put beside it."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.config import load_config
from training.health.course import Course
from training.health.expected import Comparison, compare, expectation_of, known
from training.health.facts import Facts
from training.health.verdict import verdict

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks/results"
DEMO = "demo_by_epoch_cpu_2026-11-28.jsonl"  # three seeds on one rank, three on two
RECIPES = [one.recipe for one in known()]


def facts_of(recipe: str, **changed: object) -> Facts:
    [expected] = [one for one in known() if one.recipe == recipe]
    config = load_config(ROOT / f"configs/{recipe}.py")
    facts = Facts.of(config, classes=expected.classes, steps_per_epoch=expected.steps_per_epoch)
    return replace(facts, settings={**facts.settings, **changed})


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_settings_are_those_of_the_recipe(recipe: str):
    expected, source = expectation_of(facts_of(recipe))
    assert expected is not None
    assert expected.recipe == recipe
    assert f"configs/{recipe}.py" in source


@pytest.mark.parametrize("recipe", [one.recipe for one in known() if one.losses])
def test_losses_fall_from_below_that_of_knowing_nobody(recipe: str):
    [expected] = [one for one in known() if one.recipe == recipe]
    spans = [expected.losses[epoch] for epoch in sorted(expected.losses)]
    highest = [high for _, high in spans]
    assert all(low < high for low, high in spans)
    assert highest == sorted(highest, reverse=True)
    assert highest[0] < facts_of(recipe).blind_loss
    assert max(expected.losses) <= facts_of(recipe).settings["run.epochs"]


def test_with_another_setting_nothing_is_expected_and_it_is_named():
    expected, why = expectation_of(facts_of("ms1mv3_r50", **{"optim.lr": 0.2}))
    assert expected is None
    assert "nearest is configs/ms1mv3_r50.py, with optim.lr=0.2 instead of 0.05" in why


def test_with_many_other_settings_no_recipe_is_near():
    other = {"optim.lr": 0.2, "run.epochs": 3, "model.name": "mbf", "data.augment": ["light"]}
    _, why = expectation_of(facts_of("ms1mv3_r50", **other))
    assert "nearest" not in why


def test_a_runs_values_are_those_around_the_moment():
    expected, _ = expectation_of(facts_of("ms1mv3_r50"))
    lines = [{"step": 100 * i, "epoch": i / 10, "loss": 30.0 - i} for i in range(1, 40)]
    lines += [{"step": 2000, "epoch": 2.0, "verification": {"lfw": {"accuracy": 0.98}}}]
    by_moment = {(one.what, one.epoch): one for one in compare(Course.of(lines[:20]), expected)}
    assert by_moment["loss", 1.98].found == 11.0  # the reading at 1.9
    assert by_moment["loss", 1.98].verdict == "as expected"
    assert by_moment["loss", 3.95].verdict == "unknown"
    assert ("lfw", 1.98) not in by_moment  # not scored yet

    scored = [*lines[:20], lines[-1]]
    [lfw, *_] = [one for one in compare(Course.of(scored), expected) if one.what == "lfw"]
    assert (lfw.found, lfw.verdict) == (0.98, "lower")
    high = [{**line, "loss": 40.0} for line in lines[:20]]
    assert compare(Course.of(high), expected)[0].verdict == "higher"


def test_the_page_names_what_is_known():
    page = (ROOT / "docs/healthy.md").read_text()
    assert [recipe for recipe in RECIPES if f"`{recipe}`" not in page] == []


def test_figures_of_runs_here_are_within_what_is_expected():
    """Those of benchmarks/results that the sources name, and other runs of the demo."""
    for recipe, file in (
        ("lfw_dev", "lfw_dev_cpu_2026-11-22.json"),
        ("demo", "demo_cpu_2026-11-28.json"),
    ):
        found = json.loads((RESULTS / file).read_text())
        [expected] = [one for one in known() if one.recipe == recipe]
        assert recipe == "demo" or file in expected.source
        [points] = expected.scores.values()
        for run in found.get("results", [found]):
            scored = {one["epoch"]: one["accuracy"] for one in run["verification"]}
            for epoch in scored.keys() & points.keys():
                low, high = points[epoch]
                assert low <= scored[epoch] <= high


DEMOS = [json.loads(line) for line in (RESULTS / DEMO).read_text().splitlines()]
EACH_DEMO = pytest.mark.parametrize(
    "run", DEMOS, ids=[f"seed {run['seed']}, ranks {run['ranks']}" for run in DEMOS]
)


def test_what_is_expected_of_the_demo_is_what_its_runs_showed():
    """Losses a tenth around the lowest and highest of them, accuracies by their deviations."""
    [expected] = [one for one in known() if one.recipe == "demo"]
    assert DEMO in expected.source
    courses = [Course.of(run["journal"]) for run in DEMOS]
    for epoch, span in expected.losses.items():
        losses = [course.loss_at(epoch) for course in courses]
        assert span == pytest.approx((0.9 * min(losses), 1.1 * max(losses)), abs=0.006)
    for epoch, span in expected.scores["val"].items():
        scored = [
            line["verification"]["val"]
            for run in DEMOS
            for line in run["journal"]
            if "verification" in line and line["epoch"] == epoch
        ]
        low = min(one["accuracy"] - one["accuracy_std"] for one in scored)
        high = max(one["accuracy"] + one["accuracy_std"] for one in scored)
        assert span == pytest.approx((low, min(high, 1.0)), abs=0.0006)


@EACH_DEMO
def test_a_demo_is_healthy_and_within_the_band(run: dict[str, Any]):
    every_third = [
        line
        for line in run["journal"]
        if "verification" not in line or line["epoch"] in (0, 3, 5)  # as configs/demo.py verifies
    ]
    lines = verdict(Course.of(every_third), facts_of("demo"))
    assert "healthy    nothing wrong is seen" in lines
    compared = [line for line in lines if line.startswith("epoch ")]
    assert [line.split()[1:3] for line in compared] == [
        *([f"{epoch}.00", "loss"] for epoch in (1, 2, 3, 4, 5)),
        *([f"{epoch}.00", "val"] for epoch in (3, 5)),
    ]
    assert all(line.endswith(": as expected") for line in compared)


@EACH_DEMO
def test_a_demo_that_goes_wrong_leaves_the_band(run: dict[str, Any]):
    """Its loss stays at that of knowing nobody, or falls to 0; or it is 0.05 less accurate."""
    blind, worse = facts_of("demo").blind_loss, deepcopy(run["journal"])
    for line in worse:
        if "verification" in line:
            line["verification"]["val"]["accuracy"] -= 0.05
    assert verdicts_of_losses([line | {"loss": blind} for line in run["journal"]]) == {"higher"}
    assert verdicts_of_losses([line | {"loss": 0.0} for line in run["journal"]]) == {"lower"}
    found = compared_demo(worse)
    assert {one.verdict for one in found if one.what == "val" and one.epoch > 1} == {"lower"}


def verdicts_of_losses(journal: list[dict[str, Any]]) -> set[str]:
    return {one.verdict for one in compared_demo(journal) if one.what == "loss"}


def compared_demo(journal: list[dict[str, Any]]) -> list[Comparison]:
    [expected] = [one for one in known() if one.recipe == "demo"]
    return compare(Course.of(journal), expected)
