"""Runs that were broken on purpose: what is wrong with each is found in its own metrics."""

from __future__ import annotations

import pytest

from benchmarks.cells import finished
from benchmarks.harness import RESULTS
from benchmarks.sick_runs import WAYS
from training.health.causes import diagnose
from training.health.course import Course

RUNS = {line["way"]: line["journal"] for line in finished(RESULTS / "sick_runs_cpu.jsonl")}


def test_every_way_has_been_run():
    assert {*RUNS} == {*WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_wrong_is_found_and_nothing_else_on_the_way(way: str):
    """After every line, as a run that is going on is judged: nothing yet, or its own cause."""
    cause, facts = WAYS[way].cause, WAYS[way].facts
    for count in range(1, len(RUNS[way]) + 1):
        found = [one.cause for one in diagnose(Course.of(RUNS[way][:count]), facts)]
        assert found in ([], [cause]), f"after {count} lines"
    assert found == ([cause] if cause else [])
