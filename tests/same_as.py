"""Whether this work tree trains as another revision does, bit for bit:  make same-as REV=HEAD~1

For refactorings: both train on the same drawn faces for 60 steps, on one rank and on two, in
float32 and bfloat16, with two losses and a recipe of augmentation. Compared are the readings of
every step, the verifications, and every tensor of the last checkpoint. What this work tree has not
committed counts. Both are driven by train_dist.py's command line alone, so that modules may move.

Takes two minutes of CPU, and little more than one on two free cores. Exit code 0: alike; 1: not,
and the first difference is named; 2: one of them could not be run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tools.make_synthetic import make_synthetic

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
from training.config import Config, DataConfig

config = Config(data=DataConfig(train="named on the command line"))
"""
FACES = {"identities": 24, "images": 10, "pairs": 60, "seed": 0, "size": 64}
# Where a setting is not named, its default is compared, too.
SETTINGS = (
    *("run.device=cpu", "run.deterministic=true", "run.epochs=4", "run.save_every=4"),
    *("data.global_batch=16", "data.image_size=64", "data.augment=[flip,arcface:0.5]"),
    *("data.threads=1", "model.name=iresnet10", "model.width=0.25", "model.embedding_dim=32"),
    *("head.loss_args.scale=32", "optim.lr=0.8", "optim.warmup_epochs=0.5"),
    *("eval.every=2", "log.every=1"),
)
READINGS = ("lr", "loss", "gradient_norm", "embedding_norm", "skipped_steps")
CENTERS = "head.centers"
_UNKNOWN = re.compile(r"(\w+\.\w+)(?:\.\w+)?='.*': no such key")


@dataclass(frozen=True)
class Case:
    """A way of training that is tried on both sides."""

    ranks: int
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s'[: self.ranks - 1]}, {' '.join(self.settings)}"


CASES = tuple(
    Case(ranks, (f"step.precision={precision}", f"head.loss={loss}", f"head.sample_rate={rate}"))
    for ranks, precision, loss, rate in (
        (1, "fp32", "arcface", 1),
        (1, "bf16", "adaface", 0.3),
        (2, "fp32", "adaface", 0.3),
        (2, "bf16", "arcface", 0.3),
    )
)


class CannotRunError(RuntimeError):
    """A side that ended otherwise than by training to its last step."""


@dataclass
class Side:
    """One of the two that are compared: its name, and the folder of its source."""

    name: str
    tree: Path
    unknown: set[str] = field(default_factory=set)  # settings that it does not know


@dataclass
class Trained:
    """What a run has left behind."""

    steps: list[dict[str, Any]]  # lines of metrics.jsonl
    tensors: dict[str, Tensor]  # by name

    @classmethod
    def read(cls, output: Path) -> Trained:
        lines = (output / "metrics.jsonl").read_text().splitlines()
        checkpoint = max((output / "checkpoints").glob("step_*"))
        saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in saved.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        dcp.load(tensors, checkpoint_id=checkpoint)
        return cls([json.loads(line) for line in lines], tensors)

    def centers_digest(self) -> str:
        centers = self.tensors[CENTERS].numpy().tobytes()
        return hashlib.blake2b(centers, digest_size=8).hexdigest()


def first_difference(one: Trained, other: Trained) -> str | None:
    """The first step whose readings differ, or else the first tensor, with both values."""
    return next(_differences(one, other), None)


