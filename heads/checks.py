"""What PartialFC refuses, said so that it can be mended."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from heads.sampling import Shard


def check(fits: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError naming the argument unless it `fits`."""
    if not fits:
        raise ValueError(f"PartialFC: {name}={value!r}, expected {expected}")


def check_batch(embeddings: Tensor, labels: Tensor, *, centers: Tensor, embedding_dim: int) -> None:
    """Raises ValueError unless these are (B, D) floats and (B,) int64 beside the centers."""
    shape = tuple(embeddings.shape)
    if not embeddings.is_floating_point() or len(shape) != 2 or shape[1] != embedding_dim:
        raise ValueError(
            f"embeddings are {embeddings.dtype} of shape {shape}, expected floating point of "
            f"shape (B, {embedding_dim}); embedding_dim is set when PartialFC is built"
        )
    if labels.dtype != torch.int64 or labels.shape != (shape[0],) or shape[0] == 0:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 "
            f"of shape ({shape[0]},), one class id per embedding and at least one"
        )
    if embeddings.device != centers.device or labels.device != centers.device:
        raise ValueError(
            f"embeddings are on {embeddings.device} and labels on {labels.device}, the "
            f"centers on {centers.device}: move them to one device"
        )


def check_micro_batches(labels: Tensor) -> None:
    """Raises ValueError unless labels are (k, B) int64."""
    if labels.dtype != torch.int64 or labels.dim() != 2 or 0 in labels.shape:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 "
            "of shape (k, B), a row for each micro-batch"
        )


def check_step_inputs(lr: float | Tensor, skip: Tensor | None) -> None:
    """Raises ValueError for a rate that is no finite number >= 0, or a skip that is no 0-d bool."""
    if isinstance(lr, Tensor):
        check(lr.dim() == 0, "lr", lr.shape, "a number or a 0-d tensor")
    else:
        check(0 <= lr < math.inf, "lr", lr, "finite and at least 0")
    if skip is not None:
        boolean = isinstance(skip, Tensor) and skip.dtype == torch.bool and skip.dim() == 0
        check(boolean, "skip", skip, "a 0-d bool tensor")


def shard_fault(entries: Mapping[str, Tensor | int | None], shard: Shard) -> str | None:
    """What is wrong with a state's rows where its entries are not the shard's; None: not said."""
    for name, saved in entries.items():
        if saved is not None and int(saved) != getattr(shard, name):
            return (
                f"{name} is {int(saved)} in this state and {getattr(shard, name)} in this head: "
                "its centers are of other classes. Load a rank's own state into the same number of "
                "ranks and classes, or share it out through torch.distributed.checkpoint"
            )
    return None
