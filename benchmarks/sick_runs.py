"""Runs that are broken on purpose, for what their metrics look like:

    python benchmarks/sick_runs.py --faces runs/atlas

The atlas's network and half of its people, five epochs, with ArcFace; each run has one thing wrong.
A run takes a quarter of a minute of one core. Those that are finished are lines of --results, with
all of their metrics: training/health/causes.py must name what is wrong with each of them. --cells 1
does the next one and ends.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import atlas
from benchmarks.cells import do_missing, finished
from benchmarks.harness import RESULTS, show
from benchmarks.kept_faces import Faces, drawn_faces
from benchmarks.short_training import configured, train
from training.config import Config, HeadConfig
from training.health.causes import diagnose
from training.health.course import Course
from training.health.facts import Facts
from training.step.train_step import TrainStep

PEOPLE, EPOCHS = 1_000, 5
STILL = 1e-9  # a rate at which nothing moves


@dataclass(frozen=True)
class Way:
    """One thing that is wrong.

    Attributes:
        cause: what must be found in its metrics; empty: nothing.
        lr, centers_lr: for a batch of 512.
        faces: what becomes of those that it is trained and verified on.
        spoil: done to the step before its first.
        people: so many of them.
        classes: of the head; None: as many.
    """

    cause: str
    lr: float = 0.4
    centers_lr: float = atlas.CENTERS_LR
    faces: Callable[[Faces], Faces] = lambda faces: faces
    spoil: Callable[[TrainStep], object] = lambda step: None
    people: int = PEOPLE
    classes: int | None = None
    epochs: int = EPOCHS

    @property
    def config(self) -> Config:
        head = HeadConfig(loss_args={"margin": 0.3, "scale": atlas.SCALE}, lr=self.centers_lr)
        config = configured(head, seed=0, epochs=self.epochs)
        return replace(config, optim=replace(config.optim, lr=self.lr))

    @property
    def facts(self) -> Facts:
        steps = self.people * atlas.FACES.images // self.config.data.global_batch
        return Facts.of(self.config, classes=self.classes or self.people, steps_per_epoch=steps)


def _overflow(step: TrainStep) -> None:
    weight = next(step.backbone.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))


def _shuffled(values: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(values)


WAYS = {
    "healthy": Way(""),
    "rate × 10": Way("rate too high", lr=4.0, centers_lr=4.0),
    "rate × 100": Way("rate too high", lr=40.0, centers_lr=40.0),
    "rate × 1000": Way("rate too high", lr=400.0, centers_lr=400.0),
    "rate / 4000": Way("the network does not move", lr=1e-4, centers_lr=1e-4),
    "network frozen": Way("the network does not move", lr=STILL),
    "centers frozen": Way("the centers do not move", centers_lr=STILL),
    "labels shuffled": Way(
        "labels do not fit the images",
        faces=lambda faces: faces._replace(labels=_shuffled(faces.labels)),
    ),
    "one class": Way(
        "one class",
        faces=lambda faces: faces._replace(labels=np.zeros_like(faces.labels)),
        classes=1,
    ),
    "overflow": Way("every step is skipped", spoil=_overflow),
    "few people, often": Way("learned by heart", people=50, epochs=30),
    "verified in negative": Way(
        "verified on other images than it learns",
        faces=lambda faces: faces._replace(pairs=255 - faces.pairs),
    ),
    "pairs shuffled": Way(
        "pairs are wrong", faces=lambda faces: faces._replace(same=_shuffled(faces.same))
    ),
}


def measure(faces: Faces, *, way: str) -> dict[str, Any]:
    """One run, on the first people of the atlas's set, verified on a fifth of its pairs."""
    wrong, journal = WAYS[way], []
    images, pairs = wrong.people * atlas.FACES.images, atlas.FACES.pairs // 5
    seen = Faces(
        np.array(faces.images[:images]),
        faces.labels[:images],
        np.array(faces.pairs[: 2 * pairs]),
        faces.same[:pairs],
    )
    found = train(wrong.config, wrong.faces(seen), journal=journal, spoil=wrong.spoil)
    return found | {"journal": journal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--faces", type=Path, help="the atlas's folder of drawn faces")
    parser.add_argument("--cells", type=int, help="do at most so many of those that are missing")
    parser.add_argument("--results", type=Path, default=RESULTS / "sick_runs_cpu.jsonl")
    arguments = parser.parse_args()
    if arguments.faces:
        one = partial(measure, drawn_faces(arguments.faces, atlas.FACES))
        wanted = [{"way": way} for way in WAYS]
        for line in do_missing(one, wanted, arguments.results, at_most=arguments.cells):
            print(line["way"], line["accuracy"], flush=True)
    rows = []
    for line in finished(arguments.results):
        found = diagnose(Course.of(line["journal"]), WAYS[line["way"]].facts)
        causes = ", ".join(finding.cause for finding in found)
        rows.append((line["way"], f"{line['accuracy']:.3f}", f"{line['loss']:.2f}", causes))
    show(("run", "accuracy", "loss", "found"), rows)


if __name__ == "__main__":
    main()
