"""What a head's step takes of a GPU: multiplied, moved, launched and sent, known before it runs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from heads.passes.cosine_softmax import chunk_size
from heads.rows.stored import row_bytes
from heads.sampling import AllClasses, Sampling, Shard
from heads.statistics import gathers


class HeadCost(NamedTuple):
    """Of one step of one rank.

    Attributes:
        flops: two for a multiply-add: of the cosines, twice, and of two gradients.
        bytes: that its operations and kernels read and write, each once.
        launches: of kernels.
        gathered: bytes that the rank gives to its all_gathers; it gets those of all ranks.
        scattered: bytes that it gives to its reduce_scatter; it gets its share of the sum. What is
            all-reduced counts twice, since the shares are then gathered.
    """

    flops: int
    bytes: int
    launches: int
    gathered: int
    scattered: int


class _Bytes(NamedTuple):
    """Bytes for each unit, beside the rows as they are kept.

    Attributes:
        value: of the centers in the step: unit rows, gradients, and their way to the update.
        picked: the same more, where the step takes a sample of the rank's classes.
        logit: for each pair of a class in the step and a row of the global batch.
        embedding: for each value of the global batch's embeddings.
        fixed: sums of all programs.
    """

    value: int
    picked: int
    logit: int
    embedding: int
    fixed: int


# Those that benchmarks/head_counts.py counts, within 15 % from 128 to 4096 rows; a test holds them.
_TRITON = _Bytes(value=14, picked=0, logit=9, embedding=80, fixed=30_000_000)
_TORCH = _Bytes(value=20, picked=40, logit=125, embedding=0, fixed=0)
_DRAWN = 51  # bytes for each of the rank's classes, to draw a sample
# Launches of a step; beside them those of each chunk of classes.
_CALLS, _TO_DRAW, _OF_A_CHUNK = 190, 105, 50


def predict_cost(
    shard: Shard,
    embedding_dim: int,
    sampling: Sampling,
    *,
    global_batch: int,
    world_size: int,
    triton: bool,
    centers_dtype: torch.dtype | None = None,
    momentum_dtype: torch.dtype | None = None,
    momentum: bool = True,
) -> HeadCost:
    """Of a step with products in 16 bits and one center a class.

    Counted, not measured: what hard negatives, extra terms and sub-centers add is left out.

    Args:
        triton: whether our kernels run, as on GPUs from compute capability 8.0 on.
        centers_dtype, momentum_dtype, momentum: as heads.memory's.
    """
    size = sampling.size(shard, global_batch)
    values, logits = size * embedding_dim, size * global_batch
    sampled = not isinstance(sampling, AllClasses)
    a_unit = _TRITON if triton else _TORCH
    # Centers are read by the products and by the update, which writes them back.
    kept = 3 * row_bytes(embedding_dim, 1, centers_dtype or torch.float32)
    if momentum:
        kept += 2 * row_bytes(embedding_dim, 1, momentum_dtype or torch.float32)
    moved = size * kept + values * (a_unit.value + sampled * a_unit.picked)
    moved += logits * a_unit.logit + global_batch * embedding_dim * a_unit.embedding + a_unit.fixed
    launches = _CALLS + sampled * _TO_DRAW
    if not triton:
        launches += _OF_A_CHUNK * -(-size // chunk_size(global_batch, torch.float32))
    if sampled:
        moved += _DRAWN * shard.num_local
    gathered = global_batch // world_size * (embedding_dim * 4 + 8)  # embeddings, labels
    scattered = global_batch * embedding_dim * 4
    # Of each row of all ranks a sum and the cosine to its class.
    if gathers(global_batch * 2 * 4, world_size=world_size):
        gathered += global_batch * 2 * 4
    else:  # the largest part of the sum, then both
        scattered += 2 * global_batch * 3 * 4
    return HeadCost(
        flops=4 * 2 * logits * embedding_dim,
        bytes=moved,
        launches=launches,
        gathered=gathered,
        scattered=scattered,
    )
