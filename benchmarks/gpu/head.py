"""A step of the head: forward, backward and update of the centers; arcface_torch's beside ours.

The roofs for it are three matrix products over the rows that take part, and reading and writing
their centers and momentum once. arcface_torch's head is written for one process, so on several
ranks ours is alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.baselines import ArcfaceTorchHead
from benchmarks.gpu.figures import Figures, Row, peak_mb, run_stage, seconds_of
from heads import ArcFace, PartialFC
from training.distributed import World
from training.step.precision import choose_precision

DIM = 512
# Classes over all ranks, sample rate, embeddings of a rank, whether the baseline has its turn.
CASES = [
    (100_000, 1.0, 512, True),
    (1_000_000, 0.1, 512, True),
    (3_620_000, 0.1, 1024, True),
    (100_000, 0.1, 512, True),
    (10_000_000, 0.01, 512, False),
]
REHEARSAL = [(1_000, 1.0, 8, True), (1_000, 0.1, 8, True)]


def head(figures: Figures) -> None:
    world = figures.world

    def measure(*, classes: int, rate: float, batch: int, way: str) -> Row:
        make = _theirs if way == "arcface_torch" else _ours
        step = make(world, classes, rate, batch)
        few = figures.quick or way == "arcface_torch"
        rows = max(1, round(classes * rate / world.world_size))
        return {
            **seconds_of(step, world.device, warm_up=5, repeats=5 if few else 40),
            **peak_mb(world.device),
            "flops": 3 * 2 * batch * world.world_size * rows * DIM,
            "bytes": 2 * 2 * rows * DIM * torch.float32.itemsize,
        }

    for classes, rate, batch, compared in REHEARSAL if figures.quick else CASES:
        for way in ("arcface_torch", "ours"):
            if way == "ours" or (compared and world.world_size == 1):
                figures.measure(measure, classes=classes, rate=rate, batch=batch, way=way)


def _batch(world: World, classes: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(world.rank)
    embeddings = torch.randn(batch, DIM, device=world.device)
    return embeddings, torch.randint(0, classes, (batch,), device=world.device)


def _ours(world: World, classes: int, rate: float, batch: int) -> Callable[[], None]:
    margin = ArcFace(gradient="straight_through")
    precision = choose_precision(world.device)
    partial_fc = PartialFC(
        *(classes, DIM, margin), rate, compute_dtype=precision.head_dtype, device=world.device
    )
    embeddings, labels = _batch(world, classes, batch)
    lr = torch.tensor(0.01, device=world.device)

    def step() -> None:
        partial_fc(embeddings.detach().requires_grad_(), labels).backward()
        partial_fc.step(lr)

    return step


def _theirs(world: World, classes: int, rate: float, batch: int) -> Callable[[], None]:
    accelerated = (
        world.device.type != "cpu"
    )  # on a CPU its products are float32, as it trains there
    baseline = ArcfaceTorchHead(
        *(classes, DIM), sample_rate=rate, seed=0, autocast=accelerated, device=world.device
    )
    embeddings, labels = _batch(world, classes, batch)

    def step() -> None:
        baseline(embeddings.detach().requires_grad_(), labels).backward()
        baseline.step(0.01)

    return step


if __name__ == "__main__":
    run_stage(head)
