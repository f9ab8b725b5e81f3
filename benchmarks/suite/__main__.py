"""What this machine can do, stage by stage, in a quarter of an hour:

    python -m benchmarks.suite [STAGE ...] --device cpu      # make bench, on two cores
    python -m benchmarks.suite [STAGE ...]                   # make bench-gpu, in eight minutes
    python -m benchmarks.suite --device cpu --quick          # a rehearsal, on any machine

Every stage is a process with a time limit of its own; on several GPUs torchrun starts it on all of
them. On a CPU a second process measures memory, in the time that the first has left. A stage that
fails or hangs is named with its reason, the others go on, and the exit status is 1. Figures stand
beside the machine's own peaks (facts) and arcface_torch's head and step. They go to
benchmarks/results/, a rehearsal's to runs/rehearsal/, and what the stages print beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.suite.page import write_page
from benchmarks.suite.processes import ROOT, Outcome, Stage, launcher, run
from benchmarks.suite.shares import beside_others

# Seconds of each, in order: a quarter of an hour, and eight minutes.
ON_CPU = {"facts": 40, "stream": 150, "head": 250, "backbone": 260, "step": 110, "ranks": 90}
ON_GPU = {
    **{"facts": 30, "tests": 100, "stream": 50, "head": 70},
    **{"backbone": 60, "step": 90, "ranks": 25, "short_run": 55},
}
PATIENCE = 10  # times as long for a rehearsal, on whatever machine
ALONE = ("tests", "ranks", "short_run")  # they start ranks themselves, or need none
WITH_MEMORY = ("stream", "head", "backbone", "step", "ranks")
# By default threads have arenas of their own, whose free end glibc keeps: the next way would find
# room there, and take less than it does alone.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
NOT_SHOWN = ("turn", "flops", "bytes", "seconds_p5", "seconds_p95", "warm_up_s", "rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(ON_GPU)}: all")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: sizes that take no time")
    parser.add_argument("--ranks", type=int, help="processes, by default one for each GPU")
    parser.add_argument("--out", type=Path, help="the folder for the results")
    options = parser.parse_args()
    unknown = set(options.stages) - set(ON_GPU)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}: expected some of {', '.join(ON_GPU)}")
    there = 1 if options.device == "cpu" else torch.accelerator.device_count()
    if there == 0:
        parser.error("there is no GPU here: measure the CPU with --device cpu")
    default = ROOT / ("runs/rehearsal" if options.quick else "benchmarks/results")
    ranks = options.ranks or there
    sys.exit(measure(options, ranks=ranks, folder=(options.out or default).resolve()))


def measure(options: argparse.Namespace, *, ranks: int, folder: Path) -> int:
    """Run the stages, print and save what they found; returns the exit status."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    logs = folder / "suite_logs"
    logs.mkdir(parents=True, exist_ok=True)
    # A rehearsal is of all that any machine will do.
    limits = ON_CPU if options.device == "cpu" and not options.quick else ON_GPU
    outcomes: dict[str, Outcome] = {}
    for name in options.stages or limits:
        seconds = limits.get(name, ON_GPU[name]) * (PATIENCE if options.quick else 1)
        stage = stage_of(name, options, ranks=ranks, folder=logs, seconds=seconds)
        console.print(f"{name}: at most {stage.seconds:g} s", style="dim")
        outcome = run(stage, logs / f"{name}.log")
        left = stage.seconds - outcome.seconds
        if options.device == "cpu" and name in WITH_MEMORY and left > 0:
            of_memory = stage_of(name, options, ranks=ranks, folder=logs, seconds=left, memory=True)
            outcome = with_memory(outcome, run(of_memory, logs / f"{name}_memory.log"))
        outcomes[name] = outcome
        peaks = outcomes["facts"].figures if "facts" in outcomes else []
        beside_others(outcome.figures, peaks=peaks)
        console.print(table_of(name, outcome))
        if outcome.failed:
            console.print(f"{name} FAILED: {outcome.failed}; see {logs / name}*.log", style="bold")
    path = folder / f"suite_{machine_of(outcomes)}_{date.today().isoformat()}.json"
    stages = {name: asdict(outcome) for name, outcome in outcomes.items()}
    path.write_text(json.dumps({"quick": options.quick, "stages": stages}, indent=1) + "\n")
    console.print(f"wrote {path}")
    if not options.stages:
        console.print(f"wrote {write_page(folder)}")
    return int(any(outcome.failed for outcome in outcomes.values()))


def stage_of(
    name: str,
    options: argparse.Namespace,
    *,
    ranks: int,
    folder: Path,
    seconds: float,
    memory: bool = False,
) -> Stage:
    """The process of a stage, its figures a file in `folder`.

    Args:
        memory: whether it measures memory, instead of time.
    """
    figures = folder / f"{name}{'_memory' * memory}.jsonl"
    arguments = [f"--figures={figures}", f"--seconds={seconds}", f"--ranks={ranks}"]
    arguments += [f"--device={options.device}", *(["--quick"] if options.quick else [])]
    arguments += ["--memory"] * memory
    start = launcher(1 if name in ALONE else ranks)
    command = [*start, "-m", f"benchmarks.suite.{name}", *arguments]
    return Stage(command, figures, seconds, ONE_ARENA if memory else {})


def with_memory(timed: Outcome, memory: Outcome) -> Outcome:
    """A stage's times, each row with the memory that the same way took in another process; a row
    for what that one alone has skipped."""
    known = {_way(row): row["peak_mb"] for row in memory.figures if "peak_mb" in row}
    figures = [
        row | {"peak_mb": known[_way(row)]} if _way(row) in known else row for row in timed.figures
    ]
    skipped = [row for row in memory.figures if "skipped" in row and row not in timed.figures]
    figures += [row | {"skipped": f"its memory: {row['skipped']}"} for row in skipped]
    failed = timed.failed or (f"its memory: {memory.failed}" if memory.failed else None)
    seconds = timed.seconds + memory.seconds
    return replace(timed, seconds=seconds, failed=failed, figures=figures)


def table_of(name: str, outcome: Outcome) -> Table:
    """The rows of a stage, with a column for every key that one of them has."""
    table = Table(title=f"{name}: {outcome.seconds:.0f} of {outcome.limit:g} s", title_style="bold")
    rows = [row for row in outcome.figures if "device" not in row]  # which describes the machine
    keys = dict.fromkeys(key for row in rows for key in row if key not in NOT_SHOWN)
    for key in keys:
        table.add_column("ms" if key == "seconds" else key.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_shown(key, row[key]) if key in row else "" for key in keys))
    return table


def machine_of(outcomes: dict[str, Outcome]) -> str:
    """The cards, or the CPU, as a part of a file's name."""
    rows = outcomes["facts"].figures if "facts" in outcomes else []
    unknown: dict[str, Any] = {"device": "unknown", "ranks": 1}
    about = next((row for row in rows if "device" in row), unknown)
    name = re.sub("[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    return name if about["ranks"] == 1 else f"{about['ranks']}x-{name}"


def _way(row: dict[str, Any]) -> tuple[Any, ...]:
    """Which way of which case a row is of, within its stage."""
    return tuple(row.get(key) for key in ("ranks", "turn", "way"))


def _shown(key: str, value: Any) -> str:
    if isinstance(value, float):
        value *= 1e3 if key == "seconds" else 1
        return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
    return str(value)


if __name__ == "__main__":
    main()