def _differences(one: Trained, other: Trained) -> Iterator[str]:
    for ours, theirs in zip(one.steps, other.steps):
        for name in ("step", *READINGS, "verification"):
            if repr(ours.get(name)) != repr(theirs.get(name)):  # NaN is like NaN
                yield f"step {ours['step']}: {name} {ours.get(name)} != {theirs.get(name)}"
    if len(one.steps) != len(other.steps):
        yield f"{len(one.steps)} != {len(other.steps)} lines in metrics.jsonl"
    for name in sorted(one.tensors.keys() | other.tensors.keys()):
        ours, theirs = one.tensors.get(name), other.tensors.get(name)
        if ours is None or theirs is None:
            yield f"tensor {name}: only one of them has it"
        elif (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            yield (
                f"tensor {name}: {ours.dtype} {tuple(ours.shape)} != "
                f"{theirs.dtype} {tuple(theirs.shape)}"
            )
        elif ours.numel() and not torch.equal(_bits(ours), _bits(theirs)):
            row = int((_bits(ours) != _bits(theirs)).any(dim=1).nonzero()[0])
            at = [int(index) for index in torch.unravel_index(torch.tensor(row), ours.shape)]
            values = f"{ours.flatten()[row].item()!r} != {theirs.flatten()[row].item()!r}"
            yield f"tensor {name}{at}: {values}"


def _bits(tensor: Tensor) -> Tensor:
    """(N, bytes) uint8 of a tensor of N elements: zeros have signs, and NaNs differ."""
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def compare(sides: Sequence[Side], cases: Sequence[Case], folder: Path, *settings: str) -> bool:
    """Train every case on both sides, say what comes of it; whether all are alike.

    folder: an empty one to work in. settings: beside those of all cases. Raises CannotRunError.
    """
    make_synthetic(folder / "faces", **FACES)
    (folder / "config.py").write_text(CONFIG)
    alike = True
    for number, case in enumerate(cases):
        one, other = _train_both(sides, case, folder / str(number), settings)
        difference = first_difference(one, other)
        losses = [line["loss"] for line in one.steps if "loss" in line]
        summary = f"{len(losses)} steps, loss {losses[0]:.4g} to {losses[-1]:.4g}"
        digest = f"{len(one.tensors)} tensors, centers {one.centers_digest()}"
        print(f"{case}: {difference or f'alike ({summary}; {digest})'}", flush=True)
        alike &= difference is None
    return alike


def _train_both(
    sides: Sequence[Side], case: Case, folder: Path, more: Sequence[str]
) -> list[Trained]:
    """Train with the settings that both sides know; says which were left out."""
    while True:
        left_out = set().union(*(side.unknown for side in sides))
        settings = [
            setting
            for setting in (*SETTINGS, *more, *case.settings)
            if ".".join(setting.partition("=")[0].split(".")[:2]) not in left_out
        ]
        with ThreadPoolExecutor(len(sides)) as pool:
            trained = list(pool.map(partial(_train, case, folder, settings), sides))
        if all(trained):
            return trained
        for side in sides:
            for key in side.unknown - left_out:
                print(f"{key} is left out, {side.name} does not know it", flush=True)


def _train(case: Case, folder: Path, settings: Sequence[str], side: Side) -> Trained | None:
    """What a side makes of a case; None, and one more in `side.unknown`, for a setting it lacks."""
    work = folder / side.name
    shutil.rmtree(work, ignore_errors=True)  # of a try with more settings
    # Each has faces of its own: it writes an index beside them, in its own format.
    shutil.copytree(folder.parent / "faces", work / "faces")
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.ranks}")
    done = subprocess.run(
        [
            *(sys.executable, *(launcher if case.ranks > 1 else ())),
            *("train_dist.py", str(folder.parent / "config.py"), *settings),
            *(f"run.output={work / 'run'}", f"data.train={work / 'faces'}"),
            f"eval.sets=[{work / 'faces' / 'val.bin'}]",
        ],
        cwd=side.tree,
        # More threads would sum in another order each time.
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return Trained.read(work / "run")
    unknown = _UNKNOWN.search(done.stderr)
    if unknown is None or unknown[1] in side.unknown:
        raise CannotRunError(f"{side.name}, {case}, ends with {done.returncode}:\n{done.stderr}")
    side.unknown.add(unknown[1])
    return None


def extract(revision: str, folder: Path) -> None:
    """Write the files of a revision into a new folder; raises CannotRunError without it."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        raise CannotRunError(f"{revision}: {archive.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":  ")[0])
    parser.add_argument("revision", help="what this work tree is compared with, as HEAD~1")
    revision = parser.parse_args().revision
    with TemporaryDirectory(prefix="same_as_") as temporary:
        folder = Path(temporary)
        try:
            extract(revision, folder / "tree")
            sides = [Side("work tree", ROOT), Side("revision", folder / "tree")]
            return 0 if compare(sides, CASES, folder) else 1
        except CannotRunError as error:
            print(f"same_as: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
