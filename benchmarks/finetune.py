"""What fine-tuning is worth, on real faces:

    python benchmarks/finetune.py ../shared/data/faces_lfw_dev -o runs/finetune

A small network is trained on 300 people of LFW at 64 pixels and exported as ONNX, and that is all
that is left of it. The other 70 people are what there is for tuning. Compared on pairs of people
that none has seen: the network as it was, one trained from scratch on the 70, one tuned as the
first was trained, and those of configs/finetune.py. Each seed draws other people, and trains its
own first network. Each training that is finished is a line of --results: an interrupted call goes
on, and one that has them all shows them.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import RESULTS, about_cpu, run_ours, show
from evaluation.pair_set import read_bin, write_bin
from pipeline.whole_file import write_whole

SIZE, PEOPLE, NEW, SEEDS = 64, 370, 70, (0, 1, 2)
FIGURES = ("accuracy", "auc")
FIRST_EPOCHS, TUNED_EPOCHS = 14, 8
_STEPS = 8  # of an epoch of the 70's images
AS_TRAINED = "configs/lfw_dev.py"
# By the settings of configs/lfw_dev.py, for a network of this size and its head.
SMALL = (
    *("model.name=iresnet10", "model.width=0.5", "model.embedding_dim=256", "model.dropout=0.4"),
    *("head.loss=cosface", "head.loss_args={margin: 0.25, scale: 32}", "data.global_batch=64"),
    "data.augment=[flip,geometry,light]",
)
# Ways to a network for the 70: a configuration, whether it starts from the first network, settings.
WAYS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "from scratch": (AS_TRAINED, False, ("run.epochs=30",)),
    "tuned as it was trained": (AS_TRAINED, True, (f"run.epochs={TUNED_EPOCHS}",)),
    "configs/finetune.py": ("configs/finetune.py", True, SMALL),
    "with model.lora_rank=8": (
        "configs/finetune.py",
        True,
        (*SMALL, "model.lora_rank=8", "optim.lr=0.1"),
    ),
}


def prepare(faces: Path, output: Path) -> None:
    """The faces at 64 pixels, and for each seed who is left out of which training."""
    if not (output / "faces64" / "train.rec").exists():
        run_ours("tools/pack_rec.py", faces, output / "faces64", "--resize", str(SIZE))
    if not (output / "val64.bin").exists():
        pairs = read_bin(faces / "lfw_dev_val.bin")
        write_bin(output / "val64.bin", [_resized(image) for image in pairs.images], pairs.same)
    for seed in SEEDS:
        new = np.sort(np.random.default_rng(seed).permutation(PEOPLE)[:NEW])
        for name, people in (("new", new), ("old", np.setdiff1d(np.arange(PEOPLE), new))):
            lines = "".join(f"identity {label}\n" for label in people)
            write_whole(output / f"{name}_{seed}.txt", lines.encode())


def first_network(output: Path, seed: int) -> Path:
    """The network that is to be tuned, as others would get it."""
    onnx = output / f"base_{seed}.onnx"
    if not onnx.exists():
        run = output / f"base_{seed}"
        epochs = (f"run.epochs={FIRST_EPOCHS}", f"run.save_every={FIRST_EPOCHS}", "eval.every=7")
        train(AS_TRAINED, run, output, seed=seed, leave_out="new", settings=epochs)
        run_ours("tools/export_onnx.py", run, "-o", onnx)
    return onnx


def cell(way: str, output: Path, seed: int) -> dict[str, Any]:
    """Train one network for the 70; what came of it, and before its first step."""
    config, tuned, settings = WAYS[way]
    run = output / f"{way.replace(' ', '_').replace('/', '_')}_{seed}"
    start = (f"run.init_from={first_network(output, seed)}",) if tuned else ()
    # Verified before the first step and after the last.
    ends = ("run.save_every=1000", "eval.every=1000", "log.every=1")
    train(config, run, output, seed=seed, leave_out="old", settings=(*settings, *start, *ends))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [line["verification"]["val64"] for line in lines if "verification" in line]
    losses = [round(line["loss"], 3) for line in lines if "loss" in line]
    by_epoch = np.reshape(losses, (-1, _STEPS)).mean(axis=1)
    return {
        "way": way,
        "seed": seed,
        "before": {name: scores[0][name] for name in FIGURES},
        "after": {name: scores[-1][name] for name in FIGURES},
        "losses": losses,
        "loss_by_epoch": by_epoch.round(4).tolist(),
    }


def train(
    config: str, run: Path, output: Path, *, seed: int, leave_out: str, settings: tuple[str, ...]
) -> None:
    """One process on one core, as other work may go on beside it."""
    run_ours(
        *("train_dist.py", config, f"data.train={output / 'faces64'}", f"data.image_size={SIZE}"),
        *(f"data.leave_out={output / f'{leave_out}_{seed}.txt'}", "data.labels=dense"),
        *("data.threads=1", f"run.output={run}", f"run.seed={seed}"),
        *(f"eval.sets=[{output / 'val64.bin'}]", *settings),
        OMP_NUM_THREADS="1",
    )


def report(cells: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds, and the mean loss of epochs."""
    before = {one["seed"]: one["before"] for one in cells if WAYS[one["way"]][1]}
    rows = [("the network as it was", *_figures([*before.values()]), "", "", "")]
    for way in WAYS:
        of_way = [one for one in cells if one["way"] == way]
        if of_way:
            losses = [np.mean([one["loss_by_epoch"][e] for one in of_way]) for e in (0, 1, -1)]
            figures = _figures([one["after"] for one in of_way])
            rows.append((way, *figures, *(f"{loss:.1f}" for loss in losses)))
    show(("for the 70 people", "accuracy", "AUC", "loss, epoch 1", "2", "the last"), rows)


def _figures(scores: list[dict[str, float]]) -> list[str]:
    columns = [[one[name] for one in scores] for name in FIGURES]
    return [
        f"{statistics.mean(column):.4f} ± {statistics.stdev(column):.4f}"
        if len(column) > 1
        else f"{column[0]:.4f}"
        for column in columns
    ]


def _resized(image: bytes) -> bytes:
    file = io.BytesIO()
    with Image.open(io.BytesIO(image)) as decoded:
        smaller = decoded.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    smaller.save(file, "PNG")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("faces", type=Path, help="a folder with train.rec and lfw_dev_val.bin")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for runs and their data")
    parser.add_argument("--results", type=Path, default=RESULTS / "finetune_cpu.jsonl")
    arguments = parser.parse_args()
    output, results = arguments.output.resolve(), arguments.results
    output.mkdir(parents=True, exist_ok=True)
    prepare(arguments.faces.resolve(), output)
    if not results.exists():
        results.write_text(json.dumps(about_cpu()) + "\n")
    cells = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    done = {(one["way"], one["seed"]) for one in cells}
    for seed in SEEDS:
        for way in WAYS:
            if (way, seed) not in done:
                cells.append(cell(way, output, seed))
                with results.open("a") as file:
                    file.write(json.dumps(cells[-1]) + "\n")
    report(cells)


if __name__ == "__main__":
    main()
