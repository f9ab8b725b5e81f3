"""A network written as torch.export's .pt2 file, for programs of torch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evaluation.embedding import on_pixels
from training.shipping.shipped import Form, Shipped

_LARGEST_BATCH = 1 << 16


def write_pt2(shipped: Shipped, path: Path, *, example: Tensor, texts: Mapping[str, str]) -> None:
    """Write the graph with a free batch axis, and texts by name, its extra_files, beside it.

    Args:
        example: a batch of two or more, as the graph takes it.
    """
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    with torch.no_grad():
        program = torch.export.export(shipped, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files=dict(texts))


def open_pt2(
    path: Path, form: Form, size: int, *, outputs: Sequence[str]
) -> list[Callable[[Tensor], Tensor]]:
    """By output, what makes it of (B, 3, S, S) uint8 RGB with a file that was just written here."""
    module = torch.export.load(path).module()

    def run(images: Tensor, place: int) -> Tensor:
        found = module(images.to(torch.uint8) if form.takes_pixels else images)
        return found if len(outputs) == 1 else found[place]

    prepare, device = form.described(size), torch.device("cpu")
    return [
        on_pixels(partial(run, place=place), device=device, prepare=prepare)
        for place in range(len(outputs))
    ]
