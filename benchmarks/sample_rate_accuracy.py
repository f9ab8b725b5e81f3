"""What sampling costs in accuracy, with and without neighbors among the negatives:

    python benchmarks/sample_rate_accuracy.py --faces /tmp/faces

A small network learns 20,000 drawn identities at each rate, three times, and is verified on people
that it has not seen. A cell takes a minute of one core. --cells 1 does the next one and ends;
without --faces none is done. The table and docs/sample_rate.svg are made of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import ROOT, Cell, do_missing, finished, is_of, mean_and_deviation, shown
from benchmarks.harness import RESULTS, show
from benchmarks.kept_faces import Faces, drawn_faces
from benchmarks.short_training import configured, train
from training.config import HeadConfig

RATES, SEEDS, EPOCHS = (1.0, 0.3, 0.1, 0.03, 0.01), (0, 1, 2), 2
# Of the head: half of a step's negatives are near its classes, as found every 150 of 1,250 steps.
NEIGHBORS: tuple[dict[str, Any], ...] = (
    {"hard_negatives": 0.0},
    {"hard_negatives": 0.5, "neighbors_every": 150},
)
FIGURES = {"accuracy": "accuracy", "tar": "TAR@FAR=1%", "loss": "loss"}  # the latter of all classes
PICTURE = ROOT / "docs" / "sample_rate.svg"


def cells() -> list[dict[str, Any]]:
    """At a rate of 1 there is nothing to choose, so no neighbors either."""
    return [
        {"rate": rate, "seed": seed, "epochs": EPOCHS, **neighbors}
        for neighbors in NEIGHBORS
        for seed in SEEDS
        for rate in RATES
        if not (neighbors["hard_negatives"] and rate == 1)
    ]


def measure(
    faces: Faces, *, rate: float, seed: int, epochs: int, **neighbors: Any
) -> dict[str, Any]:
    """One cell."""
    head = HeadConfig(sample_rate=rate, **neighbors)
    return train(configured(head, seed=seed, epochs=epochs), faces)


def report(lines: Sequence[Cell]) -> None:
    """Mean and standard deviation over the seeds."""
    columns = ("sample rate", "neighbors", "seeds", *FIGURES.values())
    rows = [
        (
            f"{rate:g}",
            f"{neighbors['hard_negatives']:g}",
            str(len(alike)),
            *(shown(alike, one) for one in FIGURES),
        )
        for rate in RATES
        for neighbors in NEIGHBORS
        if (alike := _alike(lines, rate, neighbors))
    ]
    show(columns, rows, title="20,000 identities")


def draw(lines: Sequence[Cell], path: Path) -> None:
    """Accuracy against rate, with bars of one standard deviation over the seeds."""
    # The same file for the same figures, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": "facestream", "svg.fonttype": "none"})
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for neighbors, color in zip(NEIGHBORS, ("#1f5fae", "#c2491d")):
        measured = {rate: alike for rate in RATES if (alike := _alike(lines, rate, neighbors))}
        found = [mean_and_deviation(alike, "accuracy") for alike in measured.values()]
        means, deviations = [mean for mean, _ in found], [deviation for _, deviation in found]
        name = f"head.hard_negatives={neighbors['hard_negatives']:g}"
        axes.errorbar(
            [*measured], means, deviations, color=color, capsize=3, marker="o", label=name
        )
    axes.set_xscale("log")
    axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes.minorticks_off()
    axes.set_xlabel("head.sample_rate, of 20,000 identities")
    axes.set_ylabel("accuracy on pairs of others")
    axes.grid(color="#ebe8e2")
    axes.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _alike(lines: Sequence[Cell], rate: float, neighbors: Cell) -> list[Cell]:
    return [line for line in lines if is_of(line, {"rate": rate, "epochs": EPOCHS, **neighbors})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--faces", type=Path, help="a folder for the drawn faces, 1.5 GB")
    parser.add_argument("--cells", type=int, help="do at most so many of those that are missing")
    parser.add_argument("--results", type=Path, default=RESULTS / "sample_rate_accuracy_cpu.jsonl")
    arguments = parser.parse_args()
    if arguments.faces:
        one = partial(measure, drawn_faces(arguments.faces))
        done = do_missing(one, cells(), arguments.results, at_most=arguments.cells)
        for line in done:
            print(json.dumps(line), flush=True)
    lines = finished(arguments.results)
    report(lines)
    if lines:
        draw(lines, PICTURE)


if __name__ == "__main__":
    main()
