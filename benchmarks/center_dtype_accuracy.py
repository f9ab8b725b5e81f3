"""What it costs in accuracy to keep centers and momentum in fewer bits:

    python benchmarks/center_dtype_accuracy.py ../shared/data/faces_lfw_dev --faces /tmp/faces

A small network learns 20,000 drawn identities, a tenth of their centers a step, and LFW's 370, all
of them, with each of the dtypes, three times; it is verified on people that it has not seen. A cell
takes a minute of one core. --cells 1 does the next one and ends; without --faces none is done. The
table is made of what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cells import Cell, do_missing, finished, is_of, shown
from benchmarks.harness import RESULTS, show
from benchmarks.kept_faces import Faces, drawn_faces, real_faces
from benchmarks.short_training import CENTERS_LR, configured, train
from training.config import HeadConfig

SEEDS = (0, 1, 2)
FLOAT32, BFLOAT16, FLOAT8 = "float32", "bfloat16", "float8_e4m3"
# What centers and momentum are kept in; None: there is no momentum. Then the rate is ten times as
# high, which is what a momentum of 0.9 adds up to.
WAYS = [
    (FLOAT32, FLOAT32),
    (BFLOAT16, BFLOAT16),
    (FLOAT8, BFLOAT16),
    (FLOAT32, None),
    (BFLOAT16, None),
    (FLOAT8, None),
]
SETS = {"lfw_dev": {"rate": 1.0, "epochs": 15}, "drawn": {"rate": 0.1, "epochs": 2}}
FIGURES = {"accuracy": "accuracy", "tar": "TAR@FAR=1%", "loss": "loss"}


def cells(faces: str) -> list[dict[str, Any]]:
    """Of one of the sets."""
    return [
        {"faces": faces, "centers": centers, "momentum": momentum, "seed": seed, **SETS[faces]}
        for seed in SEEDS
        for centers, momentum in WAYS
    ]


def measure(
    sets: Mapping[str, Faces],
    *,
    faces: str,
    centers: Any,
    momentum: Any,
    rate: float,
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """One cell."""
    head = HeadConfig(sample_rate=rate, centers_dtype=centers)
    if momentum is None:
        head = replace(head, momentum=0.0, lr=10 * CENTERS_LR)
    else:
        head = replace(head, momentum_dtype=momentum)
    return train(configured(head, seed=seed, epochs=epochs), sets[faces])


def report(lines: Sequence[Cell]) -> None:
    """Mean and standard deviation over the seeds, a table for each set."""
    for name, settings in SETS.items():
        rows = []
        for centers, momentum in WAYS:
            way = {"faces": name, "centers": centers, "momentum": momentum, **settings}
            alike = [line for line in lines if is_of(line, way)]
            if alike:
                figures = [shown(alike, one) for one in FIGURES]
                rows.append((centers, momentum or "none", str(len(alike)), *figures))
        show(("centers", "momentum", "seeds", *FIGURES.values()), rows, title=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("real", type=Path, help="a folder with train.rec and one .bin of pairs")
    parser.add_argument("--faces", type=Path, help="a folder for the decoded faces, 1.4 GB")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--cells", type=int, help="do at most so many of those that are missing")
    parser.add_argument("--results", type=Path, default=RESULTS / "center_dtype_accuracy_cpu.jsonl")
    arguments = parser.parse_args()
    if arguments.faces:
        sets = {"lfw_dev": real_faces(arguments.real, arguments.faces)}
        if "drawn" in arguments.sets:
            sets["drawn"] = drawn_faces(arguments.faces)
        wanted = [cell for name in arguments.sets for cell in cells(name)]
        one = partial(measure, sets)
        for line in do_missing(one, wanted, arguments.results, at_most=arguments.cells):
            print(json.dumps(line), flush=True)
    report(finished(arguments.results))


if __name__ == "__main__":
    main()
