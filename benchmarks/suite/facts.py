"""The machine, the software, and the peaks that every other figure is measured by."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.harness import about_device
from benchmarks.suite.figures import Figures, run_stage
from benchmarks.suite.measure import TOY, Effort, Maker, in_turn
from training.step.precision import choose_precision


def facts(figures: Figures) -> None:
    device = figures.world.device
    precision = choose_precision(device)
    figures.add(**about_device(device), ranks=figures.world.world_size)

    on_cpu = device.type == "cpu"
    side, size = (2048, 1 << 28) if on_cpu else (8192, 1 << 30)
    if figures.quick:
        side, size = 256, 1 << 22
    dtypes = {torch.float32, precision.compute_dtype, precision.head_dtype}
    square = {dtype: torch.randn(side, side, device=device, dtype=dtype) for dtype in dtypes}
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ways: dict[str, Maker] = {
        name_of(dtype): partial(partial, torch.mm, a, a) for dtype, a in square.items()
    }
    ways["copy"] = partial(partial, target.copy_, source)
    effort = TOY if figures.quick else Effort(seconds=8.0, steps=1 if on_cpu else 20, warm_up=5)
    for name, found in in_turn(ways, device, effort).items():
        # A peak is what the machine can do, not what it does on average.
        best = found["seconds_p5"]
        if name == "copy":
            figures.add(peak="copy, read and written", bytes_per_s=2 * size / best, **found)
        else:
            flops = 2 * side**3 / best
            figures.add(peak=f"product of {side}³", dtype=name, flops_per_s=flops, **found)


def name_of(dtype: torch.dtype) -> str:
    """As it is written in a row."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    run_stage(facts)
