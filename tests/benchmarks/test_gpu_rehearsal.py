"""The benchmark for GPUs, rehearsed: it must work on the day when there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.processes import Stage, run
from tests.clock import wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_stage_has_figures_on_a_cpu(tmp_path):
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (result,) = tmp_path.glob("gpu_cpu_*.json")
    stages = json.loads(result.read_text())["stages"]
    assert stages.keys() == gpu.LIMITS.keys()
    rows = {name: outcome["figures"] for name, outcome in stages.items()}
    assert not [row for all_rows in rows.values() for row in all_rows if "failed" in row]
    assert rows["facts"][0]["device"] == "cpu"
    assert rows["tests"]
    assert all(row["outcome"] in ("passed", "skipped") for row in rows["tests"])
    for stage in ("head", "step"):
        assert all(row["seconds"] > 0 and row["of_roof"] > 0 for row in rows[stage])
        assert all(("times_as_fast" in row) == (row["way"] != gpu.BASELINE) for row in rows[stage])
    for stage in ("loader", "short_run"):
        assert all(row["images_per_s"] > 0 or "skipped" in row for row in rows[stage])


def test_eight_minutes_are_enough_for_all_stages():
    assert sum(gpu.LIMITS.values()) <= 8 * 60


def shell(figures: Path, script: str, *, seconds: float = 100.0) -> Stage:
    """A stage that writes one row and then runs `script`."""
    row = """echo '{"n": 1}' >>"$0"\n"""
    return Stage(["sh", "-c", row + script, str(figures)], figures, seconds)


@pytest.mark.slow
def test_a_stage_that_fails_hangs_or_dies_is_named_and_keeps_its_figures(
    tmp_path, monkeypatch, capsys
):
    scripts = {
        "facts": "true",
        "head": "echo no such kernel; exit 3",
        "step": "sleep 1000",
        "loader": "kill -9 $$",
        "short_run": "true",
    }

    def stage_of(name: str, options: Namespace, *, ranks: int, folder: Path) -> Stage:
        seconds = 3.0 if name == "step" else 100.0
        return shell(folder / f"{name}.jsonl", scripts[name], seconds=seconds)

    monkeypatch.setattr(gpu, "stage_of", stage_of)
    options = Namespace(stages=list(scripts), quick=True, device="cpu")
    assert gpu.measure(options, ranks=1, folder=tmp_path) == 1
    (result,) = tmp_path.glob("gpu_unknown_*.json")
    stages = json.loads(result.read_text())["stages"]
    assert {name: stage["failed"] for name, stage in stages.items()} == {
        "facts": None,
        "head": "exit status 3: no such kernel",
        "step": "not done after 3 s",
        "loader": "exit status -9: it printed nothing",
        "short_run": None,
    }
    assert all(stage["figures"] == [{"n": 1}] for stage in stages.values())
    assert "step FAILED: not done after 3 s" in capsys.readouterr().out


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
