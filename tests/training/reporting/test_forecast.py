"""The time a run will take, from steps whose seconds the test decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluation.scoring import Scored
from tests.clock import Clock
from training.config import Config, DataConfig, EvalConfig, RunConfig, StepConfig
from training.reporting.forecast import TIMED, Forecast, warm_up_steps
from training.scored_sets import ScoredSet

CONFIG = Config(
    run=RunConfig(epochs=4),
    data=DataConfig(train="train.rec", global_batch=32),
    eval=EvalConfig(sets=("val.bin",), every=3),
)
PER_EPOCH = 100


def never(*_: object) -> Scored:
    raise AssertionError("nothing is scored here")


def create(clock: Clock, config: Config = CONFIG, **every: int) -> Forecast:
    """Of sets with these epochs in between, by default of one as the configuration says."""
    settings = config.eval
    if settings.sets and not every:
        every = {"val": settings.every}
    sets = [
        ScoredSet(name, never, every=epochs, every_steps=settings.every_steps)
        for name, epochs in every.items()
    ]
    return Forecast(
        config,
        sets=sets,
        steps_per_epoch=PER_EPOCH,
        device=torch.device("cpu"),
        clock=clock.perf_counter,
    )


def take(forecast: Forecast, clock: Clock, steps: range, seconds: float) -> list[str]:
    """What is said while these steps are done, of so many seconds each."""
    said = []
    for step in steps:
        clock.now += seconds
        said.append(forecast.step(step))
    return [line for line in said if line]


def test_warm_steps_and_a_verification_foretell_the_run_once():
    """387 steps of half a second, verified after epochs 3 and 4: 193.5 s + 2 × 20 s."""
    clock = Clock()
    forecast = create(clock)
    with forecast.scoring("val"):
        clock.now += 20
    cold = warm_up_steps(CONFIG)
    assert not take(forecast, clock, range(1, cold + 1), 60.0)
    said = take(forecast, clock, range(cold + 1, 400), 0.5)
    assert said == [
        "about 4 min for 387 steps at 64 images/s and 2 verifications of 20 s, checkpoints aside"
    ]
    assert cold + TIMED == 13


def test_verifications_between_epochs_count():
    """At 50, 100, … 400: epochs 3 and 4 end at two of them."""
    clock = Clock()
    config = replace(CONFIG, eval=replace(CONFIG.eval, every_steps=50))
    forecast = create(clock, config)
    with forecast.scoring("val"):
        clock.now += 20
    (said,) = take(forecast, clock, range(1, 40), 0.5)
    assert "and 8 verifications of 20 s" in said


def test_sets_at_intervals_of_their_own_are_counted_each_by_its_time():
    """Four times 10 s, twice 100 s, after 387 steps of half a second."""
    clock = Clock()
    forecast = create(clock, lfw=1, ijbc=3)
    for name, seconds in (("lfw", 10), ("ijbc", 100)):
        with forecast.scoring(name):
            clock.now += seconds
    assert take(forecast, clock, range(1, 40), 0.5) == [
        "about 7 min for 387 steps at 64 images/s and 4 min of verification, checkpoints aside"
    ]


def test_a_set_that_was_not_scored_yet_leaves_all_of_them_aside():
    clock = Clock()
    forecast = create(clock, lfw=1, ijbc=3)
    with forecast.scoring("lfw"):
        clock.now += 10
    [said] = take(forecast, clock, range(1, 40), 0.5)
    assert said.endswith("images/s, verification and checkpoints aside")


def test_a_verification_among_the_timed_steps_is_no_part_of_them():
    clock = Clock()
    forecast = create(clock)
    assert not take(forecast, clock, range(91, 101), 0.5)
    with forecast.scoring("val"):
        clock.now += 1000
    assert take(forecast, clock, range(101, 130), 0.5) == [
        "about 36 min for 297 steps at 64 images/s and 2 verifications of 17 min, checkpoints aside"
    ]


def test_a_resumed_run_has_timed_no_verification_and_says_so():
    clock = Clock()
    said = take(create(clock), clock, range(301, 400), 0.5)
    assert said == [
        "about 44 s for 87 steps at 64 images/s, verification and checkpoints aside",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.01, "about 4 s"), (5.0, "about 32 min"), (600.0, "about 64.5 h")]
)
def test_times_are_said_as_people_say_them(seconds, said):
    clock = Clock()
    config = replace(CONFIG, eval=EvalConfig())
    (line,) = take(create(clock, config), clock, range(1, 100), seconds)
    assert line.startswith(f"{said} for 387 steps")
    assert line.endswith("images/s, checkpoints aside")


def test_a_whole_graph_is_warm_when_it_is_replayed():
    """GraphedStep records after eleven steps."""
    assert warm_up_steps(replace(CONFIG, step=StepConfig(cuda_graph="full"))) > 11
