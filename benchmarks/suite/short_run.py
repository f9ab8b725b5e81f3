"""A short training on drawn faces: the recipe of MS1MV2, with as many classes as it has."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.suite.figures import options_of, write
from benchmarks.suite.measure import Row
from benchmarks.suite.processes import launcher
from tools.make_synthetic import make_synthetic

CONFIG = "configs/ms1mv2_r50.py"
BATCH, FACES = 256, {"identities": 200, "images": 64, "pairs": 600}  # the batch of a rank
REHEARSAL = (4, {"identities": 2, "images": 4, "pairs": 20})
SMALL = ("model.name=iresnet10", "model.width=0.25", "head.num_classes=100", "run.epochs=1")


def main() -> None:
    options = options_of()
    batch, faces = REHEARSAL if options.quick else (BATCH, FACES)
    with tempfile.TemporaryDirectory() as folder:
        drawn, output = Path(folder) / "faces", Path(folder) / "run"
        make_synthetic(drawn, **faces, seed=0)
        overrides = [
            *(f"run.output={output}", f"run.device={options.device}"),
            *("run.epochs=4", "run.save_every=4", "eval.every=4", "log.every=10"),
            *(f"data.train={drawn}", f"eval.sets=[{drawn / 'val.bin'}]"),
            *(f"data.global_batch={batch * options.ranks}", *(SMALL if options.quick else ())),
        ]
        command = [*launcher(options.ranks), "train_dist.py", CONFIG, *overrides]
        done = subprocess.run(command)
        if done.returncode == 0:
            write(options.figures, {"config": CONFIG, "batch": batch} | _figures(output))
    sys.exit(done.returncode)


def _figures(output: Path) -> Row:
    """What a run's metrics tell of it; images a second are those of the steady state."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    scores = [line["verification"]["val"] for line in lines if "verification" in line]
    steady = steps[1:] or steps  # the first reading has the start in it
    return {
        "images_per_s": statistics.median(line["images_per_s"] for line in steady),
        "waiting_for_data": statistics.median(line["data_wait_fraction"] for line in steady),
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "accuracy_first": scores[0]["accuracy"] if scores else None,
        "accuracy_last": scores[-1]["accuracy"] if scores else None,
    }


if __name__ == "__main__":
    main()
