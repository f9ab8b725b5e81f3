"""Each cause is found in the metrics that it leaves, and none in those of a run that learns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.config import Config, DataConfig, HeadConfig
from training.health import causes as causes_of_runs
from training.health.causes import diagnose
from training.health.course import Course
from training.health.facts import Facts

CONFIG = Config(
    data=DataConfig(train="a.rec", global_batch=64),
    head=HeadConfig(loss="cosface", loss_args={"margin": 0.25, "scale": 32.0}),
)
FACTS = Facts.of(CONFIG, classes=1_000, steps_per_epoch=100)
BLIND, START = FACTS.blind_loss, FACTS.start_loss
LEARNS = [START, 0.9 * START, 0.9 * BLIND, 0.8 * BLIND, 0.7 * BLIND, 0.6 * BLIND, 0.55 * BLIND]
GOOD, FLAT = [0.6, 0.8, 0.9], [0.6, 0.61, 0.62]


def run(
    losses: Sequence[float | None],
    *,
    norms: Sequence[float] = (20.0, 2.0),
    accuracies: Sequence[float] = (),
    epochs: float = 4.0,
    **values: float,
) -> Course:
    """A course with readings and verifications at even distances."""
    count = len(losses)
    lines: list[dict[str, Any]] = [
        {
            "step": round(100 * epochs * (i + 1) / count),
            "epoch": epochs * (i + 1) / count,
            "loss": loss,
            "gradient_norm": norms[min(i, len(norms) - 1)],
            "skipped_steps": 0.0,
            "nonfinite_losses": 0.0,
            "loss_scale": 1.0,
            "lr": 0.05,
            **values,
        }
        for i, loss in enumerate(losses)
    ]
    lines += [
        {
            "step": round(100 * epochs * i / (len(accuracies) - 1)),
            "epoch": epochs * i / (len(accuracies) - 1),
            "verification": {"lfw": {"accuracy": accuracy}},
        }
        for i, accuracy in enumerate(accuracies)
    ]
    return Course.of(sorted(lines, key=lambda line: line["step"]))


def with_settings(**sections: Mapping[str, Any]) -> Facts:
    config = replace(
        CONFIG, **{key: replace(getattr(CONFIG, key), **sections[key]) for key in sections}
    )
    return Facts.of(config, classes=1_000, steps_per_epoch=100)


def causes(course: Course, facts: Facts = FACTS) -> list[str]:
    return [finding.cause for finding in diagnose(course, facts)]


def test_nothing_is_found_in_a_run_that_learns_nor_in_one_that_has_only_begun():
    assert causes(run(LEARNS, accuracies=GOOD)) == []
    assert causes(run(LEARNS)) == []
    assert causes(run([])) == []
    assert causes(run([START, START], accuracies=FLAT, epochs=1.0)) == []


@pytest.mark.parametrize(
    ("course", "cause"),
    [
        (run([0.0, 0.0, 0.0], norms=[0.0]), "one class"),
        (run([START, 1.3 * START, 0.7 * BLIND], accuracies=GOOD), "rate too high"),
        (run([START, 0.3 * BLIND, 0.8 * BLIND], accuracies=GOOD), "rate too high"),
        (run([START] * 4, norms=[20.0], accuracies=FLAT), "the network does not move"),
        (run([START] * 4, norms=[20.0]), "the network does not move"),
        (run([START, 0.6 * BLIND], norms=[20.0], accuracies=FLAT), "the network does not move"),
        (run([START, BLIND, BLIND], accuracies=GOOD), "the centers do not move"),
        (run([START, BLIND, BLIND], accuracies=FLAT), "labels do not fit the images"),
        (run([START, BLIND, BLIND]), "labels do not fit the images"),
        (run(LEARNS, accuracies=FLAT), "verified on other images than it learns"),
        (run(LEARNS, accuracies=[0.51, 0.5, 0.52]), "pairs are wrong"),
        (run([START, 0.01 * BLIND], accuracies=[0.6, 0.8]), "learned by heart"),
    ],
)
def test_a_cause_is_found_by_what_it_leaves(course: Course, cause: str):
    [finding] = diagnose(course, FACTS)
    assert finding.cause == cause
    assert finding.seen
    assert finding.meaning
    assert finding.remedy
    assert "\n" not in str(finding)


def test_a_loss_near_zero_is_no_illness_where_others_are_recognized():
    assert causes(run([START, 0.01 * BLIND], accuracies=[0.6, 0.99])) == []


def test_steps_that_are_skipped_are_explained_by_where_the_overflow_is():
    backward = run([None] * 4, skipped_steps=100.0)
    [finding] = diagnose(backward, FACTS)
    assert finding.cause == "every step is skipped"
    assert "the loss is finite, its gradient not" in finding.seen
    forward = run([None] * 4, skipped_steps=100.0, nonfinite_losses=100.0)
    assert "the loss itself is not finite" in diagnose(forward, FACTS)[0].seen


def test_some_skipped_steps_are_found_beside_another_cause():
    found = causes(run([START, BLIND, BLIND], accuracies=FLAT, skipped_steps=40.0))
    assert found == ["many steps are skipped", "labels do not fit the images"]


def test_float16_may_look_for_its_scale_at_the_beginning():
    searching = run([None], epochs=0.1, skipped_steps=9.0, loss_scale=1024.0)
    assert causes(searching) == []
    assert causes(run([None], epochs=2.0, skipped_steps=200.0, loss_scale=1024.0)) != []


def test_a_start_from_weights_that_know_nobody_is_found():
    facts = with_settings(run={"init_from": "other.pt"})
    course = run(LEARNS, accuracies=[0.55, 0.8, 0.9])
    assert causes(course, facts) == ["the start knows nobody"]
    assert causes(course) == []
    assert causes(run(LEARNS, accuracies=[0.99, 0.99, 0.99]), facts) == []


def test_a_loss_that_rises_by_plan_is_not_called_a_fault():
    rising = run([START, 0.3 * BLIND, 0.8 * BLIND], accuracies=GOOD)
    assert causes(rising, with_settings(head={"sample_rate_from": {2: 0.5}})) == []


def test_while_rate_or_margin_grow_it_is_early():
    stuck = run([START, BLIND, BLIND], accuracies=FLAT)
    for settings in ({"optim": {"warmup_epochs": 3.0}}, {"head": {"margin_warmup_epochs": 3.0}}):
        assert causes(stuck, with_settings(**settings)) == []


def test_every_cause_has_its_row_in_the_page():
    named = re.findall(r'cause="([^"]+)"', Path(causes_of_runs.__file__).read_text())
    page = (Path(__file__).parents[3] / "docs/healthy.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    assert len(named) >= 9
    assert [cause for cause in named if not any(cause in row for row in rows)] == []


def test_remedies_name_the_present_settings():
    facts = with_settings(optim={"lr": 0.8}, head={"lr": 0.3})
    [finding] = diagnose(run([START, 1.3 * START]), facts)
    assert "optim.lr=0.8, head.lr=0.3" in finding.remedy
