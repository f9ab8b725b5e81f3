"""The suite's clock and shares: turns, memory, what fails alone, and what a row stands beside."""

from __future__ import annotations

import pytest
import torch

from benchmarks.suite import measure
from benchmarks.suite.measure import Effort, in_turn, spread
from benchmarks.suite.shares import beside_others
from tests.ranks import run_ranks
from training.distributed import World

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


def peaks(_: World) -> list[float]:
    """Of two ways, in 10^6 bytes."""

    def taking(size: int) -> measure.Maker:
        def make() -> measure.Step:
            kept = torch.ones(size // 4)
            return lambda: kept.mul(2.0)  # as much again, for a moment

        return make

    found = in_turn({"large": taking(200_000_000), "small": taking(50_000_000)}, CPU, Effort(0.0))
    return [row["peak_mb"] for row in found.values()]


@pytest.mark.slow
def test_the_peak_is_of_one_way_alone(tmp_path):
    """In a process of its own: a command that another test calls in this one tells the allocator to
    keep its pages, and an aligned tensor does not fit where one of its size has been."""
    [found] = run_ranks(peaks, world_size=1, folder=tmp_path)
    assert found == pytest.approx([400, 100], rel=0.1)


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
