"""The suite, rehearsed: it must work on the day when there is a machine to measure."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness import RESULTS
from benchmarks.suite import __main__ as suite
from benchmarks.suite import backbone, facts, head, page, ranks, step, stream
from benchmarks.suite.figures import Figures
from benchmarks.suite.measure import Row
from benchmarks.suite.processes import Stage, launcher, run
from benchmarks.suite.shares import beside_others
from tests.clock import wait_until
from tests.ranks import run_ranks
from training.distributed import World

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures(tmp_path: Path, world: World) -> Iterator[Figures]:
    yield Figures(tmp_path / "rows.jsonl", world, seconds=1000.0, quick=True)
    torch.compiler.set_stance("default")


def rows_of(stage: Callable[[Figures], None], figures: Figures, folder: Path) -> list[Row]:
    """What a stage finds on this machine at toy sizes."""
    stage(figures)
    assert not figures.failed
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        if "device" not in row:
            assert 0 < row["seconds_p5"] <= row["seconds"] <= row["seconds_p95"]
            assert row["warm_up_s"] > 0
    return rows


@pytest.mark.slow(seconds=6)
def test_the_facts_name_the_machine_and_its_peaks(figures, tmp_path):
    machine, *peaks = rows_of(facts.facts, figures, tmp_path)
    assert (machine["device"], machine["ranks"]) == ("cpu", 1)
    assert {"float32"} <= {row["dtype"] for row in peaks if row.get("flops_per_s", 0) > 0}
    assert sum(row.get("bytes_per_s", 0) > 0 for row in peaks) == 1


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize("stage", [stream.stream, head.head, backbone.backbone, step.step])
def test_a_stage_finds_a_rate_for_each_way(stage, figures, tmp_path):
    rows = rows_of(stage, figures, tmp_path)
    assert all(row["images_per_s"] > 0 for row in rows)
    peaks = [{"dtype": name, "flops_per_s": 1e12} for name in ("float32", "bfloat16")]
    beside_others(rows, peaks=peaks)
    assert any("times_as_fast" in row for row in rows)
    if stage is not stream.stream:
        assert all(row["flops_share"] > 0 for row in rows)
    if stage is step.step:
        (real,) = [row for row in rows if row["way"] == step.REAL]
        assert 0 <= real["waiting"] <= 1


def stage_on_ranks(world: World, path: Path) -> None:
    figures = Figures(path, world, seconds=1000.0, quick=True)
    ranks.ranks(figures)
    assert not figures.failed


@pytest.mark.slow(seconds=6)
def test_a_step_is_timed_on_one_rank_and_on_two(tmp_path, monkeypatch):
    """Which are forked, instead of started by the commands that the stage gives."""
    path = tmp_path / "rows.jsonl"
    options = [f"--figures={path}", "--seconds=1000", "--ranks=1", "--device=cpu", "--quick"]
    monkeypatch.setattr(sys, "argv", ["ranks.py", *options])

    def start(command: list[str], *, check: bool, env: dict[str, str]) -> None:
        count = int(env[ranks._WITHIN])
        assert command == [*launcher(count), "-m", "benchmarks.suite.ranks", *options]
        run_ranks(stage_on_ranks, path, world_size=count, folder=tmp_path)

    monkeypatch.setattr(ranks.subprocess, "run", start)
    ranks.main()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["ranks"], row["way"]) for row in rows] == [
        (count, way) for count in (1, 2) for way in ranks.WAYS
    ]
    assert all(row["images_per_s"] > 0 for row in rows)


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize("stage", ["tests", "short_run"])
def test_a_stage_that_starts_processes_has_figures(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = Namespace(stages=[stage], quick=True, device="cpu")
    assert suite.measure(options, ranks=1, folder=tmp_path) == 0
    (result,) = tmp_path.glob("suite_unknown_*.json")
    rows = json.loads(result.read_text())["stages"][stage]["figures"]
    assert rows
    if stage == "tests":
        assert all(row["outcome"] in ("passed", "skipped") for row in rows)
    else:
        assert all(row["images_per_s"] > 0 for row in rows)


def test_the_stages_together_end_in_time():
    assert sum(suite.ON_CPU.values()) <= 15 * 60
    assert sum(suite.ON_GPU.values()) <= 8 * 60


def test_the_page_is_that_of_the_results():
    written = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    assert written == page.page(RESULTS), "python -m benchmarks.suite.page"
    charts = re.findall(r"\]\((charts/\S+)\)", written)
    assert [chart for chart in charts if not (ROOT / "benchmarks" / chart).exists()] == []


def test_a_page_has_tables_charts_and_what_is_missing(tmp_path):
    about = {"date": "2026-01-02", "device": "cpu", "ranks": 1, "cores": 2, "commit": "abc"}
    about |= {"torch": "2.13.0", "python": "3.11.7", "cpu": {"model name": "Z80"}}
    peaks = {"dtype": "float32", "flops_per_s": 2e12}
    row = {"turn": 1, "classes": 1_000, "rate": 0.1, "batch": 8, "dtype": "float32", "way": "ours"}
    row |= {"seconds": 0.002, "seconds_p5": 0.001, "seconds_p95": 0.004, "images_per_s": 4_000.0}
    skipped = {"classes": 4_000, "skipped": "the stage's time would not suffice"}
    found = {
        "facts": {"failed": None, "figures": [about, peaks]},
        "head": {"failed": None, "figures": [row | {"flops_share": 0.25}, skipped]},
        "step": {"failed": "not done after 3 s", "figures": []},
    }
    (tmp_path / "suite_cpu_2026-01-01.json").write_text("an older one, which does not count")
    (tmp_path / "suite_cpu_2026-01-02.json").write_text(json.dumps({"stages": found}))
    written = page.write_page(tmp_path).read_text()
    assert "## Z80, 2 cores\n" in written
    assert "Peaks: float32 2.00 TFLOP/s." in written
    assert "| 1,000 | 0.1 | 8 | float32 | ours | 2.00 | 1.00 | 4.00 | 4,000 | 25 % |" in written
    assert "- Z80, 2 cores, stage `step`: not done after 3 s.\n" in written
    assert "- Z80, 2 cores, `head`, 4,000: the stage's time would not suffice.\n" in written
    assert "- No GPU" in written
    assert (tmp_path / "charts/cpu_head.png").read_bytes().startswith(b"\x89PNG")


def shell(figures: Path, script: str, *, seconds: float = 100.0) -> Stage:
    """A stage that writes one row and then runs `script`."""
    row = """echo '{"n": 1}' >>"$0"\n"""
    return Stage(["sh", "-c", row + script, str(figures)], figures, seconds)


@pytest.mark.slow(seconds=6)
def test_a_stage_that_fails_hangs_or_dies_is_named_and_keeps_its_figures(
    tmp_path, monkeypatch, capsys
):
    scripts = {
        "facts": "true",
        "head": "echo no such kernel; exit 3",
        "step": "sleep 1000",
        "stream": "kill -9 $$",
        "short_run": "true",
    }

    def stage_of(name: str, options: Namespace, *, folder: Path, **_: float) -> Stage:
        seconds = 3.0 if name == "step" else 100.0
        return shell(folder / f"{name}.jsonl", scripts[name], seconds=seconds)

    monkeypatch.setattr(suite, "stage_of", stage_of)
    options = Namespace(stages=list(scripts), quick=True, device="cpu")
    assert suite.measure(options, ranks=1, folder=tmp_path) == 1
    (result,) = tmp_path.glob("suite_unknown_*.json")
    stages = json.loads(result.read_text())["stages"]
    assert {name: stage["failed"] for name, stage in stages.items()} == {
        "facts": None,
        "head": "exit status 3: no such kernel",
        "step": "not done after 3 s",
        "stream": "exit status -9: it printed nothing",
        "short_run": None,
    }
    assert all(stage["figures"] == [{"n": 1}] for stage in stages.values())
    assert "step FAILED: not done after 3 s" in capsys.readouterr().out


def test_memory_is_measured_with_one_arena_for_all_threads(tmp_path):
    options = Namespace(device="cpu", quick=True)
    for memory, arenas in ((True, "1"), (False, os.environ.get("MALLOC_ARENA_MAX", ""))):
        stage = suite.stage_of(
            "stream", options, ranks=1, folder=tmp_path, seconds=100.0, memory=memory
        )
        script = """echo "{\\"arenas\\": \\"$MALLOC_ARENA_MAX\\"}" >>"$0\""""
        seen = replace(stage, command=["sh", "-c", script, str(stage.figures)])
        assert run(seen, tmp_path / "log").figures == [{"arenas": arenas}]


def test_what_a_stage_started_ends_with_it(tmp_path):
    log = tmp_path / "log"
    assert run(shell(tmp_path / "figures", "sleep 1000 & echo $!"), log).failed is None
    state = Path(f"/proc/{log.read_text().strip()}/stat")

    def is_alive() -> bool:
        return state.exists() and " Z " not in state.read_text()

    wait_until(lambda: not is_alive(), seen=lambda: "the child sleeps on")


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    stage = shell(tmp_path / "figures", """printf '{"n": ' >>"$0\"""")
    assert run(stage, tmp_path / "log").figures == [{"n": 1}]
