"""The two passes over the class centers and their update, as Triton kernels for NVIDIA GPUs.

What heads.passes.cosine_softmax does with matrix products on chunks of classes is done here on
tiles that stay in registers: the logits reach no memory at all, the coefficients only for a chunk
of classes.

G is the global batch, D the embedding size, S the classes taking part, K the sub-centers a class;
jk = j·K + k counts the S·K sub-centers. Every function here takes

    embeddings: (G, D) float16 or bfloat16, of unit length; its dtype is what the products read.
    centers: (n, K·D) float32, contiguous, not normalized; sub-center k is columns k·D:(k+1)·D.
    rows: (S,) int64 distinct rows of `centers`, or None for all n of them.
    positions: (G,) int64, the slot in 0..S-1 of each sample's own class, -1: not here.
    groups: None, or (S,) int32 and (G,) int32: class j counts for row i where the class's number
        equals the row's or is EVERYONE (-1), never where it is NOBODY (-2).

on one CUDA device. Shapes are static, the host waits for nothing, and no sum depends on which
program ends first: a step is the same bits at every run and can be captured in a CUDA graph, after
one step outside of it, in which Triton compiles.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heads.negatives import Negatives
from heads.passes import kernel_code

# Coefficients of a chunk of classes: enough tiles to fill a GPU, a fraction of its memory.
_SCRATCH_BYTES = 32 << 20
# With very large batches the scratch may grow instead; with tiny ones the grid must not.
_MIN_CHUNK, _MAX_CHUNK = 1 << 10, 1 << 18
_MAX_DIM = 1024


class Tiles(NamedTuple):
    """Block sizes of the matrix products: powers of two, at least 16.

    Attributes:
        batch, classes, depth: of the cosine tiles, (batch, classes) with D read in steps of
            `depth`.
        block, width: of the two gradient products' tiles, (block, width) with `width` columns of D
            and a step of `depth` along the sum.
    """

    batch: int
    classes: int
    depth: int
    block: int
    width: int
    warps: int
    stages: int


def tiles(capability: tuple[int, int] | None, embedding_dim: int) -> Tiles:
    """The one table of block sizes.

    Cosines: 128 x 64 sums are 32 registers in each of 256 threads, and with all that happens to a
    cosine 128 suffice, so that of two programs on a multiprocessor one can multiply while the other
    takes exponentials. (Several sub-centers keep the best cosine and its place besides: one program
    then, still without spills.) A step of the sum reads depth · (128 · 2 + 64 · 4) bytes, as an
    embedding is half precision and a center float32. Gradients: no such epilogue, so full squares.
    Shared memory: 227 KiB on sm_90, where a deeper step feeds its wider tensor-core instructions;
    99 KiB or more on the others.

    Args:
        capability: of the CUDA device, None for the interpreter.
    """
    if capability is None:
        size = Tiles(batch=16, classes=16, depth=16, block=16, width=16, warps=1, stages=1)
    else:
        depth = 64 if capability[0] == 9 else 32
        size = Tiles(128, 64, depth, block=128, width=128, warps=8, stages=3)
    fits = max(16, 1 << (embedding_dim - 1).bit_length())
    return size._replace(depth=min(size.depth, fits), width=min(size.width, fits))


def available(device: torch.device, embedding_dim: int, compute_dtype: torch.dtype) -> str | None:
    """None where these kernels can be used, else in words why not.

    Triton has left out the tensor cores before Ampere since its version 3.3. PyTorch's products use
    a T4's, so they are the better choice there.
    """
    triton = kernel_code.triton
    if triton is None:
        return "triton is not installed"
    if compute_dtype not in (torch.float16, torch.bfloat16):
        kind = str(compute_dtype).removeprefix("torch.")
        return f"the head computes in {kind}, triton's kernels in 16 bits"
    if embedding_dim > _MAX_DIM:
        return f"embeddings of more than {_MAX_DIM} dimensions go through PyTorch"
    if not isinstance(kernel_code.logsumexp_kernel, triton.runtime.JITFunction):
        if device.type != "cpu":
            return "triton interprets its kernels in this process, on the CPU only"
        if compute_dtype == torch.bfloat16:
            return "triton's interpreter takes the bits of bfloat16 for integers in products"
        return None
    if torch.get_device_module(device) is not torch.cuda or torch.version.hip is not None:
        return f"the kernels are for NVIDIA GPUs, the head is on {device}"
    if not (os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))):
        return "triton needs a C compiler, and there is neither cc nor gcc nor clang"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"triton has no tensor cores on compute capability {major}.{minor}, only from 8.0 on"
    return None


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be the first argument's."""

    @functools.wraps(function)
    def launch(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(first):
            return function(first, *args, **kwargs)

    return launch


@_on_its_device
def inverse_norms(centers: Tensor, rows: Tensor | None, *, subcenters: int) -> Tensor:
    """(S·K,) float32 reciprocal lengths of the sub-centers, 0 for those of zeros."""
    count, dim = _class_count(centers, rows), centers.shape[1] // subcenters
    inverse = centers.new_empty(count * subcenters)
    if count > 0:
        block = _row_block(dim)
        kernel_code.inverse_norms_kernel[(_ceil(inverse.numel(), block["BLOCK_R"]),)](
            centers, rows, inverse, inverse.numel(), D=dim, K=subcenters, **block
        )
    return inverse


@_on_its_device
def negative_logsumexp(
    embeddings: Tensor,
    centers: Tensor,
    inverse: Tensor,
    *,
    rows: Tensor | None,
    positions: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    negatives: Negatives,
    scale: float,
    subcenters: int,
) -> Tensor:
    """First pass: (G,) float32 log-sum-exp of scale · cosine over the visible negatives.

    The row's own class is not among them; -inf where there are none. A class's cosine is the
    largest of its sub-centers', bent by `negatives`.

    Args:
        inverse: from `inverse_norms`.
    """
    global_batch, dim = embeddings.shape
    count = _class_count(centers, rows)
    if count == 0:
        return embeddings.new_full((global_batch,), -math.inf, dtype=torch.float32)
    capability, processors = _hardware(embeddings.device)
    tile = tiles(capability, dim)
    batch_tiles = _ceil(global_batch, tile.batch)
    splits = min(_ceil(count, tile.classes), _ceil(2 * processors, batch_tiles))
    partial = inverse.new_empty(splits, global_batch)
    kernel_code.logsumexp_kernel[(batch_tiles, splits)](
        embeddings,
        centers,
        inverse,
        rows,
        positions,
        *_masks(groups, negatives),
        partial,
        global_batch,
        count,
        scale * math.log2(math.e),
        D=dim,
        K=subcenters,
        BLOCK_C=tile.classes,
        BLOCK_G=tile.batch,
        BLOCK_D=tile.depth,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return partial.logsumexp(0)


@_on_its_device
def gradients(
    embeddings: Tensor,
    centers: Tensor,
    inverse: Tensor,
    *,
    rows: Tensor | None,
    positions: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    negatives: Negatives,
    scale: float,
    subcenters: int,
    log_partition: Tensor,
    target: Tensor,
    target_subcenter: Tensor,
    gain: float,
    product: Tensor,
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Second pass: the coefficients of the cosines, and their products with both sides.

    The coefficient c of row i and sub-center jk is
        gain · exp(scale · bent_ij - log_partition_i) · slope_ij, visible class, not the row's own,
            at its first largest sub-center,
        gain · target_i at the row's own class and sub-center target_subcenter_i,
        0 elsewhere,
    narrowed to the compute dtype, where it may overflow to inf and so show in `reach`.

    Args:
        log_partition, target: (G,) float32.
        target_subcenter: (G,) int64 in 0..K-1.
        product: (S·K, D), receives Σ_i c · e_i, which is added to what it holds if `accumulate`; of
            the compute dtype or float32.

    Returns:
        Σ_jk c · ŵ_jk, (G, D) float32 with ŵ the unit centers, then Σ_i c · cosine and Σ_i |c|,
        both (S·K,) float32.
    """
    global_batch, dim = embeddings.shape
    count = _class_count(centers, rows)
    sums = inverse.new_empty(2, count * subcenters)
    if count == 0:
        return inverse.new_zeros(global_batch, dim), sums[0], sums[1]
    capability, processors = _hardware(embeddings.device)
    tile = tiles(capability, dim)
    batch_tiles, width_tiles = _ceil(global_batch, tile.batch), _ceil(dim, tile.width)
    launch = {"num_warps": tile.warps, "num_stages": tile.stages}

    # Rows padded to 16 values, whatever G is: aligned, and read without a mask inside.
    pitch = 16 * _ceil(global_batch, 16)
    chunk = _chunk_size(count, pitch, subcenters, embeddings.dtype.itemsize)
    coefficients = embeddings.new_empty(chunk * subcenters, pitch)
    partial_sums = inverse.new_empty(batch_tiles, 2, chunk * subcenters)
    # Programs that share a tile of the embeddings' gradient each add to a slice of their own.
    grad_tiles = _ceil(global_batch, tile.block) * width_tiles
    splits = min(_ceil(chunk * subcenters, tile.depth), _ceil(2 * processors, grad_tiles))
    partial_grads = inverse.new_empty(splits, global_batch, dim)

    log2_e = math.log2(math.e)
    shift = log_partition * log2_e - math.log2(gain)
    gained_target = gain * target
    for start in range(0, count, chunk):
        classes = min(chunk, count - start)
        columns = classes * subcenters
        first, last = start * subcenters, start * subcenters + columns
        kernel_code.coefficients_kernel[(batch_tiles, _ceil(classes, tile.classes))](
            embeddings,
            centers,
            inverse,
            rows,
            positions,
            *_masks(groups, negatives),
            shift,
            gained_target,
            target_subcenter,
            coefficients,
            partial_sums,
            global_batch,
            count,
            start,
            pitch,
            chunk * subcenters,
            scale * log2_e,
            D=dim,
            K=subcenters,
            BLOCK_C=tile.classes,
            BLOCK_G=tile.batch,
            BLOCK_D=tile.depth,
            **launch,
        )
        torch.sum(partial_sums[:, :, :columns], 0, out=sums[:, first:last])
        kernel_code.product_kernel[(width_tiles, _ceil(columns, tile.block))](
            coefficients,
            embeddings,
            product[first:last],
            global_batch,
            pitch,
            columns,
            D=dim,
            ACCUMULATE=accumulate,
            BLOCK_M=tile.block,
            BLOCK_N=tile.width,
            BLOCK_K=tile.depth,
            **launch,
        )
        kernel_code.embedding_grad_kernel[(width_tiles, _ceil(global_batch, tile.block), splits)](
            coefficients,
            centers,
            inverse,
            rows,
            partial_grads,
            global_batch,
            pitch,
            start,
            columns,
            D=dim,
            K=subcenters,
            ACCUMULATE=start > 0,
            BLOCK_M=tile.block,
            BLOCK_N=tile.width,
            BLOCK_K=tile.depth,
            **launch,
        )
    return partial_grads.sum(0), sums[0], sums[1]


@_on_its_device
def update_rows(
    centers: Tensor,
    velocity: Tensor | None,
    *,
    rows: Tensor | None,
    product: Tensor,
    pull: Tensor,
    drift: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    apply: Tensor,
    active: Tensor | None,
) -> None:
    """Momentum SGD on the rows that take part, in place; the others are not touched.

    v = momentum · v + pull · product + (drift + weight_decay) · w;  w -= lr · v

    Where `apply` or a class's `active` is false the class's row and velocity keep their bits.

    Args:
        velocity: (n, K·D) float32; None: there is no momentum.
        product: (S·K, D).
        pull, drift: (S·K,) float32.
        lr: 0-d float32.
        apply: 0-d bool.
        active: (S,) bool, or None for all.
    """
    columns, dim = product.shape
    if columns > 0:
        block = _row_block(dim)
        kernel_code.update_kernel[(_ceil(columns, block["BLOCK_R"]),)](
            centers,
            velocity,
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
            K=centers.shape[1] // dim,
            **block,
        )


def _class_count(centers: Tensor, rows: Tensor | None) -> int:
    return centers.shape[0] if rows is None else rows.shape[0]


def _chunk_size(count: int, pitch: int, subcenters: int, itemsize: int) -> int:
    """Classes whose coefficients are held at once: a multiple of every tile, where not all S."""
    fits = _SCRATCH_BYTES // (pitch * subcenters * itemsize)
    fits = max(_MIN_CHUNK, min(fits, _MAX_CHUNK // subcenters))
    return min(count, fits // 128 * 128)


def _row_block(dim: int) -> dict[str, int]:
    """Whole sub-centers, 16 values a thread."""
    width = max(16, 1 << (dim - 1).bit_length())
    return {"BLOCK_R": max(1, 2048 // width), "BLOCK_D": width, "num_warps": 4}


def _hardware(device: torch.device) -> tuple[tuple[int, int] | None, int]:
    """Compute capability and multiprocessors; None and 2 where kernels are interpreted."""
    if device.type == "cpu":
        return None, 2
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor), properties.multi_processor_count


def _masks(
    groups: tuple[Tensor, Tensor] | None, negatives: Negatives
) -> tuple[Tensor | float | None, ...]:
    """What decides about the negatives, in the kernels' order; None: compiled without it."""
    filter_above = negatives.filter_above if negatives.filter_above < math.inf else None
    threshold = None if negatives.threshold is None else negatives.threshold.value
    hooks = (filter_above, negatives.hard_above, negatives.easing, threshold)
    return *(groups or (None, None)), *hooks


def _ceil(number: int, block: int) -> int:
    return -(-number // block)
