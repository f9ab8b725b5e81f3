"""Momentum SGD on the sampled rows of the centers, in place, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.passes.cosine_softmax import CenterGradient
from heads.passes.workspace import Workspace, piece_rows, pieces
from heads.rows.stored import Noise, Stored, is_view, read_rows, write_rows
from heads.sampling import NOBODY, Sample


def update_rows(
    centers: Stored,
    velocity: Stored | None,
    sample: Sample,
    gradient: CenterGradient,
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
    noise: Noise | None,
    workspace: Workspace,
) -> None:
    """v ← momentum · v + gradient + weight_decay · w, then w ← w − lr · v, on the sampled rows.

    The rows of classes that nobody sees stay as they are. The arithmetic is in the dtype of the
    gradient's `pull`.

    Args:
        centers, velocity: of n rows; velocity None: there is no momentum.
        lr: 0-d.
        apply: 0-d bool; where it is false nothing changes, bit for bit.
        noise: for what is kept in fewer bits than the arithmetic's; None where nothing is.
    """
    dtype = gradient.pull.dtype
    columns, dim = gradient.product.shape
    width = centers.values.shape[1]
    subcenters = width // dim
    count = columns // subcenters
    product = gradient.product.view(count, subcenters, dim)
    pull = gradient.pull.view(count, subcenters, 1)
    decay = gradient.drift.view(count, subcenters, 1) + weight_decay
    skipped = (~apply).to(torch.float32)
    matrices = {"weight": centers} if velocity is None else {"weight": centers, "speed": velocity}
    keys = (None, None) if noise is None else noise.row_keys()
    row_bytes = width * dtype.itemsize
    # All views at once: one by one each takes as long as a small operator.
    cut = [tensor.split(piece_rows(row_bytes)) for tensor in (product, pull, decay)]
    for (start, stop), *parts in zip(pieces(count, row_bytes), *cut):
        rows = sample.slots(start, stop)
        moving = [
            read_rows(matrix, rows, dtype, workspace=workspace, name=f"update: {name}")
            for name, matrix in matrices.items()
        ]
        weight = moving[0]
        if sample.column_groups is not None:
            before = [matrix.clone() for matrix in moving]
        product_part, pull_part, decay_part = parts
        grad = workspace.take("update: gradient", product_part.shape, dtype)
        if product.dtype == dtype:
            torch.mul(product_part, pull_part, out=grad)
        else:  # widened first: an operator over two dtypes takes twice as long on CPUs
            grad.copy_(product_part).mul_(pull_part)
        grad.addcmul_(weight.view_as(grad), decay_part)
        # One pass over all three, which does nothing where found_inf is 1.
        torch._fused_sgd_(
            [weight],
            [grad.view_as(weight)],
            moving[1:],
            weight_decay=0.0,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
            found_inf=skipped,
        )
        if sample.column_groups is not None:
            seen = (sample.column_groups[start:stop] != NOBODY).unsqueeze(1)
            for matrix, kept in zip(moving, before):
                torch.where(seen, matrix, kept, out=matrix)
        for stored, matrix, key in zip(matrices.values(), moving, keys):
            if not is_view(stored, rows, dtype):
                write_rows(
                    stored,
                    rows,
                    matrix,
                    None if key is None else key[start:stop],
                    workspace=workspace,
                )
