"""Momentum SGD on the sampled rows of the centers, in place, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.passes.cosine_softmax import CenterGradient
from heads.passes.workspace import Workspace, pieces
from heads.sampling import NOBODY, Sample


def update_rows(
    centers: Tensor,
    velocity: Tensor,
    sample: Sample,
    gradient: CenterGradient,
    *,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
    workspace: Workspace,
) -> None:
    """v ← momentum · v + gradient + weight_decay · w, then w ← w − lr · v, on the sampled rows.

    The rows of classes that nobody sees stay as they are.

    Args:
        centers, velocity: (n, K·D).
        lr: 0-d.
        apply: 0-d bool; where it is false nothing changes, bit for bit.
    """
    width = centers.shape[1]
    columns, dim = gradient.product.shape
    subcenters = width // dim
    count = columns // subcenters
    product = gradient.product.view(count, subcenters, dim)
    pull = gradient.pull.view(count, subcenters, 1)
    decay = gradient.drift.view(count, subcenters, 1) + weight_decay
    skipped = (~apply).to(torch.float32)
    for start, stop in pieces(count, width * centers.element_size()):
        part = slice(start, stop)
        rows = None if sample.rows is None else sample.rows[part]
        weight = _collect(centers, rows, part, workspace, "weight")
        moving = [weight]
        if momentum:
            moving.append(_collect(velocity, rows, part, workspace, "speed"))
        if sample.column_groups is not None:
            before = [matrix.clone() for matrix in moving]
        grad = workspace.take("update: gradient", product[part].shape, centers.dtype)
        torch.mul(product[part], pull[part], out=grad)
        grad.addcmul_(weight.view_as(grad), decay[part])
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
            seen = (sample.column_groups[part] != NOBODY).unsqueeze(1)
            for matrix, kept in zip(moving, before):
                torch.where(seen, matrix, kept, out=matrix)
        if rows is not None:
            for whole, matrix in zip((centers, velocity), moving):
                whole.index_copy_(0, rows, matrix)


def _collect(
    matrix: Tensor, rows: Tensor | None, part: slice, workspace: Workspace, name: str
) -> Tensor:
    """Rows of a matrix: a view of `part`, or a copy of the sampled ones."""
    if rows is None:
        return matrix[part]
    out = workspace.take(f"update: {name}", (rows.shape[0], matrix.shape[1]), matrix.dtype)
    return torch.index_select(matrix, 0, rows, out=out)
