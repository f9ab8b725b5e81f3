"""The two passes over the class centers, as Triton kernels for NVIDIA GPUs.

What heads.passes.cosine_softmax does with matrix products on chunks of classes is done here on
tiles that stay in registers: the logits reach no memory at all, the coefficients only for a chunk
of classes.

G is the global batch, D the embedding size, S the classes taking part, K the sub-centers a class;
jk = j·K + k counts the S·K sub-centers. Every function here takes

    embeddings: (G, D) float16 or bfloat16, of unit length; its dtype is what the products read.
    unit: (S·K, D) sub-centers of unit length in the same dtype, from row_kernels.py.
    positions: (G,) int64, the slot in 0..S-1 of each sample's own class, -1: not here.
    groups: None, or (S,) int32 and (G,) int32: class j counts for row i where the class's number
        equals the row's or is EVERYONE (-1), never where it is NOBODY (-2).

on one CUDA device. Shapes are static, the host waits for nothing, and no sum depends on which
program ends first: a step is the same bits at every run and can be captured in a CUDA graph, after
one step outside of it, in which Triton compiles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from heads.negatives import Negatives
from heads.passes.kernels import class_kernel_code
from heads.passes.kernels.kernel_launch import ceil, hardware, on_its_device, tiles

# Coefficients of a chunk of classes: enough tiles to fill a GPU, a fraction of its memory.
_SCRATCH_BYTES = 32 << 20
# With very large batches the scratch may grow instead; with tiny ones the grid must not.
_MIN_CHUNK, _MAX_CHUNK = 1 << 10, 1 << 18
# Rounding may lengthen a unit vector, by 2^-8 in bfloat16: what a cosine is at most.
_LARGEST_COSINE = 1.02


@on_its_device
def negative_logsumexp(
    embeddings: Tensor,
    unit: Tensor,
    *,
    positions: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    negatives: Negatives,
    scale: float,
    subcenters: int,
) -> Tensor:
    """First pass: (G,) float32 log-sum-exp of scale · cosine over the visible negatives.

    The row's own class is not among them; -inf where there are none. A class's cosine is the
    largest of its sub-centers', bent by `negatives`.
    """
    global_batch, dim = embeddings.shape
    count = unit.shape[0] // subcenters
    if count == 0:
        return embeddings.new_full((global_batch,), -math.inf, dtype=torch.float32)
    capability, processors = hardware(embeddings.device)
    tile = tiles(capability, dim, subcenters=subcenters, negatives=negatives)
    batch_tiles = ceil(global_batch, tile.batch)
    splits = min(ceil(count, tile.classes), ceil(2 * processors, batch_tiles))
    partial = embeddings.new_empty(splits, global_batch, dtype=torch.float32)
    scale_log2 = scale * math.log2(math.e)
    class_kernel_code.logsumexp_kernel[(batch_tiles, splits)](
        embeddings,
        unit,
        positions,
        *_masks(groups, negatives),
        partial,
        global_batch,
        count,
        scale_log2,
        D=dim,
        K=subcenters,
        BOUNDED=_sum_fits(scale_log2, count, negatives),
        BLOCK_C=tile.classes,
        BLOCK_G=tile.batch,
        BLOCK_D=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return partial.logsumexp(0)


@on_its_device
def gradients(
    embeddings: Tensor,
    unit: Tensor,
    *,
    positions: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    negatives: Negatives,
    scale: float,
    subcenters: int,
    log_partition: Tensor,
    target: Tensor,
    target_subcenter: Tensor,
    gain: float,
    into: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Second pass: the coefficients of the cosines, and their products with both sides.

    The coefficient c of row i and sub-center jk is
        gain · exp(scale · bent_ij - log_partition_i) · slope_ij, visible class, not the row's own,
            at its first largest sub-center,
        gain · target_i at the row's own class and sub-center target_subcenter_i,
        0 elsewhere,
    narrowed to the compute dtype. Where that or a center's gradient overflows it shows in the
    second result, as NaN or inf.

    Args:
        log_partition, target: (G,) float32.
        target_subcenter: (G,) int64 in 0..K-1.
        into: (S·K, D) float32, to which Σ_i c · e_i is added; None: it takes the place of `unit`.

    Returns:
        Σ_jk c · ŵ_jk, (G, D) float32 with ŵ the unit centers; Σ_i c · cosine, (S·K,) float32; and
        where the negatives have a threshold the sum of their coefficients, 0-d float32.
    """
    global_batch, dim = embeddings.shape
    count = unit.shape[0] // subcenters
    if count == 0:
        threshold = None if negatives.threshold is None else log_partition.new_zeros(())
        return log_partition.new_zeros(global_batch, dim), log_partition.new_empty(0), threshold
    capability, processors = hardware(embeddings.device)
    tile = tiles(capability, dim, subcenters=subcenters, negatives=negatives)
    batch_tiles, width_tiles = ceil(global_batch, tile.batch), ceil(dim, tile.width)
    # The sums so far take registers besides.
    product_width = tile.width if into is None else min(tile.width, 128)
    launch = {"num_warps": tile.warps, "num_stages": tile.stages}

    # Whole tiles, whatever G is: written and read without a mask.
    pitch = batch_tiles * tile.batch
    chunk = _chunk_size(count, pitch, subcenters, embeddings.dtype.itemsize)
    coefficients = embeddings.new_empty(chunk * subcenters, pitch)
    along = log_partition.new_empty(ceil(dim, product_width), count * subcenters)
    sums = None
    if negatives.threshold is not None:
        sums = log_partition.new_empty(batch_tiles, ceil(count, tile.classes))
    # Programs that share a tile of the embeddings' gradient each add to a slice of their own, which
    # every chunk reads and writes: no more of them than fill the GPU.
    grad_tiles = ceil(pitch, tile.block) * width_tiles
    splits = min(ceil(chunk * subcenters, tile.depth), max(1, processors // grad_tiles))
    partial_grads = log_partition.new_empty(splits, global_batch, dim)

    log2_e = math.log2(math.e)
    shift = log_partition * log2_e - math.log2(gain)
    gained_target = gain * target
    for start in range(0, count, chunk):
        classes = min(chunk, count - start)
        columns = classes * subcenters
        first, last = start * subcenters, start * subcenters + columns
        class_kernel_code.coefficients_kernel[(batch_tiles, ceil(classes, tile.classes))](
            embeddings,
            unit,
            positions,
            *_masks(groups, negatives),
            shift,
            gained_target,
            target_subcenter,
            coefficients,
            sums,
            global_batch,
            count,
            start,
            pitch,
            scale * log2_e,
            D=dim,
            K=subcenters,
            BLOCK_C=tile.classes,
            BLOCK_G=tile.batch,
            BLOCK_D=tile.depth,
            **launch,
        )
        class_kernel_code.embedding_grad_kernel[(width_tiles, ceil(pitch, tile.block), splits)](
            coefficients,
            unit[first:last],
            partial_grads,
            global_batch,
            pitch,
            columns,
            D=dim,
            ACCUMULATE=start > 0,
            BLOCK_M=tile.block,
            BLOCK_N=tile.width,
            BLOCK_K=tile.depth,
            **launch,
        )
        class_kernel_code.product_kernel[(len(along), ceil(columns, tile.block))](
            coefficients,
            embeddings,
            unit[first:last],
            (unit if into is None else into)[first:last],
            along[:, first:],
            global_batch,
            pitch,
            columns,
            count * subcenters,
            D=dim,
            ACCUMULATE=into is not None,
            BLOCK_M=tile.block,
            BLOCK_N=product_width,
            BLOCK_K=tile.depth,
            **launch,
        )
    return partial_grads.sum(0), along.sum(0), None if sums is None else sums.sum()


def _chunk_size(count: int, pitch: int, subcenters: int, itemsize: int) -> int:
    """Classes whose coefficients are held at once: a multiple of every tile, where not all S."""
    fits = _SCRATCH_BYTES // (pitch * subcenters * itemsize)
    fits = max(_MIN_CHUNK, min(fits, _MAX_CHUNK // subcenters))
    return min(count, fits // 128 * 128)


def _sum_fits(scale_log2: float, count: int, negatives: Negatives) -> bool:
    """Whether a row's exponentials add up in float32 as they are, the largest and the smallest.

    Cosines are bounded, so for a scale of 64, and of no more than 73 with a million classes, they
    do; CurricularFace doubles them.
    """
    largest = scale_log2 * _LARGEST_COSINE
    return negatives.hard_above is None and largest + math.log2(count) < 126


def _masks(
    groups: tuple[Tensor, Tensor] | None, negatives: Negatives
) -> tuple[Tensor | float | None, ...]:
    """What decides about the negatives, in the kernels' order; None: compiled without it."""
    filter_above = negatives.filter_above if negatives.filter_above < math.inf else None
    threshold = None if negatives.threshold is None else negatives.threshold.value
    hooks = (filter_above, negatives.hard_above, negatives.easing, threshold)
    return *(groups or (None, None)), *hooks
