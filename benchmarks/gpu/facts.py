"""The card, the software, and the two roofs that every other figure is measured by."""

from __future__ import annotations

import torch

from benchmarks.gpu.figures import Figures, run_stage, seconds_of
from benchmarks.harness import about_device
from training.step.precision import choose_precision


def facts(figures: Figures) -> None:
    device = figures.world.device
    dtype = choose_precision(device).compute_dtype
    figures.add(**about_device(device), ranks=figures.world.world_size)

    side, size = (256, 1 << 22) if figures.quick else (8192, 1 << 30)
    a = torch.randn(side, side, device=device, dtype=dtype)
    product = seconds_of(lambda: a @ a, device, warm_up=3, repeats=20)
    name = str(dtype).removeprefix("torch.")
    figures.add(roof=f"{name} product", flops_per_s=2 * side**3 / product["seconds"])

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), device, warm_up=3, repeats=20)
    figures.add(roof="copy, read and written", bytes_per_s=2 * size / copy["seconds"])


if __name__ == "__main__":
    run_stage(facts)
