"""The rows that a head begins with."""

from __future__ import annotations

import torch

from heads.centers import initial_pieces
from heads.passes.workspace import Workspace
from heads.rows.placement import Placement
from heads.rows.stored import Stored, write_rows, zero_rows
from heads.sampling import Shard


def begin_rows(
    shard: Shard,
    embedding_dim: int,
    *,
    subcenters: int,
    seed: int | None,
    dtype: torch.dtype,
    placement: Placement,
) -> Stored:
    """A rank's centers, as `initial_pieces` draws them, rounded to the nearest of `dtype`.

    Args:
        seed: None: zeros, which momentum begins with.
    """
    width = subcenters * embedding_dim
    rows = zero_rows(
        shard.num_local, width, subcenters=subcenters, dtype=dtype, placement=placement
    )
    if seed is None:
        return rows
    workspace = Workspace(rows.values.device)
    for place, drawn in initial_pieces(shard.first_class, shard.num_local, width, seed=seed):
        write_rows(rows, place, drawn.to(rows.values.device), None, workspace=workspace)
    return rows
