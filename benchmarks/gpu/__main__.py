"""What a machine with GPUs can do, in at most eight minutes:

    python -m benchmarks.gpu [STAGE ...]                # make bench-gpu
    python -m benchmarks.gpu --device cpu --quick       # a rehearsal, on any machine

Every stage is a process with a time limit of its own; on several GPUs torchrun starts it on all of
them. A stage that fails or hangs is named with its reason, the others go on, and the exit status is
1. Figures stand beside the card's roofs (facts) and arcface_torch's head and step. They go to
benchmarks/results/, a rehearsal's to runs/rehearsal/, and what the stages print beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.processes import ROOT, Outcome, Stage, launcher, run

# Seconds of each, in order: together eight minutes.
LIMITS = {"facts": 30, "tests": 120, "head": 75, "step": 150, "loader": 40, "short_run": 65}
PATIENCE = 10  # times as long for a rehearsal, on whatever machine
ALONE = ("tests", "short_run")  # they start ranks themselves, or need none
BASELINE = "arcface_torch"
NOT_SHOWN = ("seconds_p5", "seconds_p95", "flops", "bytes")  # in the file only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(LIMITS)}: all")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: sizes that take no time")
    parser.add_argument("--ranks", type=int, help="processes, by default one for each GPU")
    parser.add_argument("--out", type=Path, help="the folder for the results")
    options = parser.parse_args()
    unknown = set(options.stages) - set(LIMITS)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}: expected some of {', '.join(LIMITS)}")
    there = 1 if options.device == "cpu" else torch.accelerator.device_count()
    if there == 0:
        parser.error("there is no GPU here: rehearse with --device cpu --quick")
    default = ROOT / ("runs/rehearsal" if options.quick else "benchmarks/results")
    ranks = options.ranks or there
    sys.exit(measure(options, ranks=ranks, folder=(options.out or default).resolve()))


def measure(options: argparse.Namespace, *, ranks: int, folder: Path) -> int:
    """Run the stages, print and save what they found; returns the exit status."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    logs = folder / "gpu_logs"
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    for name in options.stages or LIMITS:
        stage = stage_of(name, options, ranks=ranks, folder=logs)
        console.print(f"{name}: at most {stage.seconds:g} s", style="dim")
        outcome = outcomes[name] = run(stage, logs / f"{name}.log")
        beside_others(
            outcome.figures, roofs=outcomes["facts"].figures if "facts" in outcomes else []
        )
        console.print(table_of(name, outcome))
        if outcome.failed:
            console.print(f"{name} FAILED: {outcome.failed}; see {logs / name}.log", style="bold")
    path = folder / f"gpu_{card_of(outcomes)}_{date.today().isoformat()}.json"
    stages = {name: asdict(outcome) for name, outcome in outcomes.items()}
    path.write_text(json.dumps({"quick": options.quick, "stages": stages}, indent=1) + "\n")
    console.print(f"wrote {path}")
    return int(any(outcome.failed for outcome in outcomes.values()))


def stage_of(name: str, options: argparse.Namespace, *, ranks: int, folder: Path) -> Stage:
    """The process of a stage, its figures a file in `folder`."""
    seconds = LIMITS[name] * (PATIENCE if options.quick else 1)
    figures = folder / f"{name}.jsonl"
    arguments = [f"--figures={figures}", f"--seconds={seconds}", f"--ranks={ranks}"]
    arguments += [f"--device={options.device}", *(["--quick"] if options.quick else [])]
    start = launcher(1 if name in ALONE else ranks)
    return Stage([*start, "-m", f"benchmarks.gpu.{name}", *arguments], figures, seconds)


def beside_others(figures: list[dict[str, Any]], *, roofs: list[dict[str, Any]]) -> None:
    """Add to each row how it stands to the roofs, and how many times as fast as the baseline.

    `of_roof` is the least time that the card could take, for arithmetic or for memory, over the
    time.
    """
    limits = {key: value for row in roofs for key, value in row.items() if "_per_s" in key}
    baselines: dict[tuple, float] = {}
    for row in figures:
        if "seconds" not in row or "way" not in row:
            continue
        if "flops_per_s" in limits and "bytes_per_s" in limits:
            least = row["flops"] / limits["flops_per_s"]
            least = max(least, row.get("bytes", 0) / limits["bytes_per_s"])
            row["of_roof"] = least / row["seconds"]
        case = tuple(row.get(key) for key in ("classes", "rate", "model", "batch"))
        if row["way"] == BASELINE:
            baselines[case] = row["seconds"]
        elif case in baselines:
            row["times_as_fast"] = baselines[case] / row["seconds"]


def table_of(name: str, outcome: Outcome) -> Table:
    """All rows of a stage, with a column for every key that one of them has."""
    table = Table(title=f"{name}: {outcome.seconds:.0f} of {outcome.limit:g} s", title_style="bold")
    keys = dict.fromkeys(key for row in outcome.figures for key in row if key not in NOT_SHOWN)
    for key in keys:
        table.add_column("ms" if key == "seconds" else key.replace("_", " "), overflow="fold")
    for row in outcome.figures:
        table.add_row(*(_shown(key, row[key]) if key in row else "" for key in keys))
    return table


def card_of(outcomes: dict[str, Outcome]) -> str:
    """The cards, as a part of a file's name."""
    rows = outcomes["facts"].figures if "facts" in outcomes else []
    unknown: dict[str, Any] = {"device": "unknown", "ranks": 1}
    about = next((row for row in rows if "device" in row), unknown)
    name = re.sub("[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    return name if about["ranks"] == 1 else f"{about['ranks']}x-{name}"


def _shown(key: str, value: Any) -> str:
    if isinstance(value, float):
        value *= 1e3 if key == "seconds" else 1
        return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
    return str(value)


if __name__ == "__main__":
    main()
