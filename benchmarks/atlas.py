"""Which loss, at which sample rate: docs/atlas.md, its picture, and the trainings behind them.

    python benchmarks/atlas.py --faces runs/atlas

A small network learns 2,000 drawn identities with each loss at each rate, three times, and is
verified on people that it has not seen. A cell takes half a minute of one core. --cells 1 does the
next one and ends; without --faces none is done. Page and picture are made of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.atlas_page import PAGE, PICTURE, draw, page
from benchmarks.cells import do_missing, finished
from benchmarks.harness import RESULTS
from benchmarks.kept_faces import Drawn, Faces, drawn_faces
from benchmarks.short_training import configured, train
from pipeline.whole_file import write_whole
from training.config import HeadConfig

FACES = Drawn("atlas", identities=2_000, images=10, pairs=6_000)
RATES, SEEDS, EPOCHS = (1.0, 0.3, 0.1), (0, 1, 2), 5
SCALE = 32.0
CENTERS_LR = 0.4  # as the network's: each center is that of ten images
# Margins are some 0.6 of the published ones, and MagFace's norms half as large: an embedding has
# 128 values here instead of 512, so that BatchNorm leaves it half as long.
LOSSES: dict[str, dict[str, float]] = {
    "arcface": {"margin": 0.3},
    "cosface": {"margin": 0.25},
    "adaface": {"margin": 0.25, "h": 0.333},
    "magface": {"l_a": 5.0, "u_a": 55.0, "l_margin": 0.25, "u_margin": 0.45, "lambda_g": 9.0},
    "curricularface": {"margin": 0.3},
}


def cells(losses: Sequence[str] = (*LOSSES,), rates: Sequence[float] = RATES) -> list[dict]:
    """Of some of them, every seed once before any comes again."""
    return [
        {"margin": loss, "margin_args": LOSSES[loss] | {"scale": SCALE}, "rate": rate}
        | {"seed": seed, "epochs": EPOCHS}
        for seed in SEEDS
        for rate in rates
        for loss in losses
    ]


def measure(
    faces: Faces,
    *,
    margin: str,
    margin_args: dict[str, float],
    rate: float,
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """One cell."""
    head = HeadConfig(loss=margin, loss_args=margin_args, sample_rate=rate, lr=CENTERS_LR)
    journal: list[dict[str, Any]] = []
    found = train(configured(head, seed=seed, epochs=epochs), faces, journal=journal)
    losses = [line["loss"] for line in journal if "loss" in line]
    verified = [line["verification"]["pairs"] for line in journal if "verification" in line]
    curves = {
        "losses": [round(float(part.mean()), 4) for part in np.split(np.array(losses), epochs)],
        "accuracies": [scores["accuracy"] for scores in verified[1:]],
    }
    return found | curves | {"data": faces.digest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--faces", type=Path, help="a folder for the drawn faces, 0.4 GB")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    parser.add_argument("--rates", nargs="+", type=float, choices=RATES, default=[*RATES])
    parser.add_argument("--cells", type=int, help="do at most so many of those that are missing")
    parser.add_argument("--results", type=Path, default=RESULTS / "atlas_cpu.jsonl")
    arguments = parser.parse_args()
    if arguments.faces:
        one = partial(measure, drawn_faces(arguments.faces, FACES))
        wanted = cells(arguments.losses, arguments.rates)
        for line in do_missing(one, wanted, arguments.results, at_most=arguments.cells):
            print(json.dumps(line), flush=True)
    lines = finished(arguments.results)
    if lines:
        draw(lines, cells(), PICTURE)
    write_whole(PAGE, page(lines, cells(), FACES))


if __name__ == "__main__":
    main()
