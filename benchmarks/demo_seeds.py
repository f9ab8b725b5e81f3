"""What the demo's loss and accuracy are by epoch, from three seeds:

    python benchmarks/demo_seeds.py -o runs/demo_seeds

Each is a training of configs/demo.py as `make demo` does it, on one rank and verified after every
epoch: two minutes of two cores, a line of --results. training/health/expected.json has what follows
from them, which --expected prints.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import Cell, do_missing, finished
from benchmarks.harness import RESULTS, run_ours
from training.health.course import Course
from training.reporting.journal import read_lines

SEEDS, EPOCHS = (0, 1, 2), 5
FILE = RESULTS / "demo_seeds_cpu.jsonl"


def measure(output: Path, *, seed: int) -> dict[str, Any]:
    """One seed."""
    data, run = output / "demo_data", output / f"demo_{seed}"
    if not (data / "train.rec").exists():
        run_ours("tools/make_synthetic.py", data, "--size", "64")
    run_ours(
        *("train_dist.py", "configs/demo.py", f"data.train={data}", f"run.output={run}"),
        *(f"eval.sets=[{data / 'val.bin'}]", "eval.every=1", f"run.seed={seed}"),
    )
    course = Course.of(read_lines(run / "metrics.jsonl"))
    return {
        "losses": [round(course.loss_at(epoch), 4) for epoch in range(1, EPOCHS + 1)],
        "accuracies": [round(course.score_at("val", epoch), 4) for epoch in range(1, EPOCHS + 1)],
    }


def points(lines: Sequence[Cell]) -> list[dict[str, Any]]:
    """By epoch what to expect: from the lowest of the seeds to the highest, and as much again on
    either side."""
    return [
        {
            "epoch": float(epoch),
            "loss": _span([line["losses"][epoch - 1] for line in lines]),
            "scores": {"val": _span([line["accuracies"][epoch - 1] for line in lines], most=1.0)},
        }
        for epoch in range(1, EPOCHS + 1)
    ]


def _span(found: Sequence[float], most: float = float("inf")) -> list[float]:
    low, high = min(found), max(found)
    return [round(low - (high - low), 4), min(most, round(high + (high - low), 4))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("-o", "--output", type=Path, help="for faces and runs")
    parser.add_argument("--cells", type=int, help="do at most so many of those that are missing")
    parser.add_argument("--expected", action="store_true", help="print what is to be expected")
    arguments = parser.parse_args()
    if arguments.output:
        wanted = [{"seed": seed} for seed in SEEDS]
        one = partial(measure, arguments.output)
        for line in do_missing(one, wanted, FILE, at_most=arguments.cells):
            print(json.dumps(line), flush=True)
    if arguments.expected:
        print(*map(json.dumps, points(finished(FILE))), sep=",\n")


if __name__ == "__main__":
    main()
