"""Compiles, without a GPU, every kernel that heads.passes would launch; prints JSON.

    python tests/heads/passes/kernels/compile_kernels.py 80:512:float16:3:hooks ...

Each argument is compute capability, dimensions, compute dtype, sub-centers, and a kind: `hooks`,
with groups, bent negatives and accumulation, `threshold`, with UniFace's negatives and rows kept in
fewer bits, or `plain`. The
launches are recorded from the public functions, called with meta tensors, so that what is compiled
is what a step compiles.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[4]))

from benchmarks.compiled_kernels import Launch, compile_steps, recorded_launches
from heads.negatives import Negatives, Threshold
from heads.passes.kernels import class_kernels, row_kernels
from heads.rows.stored import FLOAT8, Noise, Stored


def record_step(capability: int, dim: str, dtype: str, subcenters: str, kind: str) -> list[Launch]:
    """The launches of a step, given the words of an argument."""
    with recorded_launches() as launches:
        _step(
            capability,
            dim=int(dim),
            dtype=getattr(torch, dtype),
            subcenters=int(subcenters),
            kind=kind,
        )
    return launches


def _step(
    capability: int, *, dim: int, dtype: torch.dtype, subcenters: int, kind: str, batch: int = 512
) -> None:
    class_kernels.hardware = lambda _: (divmod(capability, 10), 100)
    # Several chunks, the last a part of one: the first stores what the others add to.
    class_kernels._SCRATCH_BYTES = 0
    count, hooks = 3000, kind == "hooks"

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shape = (2 * count, subcenters * dim)
    centers = velocity = Stored(meta(*shape))
    noise = None
    if kind == "threshold":
        centers = Stored(meta(*shape, dtype=FLOAT8), meta(2 * count, subcenters))
        velocity = Stored(meta(*shape, dtype=torch.bfloat16))
        noise = Noise(meta(dtype=torch.int64), meta(count, dtype=torch.int64))
    embeddings = meta(batch, dim, dtype=dtype)
    unit = meta(count * subcenters, dim, dtype=dtype)
    negatives = Negatives(0.9, meta(batch), meta()) if hooks else Negatives()
    if kind == "threshold":
        negatives = Negatives(threshold=Threshold(meta(), 64.0, 1.0))
    rows = meta(count, dtype=torch.int64)
    into = meta(count * subcenters, dim) if hooks else None
    groups = (meta(count, dtype=torch.int32), meta(batch, dtype=torch.int32))
    common = {
        "positions": meta(batch, dtype=torch.int64),
        "groups": groups if hooks else None,
        "negatives": negatives,
        "scale": 64.0,
        "subcenters": subcenters,
    }
    row_kernels.unit_rows(unit, centers, rows)
    class_kernels.negative_logsumexp(embeddings, unit, **common)
    _, along, _ = class_kernels.gradients(
        embeddings,
        unit,
        **common,
        log_partition=meta(batch),
        target=meta(batch),
        target_subcenter=meta(batch, dtype=torch.int64),
        gain=16.0,
        into=into,
    )
    row_kernels.update_rows(
        unit if into is None else into,
        centers,
        velocity,
        rows=rows,
        pull=along,
        drift=along,
        lr=meta(),
        momentum=0.9,
        weight_decay=5e-4,
        apply=meta(dtype=torch.bool),
        active=meta(count, dtype=torch.bool) if hooks else None,
        noise=noise,
    )


if __name__ == "__main__":
    compile_steps(sys.argv[1:], record_step)
