"""A run says once what comes up, and its dashboards and its report have what was to be expected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import tostring

from training.config import Config, DataConfig, load_config
from training.health.course import Course
from training.health.expected import known
from training.health.facts import Facts
from training.health.section import section
from training.health.watch import Watch

ROOT = Path(__file__).parents[3]
FACTS = Facts.of(Config(data=DataConfig(train="a.rec")), classes=1_000, steps_per_epoch=10)


def reading(step: int, loss: float, **values: float) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "loss": loss, "gradient_norm": 1.0, **values}


def of_recipe() -> Facts:
    [first, *_] = known()
    config = load_config(ROOT / f"configs/{first.recipe}.py")
    return Facts.of(config, classes=first.classes, steps_per_epoch=first.steps_per_epoch)


def test_a_cause_is_reported_once_and_another_when_it_comes_up():
    lines: list[dict[str, Any]] = []
    watch, said = Watch(FACTS, lambda: lines), []
    for step in range(1, 60):
        skips = 1.0 if step > 30 else 0.0
        lines.append(reading(step, 0.0, skipped_steps=skips))
        said += watch.news()
    assert len(said) == 3
    assert said[0].startswith("unhealthy  one class")
    assert said[1].startswith("unhealthy  many steps are skipped")
    assert said[2].startswith("unhealthy  every step is skipped")


def test_looking_takes_no_longer_than_reading_the_file_some_tens_of_times():
    looked = []
    watch = Watch(FACTS, lambda: looked.append(1) or [])
    for _ in range(10_000):
        watch.news()
    assert 10 < len(looked) < 100


def test_the_conclusion_says_what_is_wrong_or_that_nothing_is():
    assert Watch(FACTS, list).conclusion() == []
    [healthy] = Watch(FACTS, lambda: [reading(5, 20.0)]).conclusion()
    assert healthy.startswith("early")
    [ill] = Watch(FACTS, lambda: [reading(5, 0.0)]).conclusion()
    assert ill.startswith("unhealthy  one class")


def test_expected_losses_are_at_steps_of_the_run():
    found = Watch(of_recipe(), list).expected_losses()
    [first, *_] = known()
    assert len(found) == len(first.losses)
    assert max(found) <= first.steps_per_epoch * 20
    assert {*next(iter(found.values()))} == {"loss/expected_low", "loss/expected_high"}
    assert Watch(FACTS, list).expected_losses() == {}


def test_the_report_has_findings_a_table_and_a_chart():
    lines = [{"step": 506 * i, "epoch": i / 10, "loss": 40.0 - i} for i in range(1, 30)]
    drawn = tostring(section(Course.of(lines), of_recipe()), encoding="unicode")
    assert "Is this run healthy?" in drawn
    assert "Nothing wrong is seen" in drawn
    assert "10.00 to 12.98" in drawn
    assert "<svg" in drawn
    ill = tostring(section(Course.of([reading(5, 0.0)]), FACTS), encoding="unicode")
    assert "one class: the loss is 0" in ill
    assert "no run with these settings is known" in ill


def test_without_any_loss_there_is_no_chart():
    skipped = [{**reading(5, 1.0, skipped_steps=5.0), "loss": None}]
    drawn = tostring(section(Course.of(skipped), replace(FACTS)), encoding="unicode")
    assert "every step is skipped" in drawn
    assert "<svg" not in drawn
