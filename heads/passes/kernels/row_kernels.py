"""Class centers read into unit rows, and moved by a step, as Triton kernels for NVIDIA GPUs.

Rows are read and written where they are and as they are kept: in float32, bfloat16 or float8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heads.passes.kernels import row_kernel_code
from heads.passes.kernels.kernel_launch import ceil, on_its_device
from heads.rows.rounding import FLOAT8, column_keys
from heads.rows.stored import NARROW, Noise, Stored


@on_its_device
def unit_rows(unit: Tensor, centers: Stored, rows: Tensor | None) -> Tensor:
    """Collect, normalize and narrow the sub-centers of the rows that take part, in one pass.

    Args:
        unit: (S·K, D) float16 or bfloat16, receives the sub-centers at unit length.
        centers: of n rows, contiguous.
        rows: (S,) int64 distinct rows, or None for all n of them.

    Returns:
        (S·K,) float32 reciprocal lengths, 0 for sub-centers of zeros.
    """
    columns, dim = unit.shape
    inverse = torch.empty(columns, dtype=torch.float32, device=unit.device)
    if columns > 0:
        block = _row_block(dim)
        row_kernel_code.unit_rows_kernel[(ceil(columns, block["BLOCK_R"]),)](
            *_kept(centers),
            rows,
            unit,
            inverse,
            columns,
            D=dim,
            K=centers.values.shape[1] // dim,
            **block,
        )
    return inverse


@on_its_device
def update_rows(
    product: Tensor,
    centers: Stored,
    velocity: Stored | None,
    *,
    rows: Tensor | None,
    pull: Tensor,
    drift: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
    active: Tensor | None,
    noise: Noise | None,
) -> None:
    """Momentum SGD on the rows that take part, in place; the others are not touched.

    v = momentum · v + pull · product + (drift + weight_decay) · w;  w -= lr · v

    Where `apply` or a class's `active` is false the class's row and velocity keep their bits.

    Args:
        product: (S·K, D).
        velocity: of n rows; None: there is no momentum.
        pull, drift: (S·K,) float32.
        lr: 0-d float32.
        apply: 0-d bool.
        active: (S,) bool, or None for all.
        noise: there where centers or velocity are kept in fewer bits than float32.
    """
    columns, dim = product.shape
    if columns > 0:
        block = _row_block(dim)
        keys: tuple[Tensor | None, Tensor | None] = (None, None)
        of_columns = None
        if noise is not None:
            keys = noise.row_keys()
            of_columns = column_keys(centers.values.shape[1], product.device)
        row_kernel_code.update_kernel[(ceil(columns, block["BLOCK_R"]),)](
            *_kept(centers),
            keys[0],
            *_kept(velocity),
            keys[1],
            of_columns,
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
            K=centers.values.shape[1] // dim,
            **block,
        )


def _kept(stored: Stored | None) -> tuple[Tensor | None, Tensor | None]:
    """Values, in fewer bits than float32 as those bits, and scales."""
    if stored is None:
        return None, None
    values, scales = stored
    if values.dtype in NARROW:
        values = values.view(torch.uint8 if values.dtype == FLOAT8 else torch.int16)
    return values, scales


def _row_block(dim: int) -> dict[str, int]:
    """Whole sub-centers, 16 values a thread."""
    width = max(16, 1 << (dim - 1).bit_length())
    return {"BLOCK_R": max(1, 2048 // width), "BLOCK_D": width, "num_warps": 4}
