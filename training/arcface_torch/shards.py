"""The ranks' parts of one run, put together.

Of C classes, rank r of w has C // w rows, and one more where r < C % w, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from training.arcface_torch.rank_file import RankFile
from training.arcface_torch.weights import ArcFaceTorchError, rows_of

T = TypeVar("T")

# In float16 a rank that sees an overflow leaves out a step that the others do: backbones of one run
# may drift apart a little, those of two runs have nothing in common.
_ONE_RUN = 0.5  # ‖a − b‖ / ‖a‖ of parameters


def add(by_rank: dict[int, T], rank: int, content: T, path: Path) -> None:
    """Raises ArcFaceTorchError where the rank is there already."""
    if rank in by_rank:
        raise ArcFaceTorchError(f"{path}: rank {rank} is there twice, name the files of one run")
    by_rank[rank] = content


def join(
    parts: Mapping[int, Tensor], what: str, *, num_classes: int | None = None
) -> Tensor | None:
    """The ranks' rows, one after another; None where there are none.

    Raises ArcFaceTorchError where a rank is missing, or has other rows than it would in one run.
    """
    if not parts:
        return None
    world_size = max(parts) + 1
    missing = [rank for rank in range(world_size) if rank not in parts]
    if missing:
        raise ArcFaceTorchError(
            f"{what} of rank {', '.join(map(str, missing))} of {world_size} are missing: name the "
            "files of all ranks"
        )
    shapes = [tuple(parts[rank].shape) for rank in range(world_size)]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise ArcFaceTorchError(
            f"{what} of the ranks are {shapes}: expected (rows, D) with the same D, these are of "
            "different runs"
        )
    total = sum(shape[0] for shape in shapes)
    for rank, (rows, _) in enumerate(shapes):
        expected = rows_of(total, rank=rank, world_size=world_size)
        if rows != expected:
            raise ArcFaceTorchError(
                f"{what} of rank {rank} have {rows} rows, where {total} classes on {world_size} "
                f"ranks make {expected}: these are of different runs, or a last rank is missing"
            )
    if num_classes is not None and total != num_classes:
        raise ArcFaceTorchError(
            f"{what} of {world_size} ranks are {total}, expected {num_classes} classes: the files "
            "of the last ranks are missing, or these are of another run"
        )
    return torch.cat([parts[rank] for rank in range(world_size)])


def require_one_run(ranks: Mapping[int, RankFile]) -> list[str]:
    """Raise ArcFaceTorchError where the ranks' checkpoints were not saved together.

    Returns a note where their backbones are not quite the same.
    """
    first, apart = ranks[0], 0.0
    for rank in range(1, len(ranks)):
        other = ranks[rank]
        if (other.epoch, other.step) != (first.epoch, first.step):
            raise ArcFaceTorchError(
                f"rank {rank} is at epoch {other.epoch}, step {other.step}, rank 0 at epoch "
                f"{first.epoch}, step {first.step}: name the files of one run, saved together"
            )
        distance = _distance(first.backbone, other.backbone)
        if distance > _ONE_RUN:
            raise ArcFaceTorchError(
                f"the backbones of rank 0 and rank {rank} are different ones: name the files of "
                "one run"
            )
        apart = max(apart, distance)
    if not apart:
        return []
    return [f"backbone: that of rank 0; other ranks' differ from it by up to {apart:.2g}"]


def _distance(first: Mapping[str, object], other: Mapping[str, object]) -> float:
    """‖first − other‖ / ‖first‖ of the weights; infinite for those of another network.

    BatchNorm's statistics are each rank's own.
    """
    difference = norm = 0.0
    for name, tensor in first.items():
        theirs = other.get(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or "running_" in name:
            continue
        if not isinstance(theirs, Tensor) or theirs.shape != tensor.shape:
            return float("inf")
        difference += float((tensor.float() - theirs.float()).square().sum())
        norm += float(tensor.float().square().sum())
    return (difference / norm) ** 0.5 if norm else 0.0
