"""The head's step against arcface_torch's and against its bare matrix products, on CPUs:

    python benchmarks/head_speed.py

A step is forward, backward and the update of the centers. Ours, arcface_torch's (float32, as it
computes its head; see baselines.py) and the three products of the rows that take part are timed in
turn in one process; medians and their ratios count. Each case runs under glibc's default allocator,
which gives large tensors fresh pages at every step, and under one told not to. Transient memory is
what our step adds to the process beyond centers and momentum, measured in a process of its own.
bfloat16 is left out where the CPU only imitates it. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.baselines import ArcfaceTorchHead, bare_products
from benchmarks.harness import (
    ALLOCATORS,
    about_cpu,
    in_own_process,
    medians,
    save,
    show,
    take_turns,
)
from heads import ArcFace, PartialFC
from training.planning.machine import own_memory, own_peak
from training.step.precision import cpu_has_bf16

# What the products read, and what centers and momentum are kept in.
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.float32),
    "bfloat16 kept too": (torch.bfloat16, torch.bfloat16),
}
CASES = [(100_000, 1.0), (100_000, 0.1), (400_000, 0.1)]


class Batches:
    """The same few batches, over and over."""

    def __init__(self, classes: int, *, batch: int, dim: int) -> None:
        torch.manual_seed(0)
        self._pairs = [
            (torch.randn(batch, dim, requires_grad=True), torch.randint(0, classes, (batch,)))
            for _ in range(4)
        ]
        self._taken = 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._taken += 1
        return self._pairs[self._taken % len(self._pairs)]


def our_step(classes: int, rate: float, dtype: str, batches: Batches, dim: int) -> Callable:
    margin = ArcFace(gradient="straight_through")
    compute, kept = DTYPES[dtype]
    head = PartialFC(
        classes,
        dim,
        margin,
        sample_rate=rate,
        compute_dtype=compute,
        centers_dtype=kept,
        momentum_dtype=kept,
    )
    head.velocity.fill_(0)  # zeros take no memory before they are written

    def step() -> None:
        head(*batches.next()).backward()
        head.step(0.01)

    return step


def their_step(classes: int, rate: float, batches: Batches, dim: int) -> Callable:
    head = ArcfaceTorchHead(classes, dim, sample_rate=rate, seed=0)

    def step() -> None:
        head(*batches.next()).backward()
        head.step(0.01)

    return step


def compare(
    *, classes: int, rate: float, dtype: str, batch: int, dim: int, repeats: int
) -> dict[str, Any]:
    """Median seconds of each, taken in turn."""
    batches = Batches(classes, batch=batch, dim=dim)
    steps = {
        "ours": our_step(classes, rate, dtype, batches, dim),
        "arcface_torch": their_step(classes, rate, batches, dim),
        "products": bare_products(round(rate * classes), DTYPES[dtype][0], batch=batch, dim=dim),
    }
    return medians(take_turns(steps, rounds=repeats, warm_up=2))


def measure_transients(
    *, classes: int, rate: float, dtype: str, batch: int, dim: int, repeats: int
) -> dict[str, Any]:
    """Bytes that our steps add to the process, at their peak."""
    batches = Batches(classes, batch=batch, dim=dim)
    # The libraries' own memory, once: it is not the step's.
    our_step(1000, 1.0, dtype, Batches(1000, batch=batch, dim=dim), dim)()
    step = our_step(classes, rate, dtype, batches, dim)
    # From here on the peak is that of the steps, not of drawing the centers.
    Path("/proc/self/clear_refs").write_text("5")
    before = own_memory()
    for _ in range(repeats):
        step()
    return {"transient_bytes": own_peak() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].rstrip(":"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measurement's settings, as JSON
    arguments = parser.parse_args()
    if arguments.one:
        settings = json.loads(arguments.one)
        function = {"compare": compare, "transients": measure_transients}[settings.pop("measure")]
        print(json.dumps(function(**settings)))
        return
    shared = {"batch": arguments.batch, "dim": arguments.dim, "repeats": arguments.repeats}
    dtypes = list(DTYPES) if cpu_has_bf16() else ["float32"]
    rows = []
    for classes, rate in CASES:
        for dtype in dtypes:
            case = shared | {"classes": classes, "rate": rate, "dtype": dtype}
            row: dict[str, Any] = {"classes": classes, "sample_rate": rate, "dtype": dtype}
            for allocator, variables in ALLOCATORS.items():
                row[allocator] = in_own_process(__file__, {"measure": "compare", **case}, variables)
            row |= in_own_process(__file__, {"measure": "transients", **case}, {})
            rows.append(row)
    _print(rows, shared)
    save("head_speed", about_cpu() | shared, results=rows)


def _print(rows: list[dict[str, Any]], shared: dict[str, int]) -> None:
    lines = []
    for row in rows:
        both = [row[allocator] for allocator in ("tuned", "default")]
        allowed = (64 << 20) + row["classes"] * row["sample_rate"] * shared["dim"] * 8
        lines.append(
            (
                f"{row['classes']:,}",
                f"{row['sample_rate']:g}",
                row["dtype"],
                " / ".join(f"{one['ours'] * 1e3:.0f}" for one in both),
                " / ".join(f"{one['arcface_torch'] / one['ours']:.1f}" for one in both),
                " / ".join(f"{one['ours'] / one['products']:.2f}" for one in both),
                f"{row['transient_bytes'] / 1e6:.0f}",
                f"{allowed / 1e6:.0f}",
            )
        )
    columns = ("classes", "rate", "dtype", "ours, ms", "faster than arcface_torch")
    show(
        (*columns, "times the products", "transient MB", "MB allowed"),
        lines,
        title=f"batch {shared['batch']}, {shared['dim']} dimensions; tuned / default",
    )


if __name__ == "__main__":
    main()
