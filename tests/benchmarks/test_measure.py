"""The suite's clock and shares: turns, memory, what fails alone, and what a row stands beside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.suite import measure
from benchmarks.suite.__main__ import with_memory
from benchmarks.suite.figures import Figures, run_stage
from benchmarks.suite.measure import TOY, Effort, in_turn, spread
from benchmarks.suite.processes import Outcome
from benchmarks.suite.shares import beside_others
from tests.ranks import start

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "of_all_ranks", lambda value: [value])


def test_ways_are_made_and_warmed_up_before_their_rounds():
    done = []

    def maker(name: str) -> measure.Maker:
        def make() -> measure.Step:
            done.append(name.upper())
            return lambda: done.append(name)

        return make

    found = in_turn({"a": maker("a"), "b": maker("b")}, CPU, Effort(0.0, warm_up=2, fewest=3))
    # One round more than is counted is taken, to see how long it is.
    assert "".join(done) == "Aaa" + "Bbb" + "ab" * 4
    assert [row["rounds"] for row in found.values()] == [3, 3]


def test_a_round_of_several_steps_is_given_by_the_step(monkeypatch):
    monkeypatch.setattr(measure, "take_turns", lambda ways, **_: {"a": [2.0, 4.0]})
    found = in_turn({"a": lambda: lambda: None}, CPU, Effort(0.0, steps=10, fewest=2))
    assert found["a"]["seconds"] == pytest.approx(0.3)


def test_a_way_that_fails_or_does_not_fit_leaves_the_others():
    def too_large() -> measure.Step:
        raise torch.OutOfMemoryError("no")

    def broken() -> measure.Step:
        raise KeyError("kernel")

    ways = {"large": too_large, "broken": broken, "good": lambda: lambda: None}
    found = in_turn(ways, CPU, Effort(0.0))
    assert found["large"] == {"skipped": "it does not fit into the memory"}
    assert found["broken"] == {"failed": "KeyError: 'kernel'"}
    assert found["good"]["seconds"] >= 0


def uneven() -> measure.Step:
    """2 MB kept; a step takes 100 MB, and 110 MB once these are free: 112 MB at most. Where pages
    are kept the 110 MB find no room in the 100 MB, behind which lies something small."""
    kept: list[torch.Tensor] = []

    def step() -> None:
        large = torch.ones(25_000_000)
        kept[:] = [torch.ones(25_000) for _ in range(20)]
        del large
        torch.ones(27_500_000)

    return step


def compare_uneven(figures: Figures) -> None:
    figures.compare({"uneven": uneven, "again": uneven}, TOY)


def run_uneven(_: int, path: Path, *flags: str) -> None:
    sys.argv = ["uneven", f"--figures={path}", "--seconds=1000", "--ranks=1", "--device=cpu"]
    sys.argv += ["--quick", *flags]
    run_stage(compare_uneven)


@pytest.mark.slow(seconds=6)
def test_memory_is_what_a_way_takes_at_once_in_a_process_that_keeps_no_pages(tmp_path):
    """In one of its own: what other tests do changes how the C library gives pages back."""
    for name, flags in (("time", []), ("memory", ["--memory"])):
        start(run_uneven, (tmp_path / name, *flags))
    time, memory = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("time", "memory")
    )
    assert [row["peak_mb"] for row in memory] == pytest.approx([112, 112], rel=0.05)
    assert not any("peak_mb" in row for row in time)
    assert not any("seconds" in row for row in memory)
    rows = with_memory(outcome(time), outcome(memory)).figures
    assert [(row["way"], "seconds" in row, row["peak_mb"]) for row in rows] == [
        (row["way"], True, row["peak_mb"]) for row in memory
    ]


def outcome(figures: list[measure.Row], failed: str | None = None) -> Outcome:
    return Outcome(seconds=1.0, limit=10.0, failed=failed, figures=figures)


def test_a_way_has_its_own_memory_or_none():
    time = [{"turn": 1, "way": "a", "ranks": ranks, "seconds": 1.0} for ranks in (1, 2)]
    time.append({"skipped": "the stage's time would not suffice"})
    memory = [{"turn": 1, "way": "a", "ranks": 2, "peak_mb": 7.0}]
    both = with_memory(outcome(time), outcome(memory, failed="not done after 9 s"))
    assert [row.get("peak_mb") for row in both.figures] == [None, 7.0, None]
    assert (both.seconds, both.failed) == (2.0, "its memory: not done after 9 s")
    assert with_memory(outcome([], "exit status 1"), outcome([], "no")).failed == "exit status 1"


def test_a_case_whose_memory_was_skipped_says_so():
    short = {"skipped": "the stage's time would not suffice"}
    time = [{"batch": 1, "turn": 1, "way": "a", "seconds": 1.0}, {"batch": 2} | short]
    memory = [{"batch": 1} | short, {"batch": 2} | short]
    figures = with_memory(outcome(time), outcome(memory)).figures
    assert figures[:2] == time
    assert figures[2:] == [{"batch": 1, "skipped": f"its memory: {short['skipped']}"}]


def test_median_and_percentiles():
    assert spread([float(k) for k in range(100, 0, -1)]) == {
        "seconds": 50.5,
        "seconds_p5": 6.0,
        "seconds_p95": 95.0,
        "rounds": 100,
    }


def test_shares_are_of_the_peak_in_the_dtype_and_of_the_baseline_beside():
    peaks = [
        {"dtype": "float32", "flops_per_s": 100.0},
        {"dtype": "bfloat16", "flops_per_s": 400.0},
        {"bytes_per_s": 50.0},
    ]
    rows = [
        {"turn": 1, "way": "arcface_torch", "seconds": 4.0, "images_per_s": 2.0},
        {"turn": 1, "way": "products", "seconds": 0.5, "images_per_s": 16.0},
        {
            **{"turn": 1, "way": "ours", "seconds": 2.0, "images_per_s": 4.0},
            **{"dtype": "bfloat16", "flops": 80.0, "bytes": 25.0},
        },
        {"turn": 2, "way": "ours", "seconds": 1.0, "images_per_s": 8.0},
    ]
    beside_others(rows, peaks=peaks)
    assert (rows[2]["flops_share"], rows[2]["bytes_share"]) == (0.1, 0.25)
    assert [row.get("times_as_fast") for row in rows] == [None, None, 2.0, None]
