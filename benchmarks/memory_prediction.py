"""The memory that runs take on a CPU against what was predicted for them:

    python benchmarks/memory_prediction.py

Each setting is a run in a process of its own, on drawn faces: it verifies, trains some steps, saves
and verifies again. What counts is the most that its process had of the machine's memory, over the
prediction that it printed at its start. Results go to benchmarks/results/. Of a GPU nothing is
measured here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import about_cpu, in_own_process, save, show
from tools.make_synthetic import make_synthetic
from train_dist import open_sets
from training.config import Config, DataConfig, EvalConfig, ModelConfig, RunConfig, override
from training.distributed import join_world, leave_world
from training.loop import Trainer
from training.reporting.meters import peak_memory
from training.step.precision import choose_precision

BOUNDS = (0.95, 1.10)  # of the prediction over the peak: never far under, and no empty caution
SMALL = ("model.name=iresnet10", "model.width=0.25", "model.embedding_dim=128")
WIDE = ("model.name=iresnet10", "model.width=1.0")
MANY = ("head.num_classes=300000", "model.embedding_dim=256", "head.sample_count=30000")
CASES: list[tuple[str, ...]] = [
    ("model.name=iresnet18", "head.num_classes=100000"),
    (*WIDE, "distill.teacher=TEACHER", "distill.model=iresnet18"),
    ("model.name=iresnet50", "data.global_batch=16", "head.num_classes=10000"),
    (
        "model.name=iresnet50",
        "data.global_batch=16",
        "eval.batch_size=16",
        "model.checkpointing=true",
    ),
    (
        "model.name=iresnet18",
        "data.global_batch=32",
        "eval.batch_size=32",
        "model.checkpointing=true",
    ),
    SMALL,
    (*SMALL, "step.precision=fp32"),
    (*SMALL, "head.num_classes=500000", "head.sample_rate=0.1"),
    (*SMALL, "head.num_classes=200000", "model.embedding_dim=512", "head.sample_rate=0.3"),
    (*SMALL, "head.num_classes=100000", "optim.name=adamw", "head.subcenters=2"),
    (*SMALL, *MANY, "head.centers_dtype=bfloat16", "head.momentum_dtype=bfloat16"),
    (*SMALL, *MANY, "head.centers_dtype=float8_e4m3", "head.momentum=0"),
    (*SMALL, *MANY, "head.place=host"),
    (*SMALL, *MANY, "head.place=disk", "head.centers_dtype=bfloat16", "head.momentum=0"),
    (*SMALL, *MANY, "head.hard_negatives=0.5"),
    (*SMALL, "data.global_batch=128", "data.augment=[flip,arcface]"),
    WIDE,
    (*WIDE, "step.precision=fp32"),
    (*WIDE, "data.global_batch=128", "step.micro_batches=4"),
    ("model.name=iresnet18", "head.num_classes=10000", "optim.name=adamw", "model.width=0.5"),
    ("model.name=iresnet18", "step.precision=fp32", "data.global_batch=32"),
]


def measure(*, faces: str, overrides: list[str]) -> dict[str, Any]:
    """Bytes that a short run takes at its peak, and those predicted, by part."""
    with tempfile.TemporaryDirectory() as folder:
        config = override(_configured(Path(faces), Path(folder) / "run"), overrides)
        if config.distill.teacher:
            config = replace(
                config, distill=replace(config.distill, teacher=_teacher(config, Path(folder)))
            )
        world = join_world("cpu")
        precision = choose_precision(world.device, config.step.precision)
        trainer = Trainer(
            config,
            world,
            precision=precision,
            sets=open_sets(config, world, precision),
        )
        trainer.run()
        leave_world()
    return {
        "precision": str(precision.compute_dtype).removeprefix("torch."),
        "peak": peak_memory(world.device),
        "predicted": trainer.prediction.total,
        "parts": trainer.prediction.parts,
    }


def _configured(faces: Path, output: Path) -> Config:
    """Two epochs of a few steps, each ending in a checkpoint and a verification."""
    return Config(
        run=RunConfig(output=str(output), epochs=2, device="cpu"),
        data=DataConfig(train=str(faces), global_batch=64),
        model=ModelConfig(name="iresnet10", embedding_dim=512),
        eval=EvalConfig(sets=(str(faces / "val.bin"),)),
    )


def _teacher(config: Config, folder: Path) -> str:
    """A state dict as arcface_torch saves it, written by another process: it would count here."""
    path = folder / "teacher.pth"
    settings = {
        "path": str(path),
        "name": config.distill.model,
        "embedding_dim": config.model.embedding_dim,
    }
    in_own_process(__file__, settings, {})
    return str(path)


def write_network(*, path: str, name: str, embedding_dim: int) -> None:
    """A network with the weights that it starts with."""
    import torch

    from models import create_model

    torch.save(create_model(name, embedding_dim=embedding_dim).state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement's settings, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        settings = json.loads(arguments.one)
        if "path" in settings:
            print(json.dumps(write_network(**settings)))
            return
        with contextlib.redirect_stdout(io.StringIO()):  # of the run's own words
            found = measure(**settings)
        print(json.dumps(found))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_synthetic(Path(folder), identities=8, images=16, pairs=80, seed=0)
        try:
            for case in CASES:
                settings = {"faces": folder, "overrides": list(case)}
                rows.append({"overrides": list(case)} | in_own_process(__file__, settings, {}))
                ratio = rows[-1]["predicted"] / rows[-1]["peak"]
                print(f"{ratio:.3f}  {' '.join(case)}", flush=True)
        finally:  # it takes long, and what is known is kept
            save("memory_prediction", about_cpu() | {"bounds": BOUNDS}, results=rows)
    _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        ratio = row["predicted"] / row["peak"]
        within = "" if BOUNDS[0] <= ratio <= BOUNDS[1] else " !"
        sizes = (f"{row['predicted'] / 1e6:,.0f}", f"{row['peak'] / 1e6:,.0f}")
        lines.append((" ".join(row["overrides"]), *sizes, f"{ratio:.3f}{within}"))
    columns = ("settings", "predicted", "peak", "predicted / peak")
    show(columns, lines, title="memory of runs on a CPU, MB")


if __name__ == "__main__":
    main()
