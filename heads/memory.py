"""How much memory a head takes on each rank, known before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from heads.extra_terms import ExtraTerm
from heads.neighbors.search import search_bytes
from heads.passes.cosine_softmax import KEPT_BYTES, chunk_size
from heads.passes.workspace import PIECE_BYTES
from heads.rows.stored import NARROW, row_bytes
from heads.sampling import AllClasses, Sampling, Shard


class HeadMemory(NamedTuple):
    """Bytes on one rank.

    Attributes:
        centers, momentum: wherever they are kept.
        step: beyond them, at the peak of a step in PyTorch.
        rows: those of a step as they are kept, and which they are: what centers that are not kept
            on the device take there besides.
        expectations: of LVFace's penalty.
        neighbors: the tables of hard negatives, and the centers that one is built from.
    """

    centers: int
    momentum: int
    step: int
    rows: int
    neighbors: int = 0
    expectations: int = 0

    @property
    def total(self) -> int:
        """All that is on the device where centers are kept there."""
        return self.centers + self.momentum + self.step + self.neighbors + self.expectations


def predict_memory(
    shard: Shard,
    embedding_dim: int,
    sampling: Sampling,
    *,
    global_batch: int,
    subcenters: int = 1,
    compute_dtype: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    centers_dtype: torch.dtype | None = None,
    momentum_dtype: torch.dtype | None = None,
    momentum: bool = True,
    adding: bool = False,
    extra_terms: Sequence[ExtraTerm] = (),
    expectations: bool = False,
    world_size: int = 1,
    neighbors: int = 0,
) -> HeadMemory:
    """An upper bound for heads.passes.cosine_softmax; the Triton kernels take less.

    Args:
        global_batch: of one forward.
        centers_dtype, momentum_dtype: as PartialFC's.
        momentum: whether there is any.
        adding: whether steps are made of several forwards (gradient accumulation, `begin_step`).
        expectations: whether there is LVFace's penalty.
        world_size: into how many the global batch is split.
        neighbors: of each class in the table of hard negatives; 0: there is none.
    """
    width = subcenters * embedding_dim
    size = sampling.size(shard, global_batch)
    wide, narrow = dtype.itemsize, compute_dtype.itemsize
    rows = size * width * narrow  # read by the products, or their result
    if adding:
        rows += size * width * wide
    # Norms, pull and drift; row numbers, and what is drawn and sorted on the way to them.
    per_row = size * 5 * subcenters * wide
    if not isinstance(sampling, AllClasses):
        per_row += size * 6 * 8
    per_class = global_batch * subcenters
    products = min(KEPT_BYTES, size * per_class * narrow)
    reads_centers = isinstance(sampling, AllClasses) and compute_dtype == (centers_dtype or dtype)
    if reads_centers and global_batch <= embedding_dim:
        products = 0  # they wait where their gradients will be
    chunk = min(size, chunk_size(global_batch, dtype) // subcenters + 1)
    # Cosines, coefficients, a narrow copy, and what a hook or sub-centers make of them.
    scratch = chunk * per_class * (6 * wide + narrow)
    batch = 8 * global_batch * embedding_dim * wide
    buffers = 4 * PIECE_BYTES
    held_in = [centers_dtype or dtype, momentum_dtype or dtype]
    if any(one in NARROW for one in held_in[: 1 + momentum]):
        per_row += size * 6 * 8  # keys of the rounding
        buffers += 5 * PIECE_BYTES
    own = global_batch // world_size
    extra = sum(term.scratch(own, global_batch) for term in extra_terms) * wide
    kept = [row_bytes(width, subcenters, one) for one in held_in[: 1 + momentum]]
    centers, velocity = (shard.num_local * one for one in (*kept, 0)[:2])
    step = rows + per_row + products + scratch + batch + extra + buffers
    bank = 0
    if expectations:
        bank = shard.num_local * embedding_dim * wide
        # The passes over it have memory of their own; the step's is for K times as many rows.
        step += rows + per_row + products + scratch + batch + 4 * PIECE_BYTES
        step += 2 * global_batch * global_batch * 8  # which rows are of the same class
    numbers = 4 * torch.int64.itemsize  # of a row: which it is, twice sorted, and its class
    table = 0
    if neighbors:
        table, searching = search_bytes(shard.num_local, width=width, neighbors=neighbors)
        # What is looked up and sorted for the draw.
        step += searching + global_batch * neighbors * 8 * 8
    return HeadMemory(centers, velocity, step, size * (sum(kept) + numbers), table, bank)
