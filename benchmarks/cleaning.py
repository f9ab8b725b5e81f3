"""What cleaning is worth, on real faces of which a tenth have a wrong label:

    python benchmarks/cleaning.py ../shared/data/faces_lfw_dev -o runs/cleaning

A tenth of the images swap their labels. configs/lfw_dev.py is trained on that; tools/clean.py, with
the model that has learned from these very labels, says what to leave out, and the same is trained
without it; and, to compare, without what was swapped. What is there already of an interrupted call
is kept. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, run_ours, save, show
from evaluation.result import read_evaluation
from pipeline.record_filter import read_filter
from pipeline.records.index import RecordIndex, open_index
from pipeline.records.write_set import write_set

SHARE, SEED = 0.1, 7
FIGURES = ("accuracy", "auc", "tar@far=0.01", "eer")


def swap_labels(labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """(N,) labels of which `share` are those of others among them, each of another identity.

    How many images an identity has stays as it is.
    """
    random = np.random.default_rng(seed)
    chosen = random.choice(len(labels), round(share * len(labels)), replace=False)
    chosen = chosen[np.argsort(labels[chosen], kind="stable")]
    # Sorted by identity and turned by as many as the largest has: nobody meets his own.
    turn = int(np.bincount(labels[chosen]).max())
    assert 2 * turn <= len(chosen)
    swapped = labels.copy()
    swapped[chosen] = labels[np.roll(chosen, turn)]
    return swapped


def write_noisy(index: RecordIndex, folder: Path) -> np.ndarray:
    """Pack the images under swapped labels; returns (N,) their own ones, in the new order."""
    labels = index.labels(np.arange(len(index)))
    swapped = swap_labels(labels, share=SHARE, seed=SEED)
    order = np.argsort(swapped, kind="stable")
    if not (folder / "train.rec").exists():
        write_set(folder, _by_identity(index, swapped, order))
    return labels[order]


def _by_identity(
    index: RecordIndex, swapped: np.ndarray, order: np.ndarray
) -> list[Sequence[tuple[float, bytes]]]:
    groups = np.split(order, np.flatnonzero(np.diff(swapped[order])) + 1)
    return [
        [(float(label), bytes(index.image(i))) for i in group] for label, group in enumerate(groups)
    ]


def train(output: Path, *, data: Path, tests: Path, epochs: int, leave_out: Path | None) -> None:
    """One process on one core, as other work may go on beside it."""
    overrides = [
        *(f"data.train={data}", f"run.output={output}", f"eval.sets=[{tests}]", "data.threads=1"),
        *(f"run.epochs={epochs}", f"run.save_every={epochs}", f"eval.every={epochs}"),
        *([f"data.leave_out={leave_out}"] if leave_out else []),
    ]
    run_ours("train_dist.py", "configs/lfw_dev.py", *overrides, OMP_NUM_THREADS="1")


def judge(found: Path, data: Path, wrong: np.ndarray) -> dict[str, Any]:
    """How many of those that are left out are wrong, and of the wrong ones left out."""
    index = open_index(data)
    (kept,) = read_filter(found / "leave_out.txt", [index])
    out = np.setdiff1d(np.arange(len(index)), kept)
    hits = int(wrong[out].sum())
    return {
        "images": len(index),
        "wrong": int(wrong.sum()),
        "left_out": len(out),
        "precision": hits / len(out),
        "recall": hits / int(wrong.sum()),
    }


def figures(results: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of each run its figures with their intervals, and how the runs compare."""
    evaluation = read_evaluation(results)
    by_run = {
        result.model: {
            name: vars(result.figures[name]) for name in FIGURES if name in result.figures
        }
        for result in evaluation.results
    }
    compared = [vars(one) | {"difference": vars(one.difference)} for one in evaluation.comparisons]
    return by_run, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("faces", type=Path, help="a folder with train.rec and lfw_dev_val.bin")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for runs and their data")
    parser.add_argument("--epochs", type=int, default=14)
    arguments = parser.parse_args()
    output, tests = arguments.output.resolve(), (arguments.faces / "lfw_dev_val.bin").resolve()
    noisy, found, truth = output / "noisy", output / "found", output / "truth.txt"
    right = write_noisy(open_index(arguments.faces), noisy)
    index = open_index(noisy)
    wrong = right != index.labels(np.arange(len(index)))
    truth.write_text("".join(f"record {at}\n" for at in index.records["offset"][wrong]))
    runs = {"noisy": None, "cleaned": found / "leave_out.txt", "truth": truth}
    for name, leave_out in runs.items():
        run = output / "runs" / name
        train(run, data=noisy, tests=tests, epochs=arguments.epochs, leave_out=leave_out)
        if name == "noisy" and not (found / "leave_out.txt").exists():
            run_ours("tools/clean.py", noisy, "--model", run, "-o", found)
    models = [output / "runs" / name for name in runs]
    run_ours(
        "tools/evaluate.py", *models, "--sets", tests, "-o", output / "results", "--no-pictures"
    )
    cleaning = judge(found, noisy, wrong)
    by_run, compared = figures(output / "results" / "results.json")
    show(("cleaning", ""), [(name, f"{value:.4g}") for name, value in cleaning.items()])
    about = about_cpu() | {"epochs": arguments.epochs, "share_swapped": SHARE, "seed": SEED}
    save("cleaning", about, cleaning=cleaning, runs=by_run, comparisons=compared)


if __name__ == "__main__":
    main()
