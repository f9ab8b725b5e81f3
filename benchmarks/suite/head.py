"""A step of the head: forward, backward and update of the centers; arcface_torch's beside ours.

By classes, sample rate and the dtype of the products, and then by margin. The peaks for it are
three matrix products over the rows that take part, and reading and writing their centers and
momentum once. arcface_torch's head is written for one process, so on several ranks ours is alone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from benchmarks.baselines import ArcfaceTorchHead, bare_products
from benchmarks.suite.facts import name_of
from benchmarks.suite.figures import Figures, run_stage
from benchmarks.suite.measure import Effort, Row, Step
from heads import PartialFC, create_margin
from training.distributed import World
from training.step.precision import choose_precision

DIM = 512
BASELINE = "arcface_torch"
MARGINS = ("arcface", "cosface", "softmax", "adaface", "magface", "elastic_arcface", "uniface")
BENDING = ("curricularface",)  # the negatives, too


class Case(NamedTuple):
    """classes over all ranks; batch of a rank; compared: whether the baseline has its turn."""

    classes: int
    rate: float
    batch: int
    compared: bool = True

    def settings(self) -> Row:
        """As they stand in a row."""
        return {"classes": self.classes, "rate": self.rate, "batch": self.batch}


ON_CPU = [
    *(Case(100_000, rate, 128) for rate in (1.0, 0.3, 0.1, 0.01)),
    *(Case(400_000, 0.1, 128), Case(1_000_000, 0.01, 128, compared=False)),
]
ON_GPU = [
    *(Case(100_000, 1.0, 512), Case(1_000_000, 0.1, 512), Case(3_620_000, 0.1, 1024)),
    *(Case(100_000, 0.1, 512), Case(10_000_000, 0.01, 512, compared=False)),
]
TOYS = [Case(1_000, 1.0, 8), Case(1_000, 0.1, 8)]


def head(figures: Figures) -> None:
    world = figures.world
    precision = choose_precision(world.device)
    on_cpu = world.device.type == "cpu"
    effort = Effort(seconds=9.0) if on_cpu else Effort(seconds=3.0, steps=10, warm_up=10)
    cases = TOYS if figures.quick else ON_CPU if on_cpu else ON_GPU
    # A CPU's products may be in 16 bits though the head's own choice there is float32.
    dtypes = [torch.float32, precision.compute_dtype] if on_cpu else [precision.head_dtype]
    for case in cases:
        for dtype in dict.fromkeys(dtypes):
            ways = {"products": partial(_products, case, dtype, world)}
            if case.compared and world.world_size == 1:
                ways[BASELINE] = partial(_theirs, case, world)
            ways["ours"] = partial(_ours, case, dtype, world, "arcface")
            more = partial(_costs, case, dtype, world)
            figures.compare(ways, effort, more=more, dtype=name_of(dtype), **case.settings())
    case = TOYS[1] if figures.quick else Case(100_000, 0.1, 128 if on_cpu else 512)
    dtype = precision.head_dtype
    margins = {name: partial(_ours, case, dtype, world, name) for name in (*MARGINS, *BENDING)}
    more = partial(_costs, case, dtype, world)
    figures.compare(margins, effort, more=more, dtype=name_of(dtype), **case.settings())


def _costs(case: Case, dtype: torch.dtype, world: World, way: str, found: Row) -> Row:
    """Of a rank's step: what must be multiplied, and moved of the centers and their momentum."""
    rows = _rows(case, world)
    images = case.batch * world.world_size
    kept = 2 * 2 * rows * DIM * torch.float32.itemsize
    return {
        "images_per_s": images / found["seconds"],
        "flops": 3 * 2 * images * rows * DIM,
        "bytes": rows * DIM * dtype.itemsize * 3 if way == "products" else kept,
    }


def _rows(case: Case, world: World) -> int:
    return max(1, round(case.classes * case.rate / world.world_size))


def _batch(case: Case, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(world.rank)
    embeddings = torch.randn(case.batch, DIM, device=world.device)
    return embeddings, torch.randint(0, case.classes, (case.batch,), device=world.device)


def _products(case: Case, dtype: torch.dtype, world: World) -> Step:
    images = case.batch * world.world_size
    return bare_products(_rows(case, world), dtype, batch=images, dim=DIM, device=world.device)


def _ours(case: Case, dtype: torch.dtype, world: World, margin: str) -> Step:
    exact = margin != "arcface"  # of arcface arcface_torch's gradient, which it is compared with
    made = create_margin(margin, **({} if exact else {"gradient": "straight_through"}))
    partial_fc = PartialFC(
        case.classes,
        DIM,
        made,
        sample_rate=case.rate,
        compute_dtype=dtype,
        device=world.device,
    )
    partial_fc.velocity.fill_(0)  # zeros take no memory on a CPU before they are written
    embeddings, labels = _batch(case, world)
    lr = torch.tensor(0.01, device=world.device)

    def step() -> None:
        partial_fc(embeddings.detach().requires_grad_(), labels).backward()
        partial_fc.step(lr)

    return step


def _theirs(case: Case, world: World) -> Step:
    """On a CPU its products are float32, as it trains there."""
    accelerated = world.device.type != "cpu"
    baseline = ArcfaceTorchHead(
        case.classes,
        DIM,
        sample_rate=case.rate,
        seed=0,
        autocast=accelerated,
        device=world.device,
    )
    embeddings, labels = _batch(case, world)

    def step() -> None:
        baseline(embeddings.detach().requires_grad_(), labels).backward()
        baseline.step(0.01)

    return step


if __name__ == "__main__":
    run_stage(head)
