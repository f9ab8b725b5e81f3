"""A whole step on one rank and on several.

On GPUs with one rank, and one on each of them. On a CPU with one rank that has all cores, and with
two that share them: they show what ranks cost, not what they gain.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.loader import draw_set
from benchmarks.suite.figures import Figures, options_of, run_stage
from benchmarks.suite.measure import Effort, Row
from benchmarks.suite.processes import launcher
from benchmarks.suite.step import CLASSES, FEW_CLASSES, REAL, Case
from pipeline.ahead import cores

ON_CPU, ON_GPU, TOY = ("iresnet18", 32), ("iresnet50", 256), ("iresnet10", 2)
WAYS = ("ours", REAL)
_WITHIN = "FACESTREAM_SUITE_RANKS"  # set in the processes that are measured


def main() -> None:
    if _WITHIN in os.environ:
        run_stage(ranks)
    options = options_of()
    for count in sorted({1, 2 if options.device == "cpu" else options.ranks}):
        threads = {"OMP_NUM_THREADS": str(max(1, cores() // count))}
        subprocess.run(
            [*launcher(count), "-m", "benchmarks.suite.ranks", *sys.argv[1:]],
            check=True,
            env=os.environ | threads | {_WITHIN: str(count)},
        )


def ranks(figures: Figures) -> None:
    world = figures.world
    on_cpu = world.device.type == "cpu"
    model, batch = TOY if figures.quick else ON_CPU if on_cpu else ON_GPU
    if on_cpu and not figures.quick:
        batch //= world.world_size  # the cores stay, so the work does
    classes = FEW_CLASSES if figures.quick else CLASSES
    effort = Effort(seconds=15.0) if on_cpu else Effort(seconds=5.0, steps=5, warm_up=15)
    with tempfile.TemporaryDirectory() as folder:
        drawn, records = (8, 80) if figures.quick else (500, 20_000)
        rec = draw_set(Path(folder), drawn=drawn, records=records)
        case = Case(model, batch, classes, rec, world)
        makers = {way: partial(case.make, way) for way in WAYS}
        more = partial(_without_flops, case)  # peaks are those of a machine, or of one of its cards
        figures.compare(makers, effort, more=more, model=model, batch=batch, ranks=world.world_size)


def _without_flops(case: Case, way: str, found: Row) -> Row:
    costs = case.costs(way, found)
    del costs["flops"]
    return costs


if __name__ == "__main__":
    main()
