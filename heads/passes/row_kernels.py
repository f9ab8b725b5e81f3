"""Class centers read into unit rows, and moved by a step, as Triton kernels for NVIDIA GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.passes import row_kernel_code
from heads.passes.kernel_launch import ceil, on_its_device


@on_its_device
def unit_rows(centers: Tensor, rows: Tensor | None, unit: Tensor) -> Tensor:
    """Collect, normalize and narrow the sub-centers of the rows that take part, in one pass.

    Args:
        centers: (n, K·D) float32, contiguous; sub-center k is columns k·D:(k+1)·D.
        rows: (S,) int64 distinct rows, or None for all n of them.
        unit: (S·K, D) float16 or bfloat16, receives the sub-centers at unit length.

    Returns:
        (S·K,) float32 reciprocal lengths, 0 for sub-centers of zeros.
    """
    columns, dim = unit.shape
    inverse = torch.empty(columns, dtype=torch.float32, device=unit.device)
    if columns > 0:
        block = _row_block(dim)
        row_kernel_code.unit_rows_kernel[(ceil(columns, block["BLOCK_R"]),)](
            centers, rows, unit, inverse, columns, D=dim, K=centers.shape[1] // dim, **block
        )
    return inverse


@on_its_device
def update_rows(
    centers: Tensor,
    velocity: Tensor | None,
    *,
    rows: Tensor | None,
    product: Tensor,
    pull: Tensor,
    drift: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
    active: Tensor | None,
) -> None:
    """Momentum SGD on the rows that take part, in place; the others are not touched.

    v = momentum · v + pull · product + (drift + weight_decay) · w;  w -= lr · v

    Where `apply` or a class's `active` is false the class's row and velocity keep their bits.

    Args:
        velocity: (n, K·D) float32; None: there is no momentum.
        product: (S·K, D).
        pull, drift: (S·K,) float32.
        lr: 0-d float32.
        apply: 0-d bool.
        active: (S,) bool, or None for all.
    """
    columns, dim = product.shape
    if columns > 0:
        block = _row_block(dim)
        row_kernel_code.update_kernel[(ceil(columns, block["BLOCK_R"]),)](
            centers,
            velocity,
            rows,
            product,
            pull,
            drift,
            None if active is None else active.view(torch.uint8),
            apply.view(torch.uint8),
            lr,
            momentum,
            weight_decay,
            columns,
            D=dim,
            K=centers.shape[1] // dim,
            **block,
        )


def _row_block(dim: int) -> dict[str, int]:
    """Whole sub-centers, 16 values a thread."""
    width = max(16, 1 << (dim - 1).bit_length())
    return {"BLOCK_R": max(1, 2048 // width), "BLOCK_D": width, "num_warps": 4}
