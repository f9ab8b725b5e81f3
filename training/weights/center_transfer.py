"""Class centers from a checkpoint's rows to a head's, whatever ranks either is split over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from heads import PartialFC
from heads.centers import shard_of
from heads.passes.workspace import Workspace
from heads.rows.buffers import CENTERS
from heads.rows.stored import Stored, in_float32, read_rows, write_rows
from training.distributed import World
from training.saving.head_rows import load_rows
from training.saving.state import rank_mesh

_PIECE = 1 << 15  # rows that travel together


def owned_rows(head: PartialFC) -> range:
    """The global class ids whose centers this rank has."""
    first = head.shard.first_class
    return range(first, first + head.shard.num_local)


@torch.no_grad()
def take_centers(
    checkpoint: Path, head: PartialFC, rows: np.ndarray, *, held: int, world: World
) -> float:
    """Fill in the centers that a checkpoint has; call it on every rank.

    Every rank reads its share of the checkpoint's rows onto the host and broadcasts them, a piece
    at a time; each keeps what is for its own classes.

    Args:
        rows: (C,) int64, for each class of `head` the row of its center in the checkpoint, or -1.
        held: rows in the checkpoint, as wide as the head's.

    Returns:
        The mean norm of all centers in the checkpoint, to the bit the same at any world size.
    """
    ours = owned_rows(head)
    wanted = rows[ours.start : ours.stop]
    shard = shard_of(held, rank=world.rank, world_size=world.world_size)
    own = load_rows(checkpoint, CENTERS, shard, rank_mesh("cpu"))
    assert own is not None, "a checkpoint with a head"
    norms = []
    for first in range(0, held, _PIECE):
        piece = _gather_rows(own, first, min(first + _PIECE, held), held=held, world=world)
        norms.append(piece.view(-1, head.embedding_dim).norm(dim=1))
        places = np.flatnonzero((wanted >= first) & (wanted < first + len(piece)))
        taken = piece[torch.from_numpy(wanted[places] - first)]
        put_centers(head, torch.from_numpy(places), taken)
    return float(torch.cat(norms).mean())


def _gather_rows(own: Stored, first: int, stop: int, *, held: int, world: World) -> Tensor:
    """Rows [first, stop) of the checkpoint on every rank in float32, from those that read them."""
    piece = torch.empty(stop - first, own.values.shape[1])
    for rank in range(world.world_size):
        theirs = shard_of(held, rank=rank, world_size=world.world_size)
        low = max(first, theirs.first_class)
        high = min(stop, theirs.first_class + theirs.num_local)
        if low < high:
            part = piece[low - first : high - first]
            if rank == world.rank:
                mine = slice(low - theirs.first_class, high - theirs.first_class)
                part.copy_(in_float32(own.part(mine)))
            dist.broadcast(part, src=rank)
    return piece


def centers_at(head: PartialFC, places: Tensor) -> Tensor:
    """(m, K·D) centers of a head's own rows in the dtype of its arithmetic; a copy."""
    kept = head.stored_centers
    workspace = Workspace(kept.values.device)
    return read_rows(
        kept, places.to(kept.values.device), head.dtype, workspace=workspace, name="centers"
    )


def put_centers(head: PartialFC, places: Tensor, centers: Tensor) -> None:
    """Replace centers of a head's own rows, rounded to the nearest of what it keeps."""
    kept = head.stored_centers
    device = kept.values.device
    write_rows(
        kept,
        places.to(device),
        centers.to(device, head.dtype),
        None,
        workspace=Workspace(device),
    )


def aim_centers(
    centers: Tensor, directions: Tensor, *, embedding_dim: int, norm: float
) -> tuple[Tensor, int]:
    """Point centers in new directions.

    Args:
        centers: (n, K·D).
        directions: (n, K·D) of unit length for each D; zeros leave a center as it is.
        norm: of the new centers.

    Returns:
        (n, K·D) like `centers`, and how many of the n were left as they are.
    """
    old = centers.view(-1, embedding_dim)
    new = directions.to(old).view_as(old)
    known = (new != 0).any(dim=1, keepdim=True)
    aimed = torch.where(known, new * norm, old).view_as(centers)
    subcenters = centers.shape[1] // embedding_dim
    return aimed, int((~known.view(-1, subcenters)).all(dim=1).sum())
