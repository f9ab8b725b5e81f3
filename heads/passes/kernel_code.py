"""The device code of heads.passes.kernels, which launches it and says what every argument is.

A kernel's arguments are pointers, named as the tensors are, then numbers; None compiles the kernel
without what it would decide. Upper-case numbers are sizes. Without triton the module still imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def _jit(function: Callable[..., None]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _row(rows, j, inside):
    """(n,) int64 rows of the centers at slots j; wide, as a row's offset may pass 2^31."""
    row = j.to(tl.int64)
    if rows is not None:
        row = tl.load(rows + j, mask=inside, other=0)
    return row


@_jit
def _cosines(
    embeddings,
    centers,
    inverse,
    row,
    j,
    k,
    i,
    G,
    S,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(BLOCK_G, BLOCK_C) float32 cosines of batch rows i to sub-center k of classes j.

    The batch is on the left, so that a thread holds few of its rows, and what is kept for each of
    them takes few registers. Out of range is 0.
    """
    length = tl.load(inverse + j * K + k, mask=j < S, other=0.0)  # (BLOCK_C,)
    left = embeddings + (i * D)[:, None]
    right = centers + (row * (K * D) + k * D)[None, :]
    cosine = tl.zeros((BLOCK_G, BLOCK_C), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        e = tl.load(left + d[None, :], mask=(i < G)[:, None] & (d < D)[None, :], other=0.0)
        w = tl.load(right + d[:, None], mask=(d < D)[:, None] & (j < S)[None, :], other=0.0)
        cosine = tl.dot(e, (w * length[None, :]).to(e.dtype), cosine)
    return cosine


@_jit
def _negatives(
    cosine,
    column_groups,
    row_groups,
    filter_above,
    hard_above,
    easing,
    threshold,
    scale_log2,
    j,
    i,
    G,
    S,
    own,
):
    """Bent cosines, their slopes, and which of them count; all (BLOCK_G, BLOCK_C).

    heads.negatives.Negatives.bend, and the groups. NaN stays and counts: `a > b` is false for it.
    """
    bent = cosine
    slope = tl.full(cosine.shape, 1.0, tl.float32)
    if hard_above is not None:
        ease = tl.load(easing).to(tl.float32)
        limit = tl.load(hard_above + i, mask=i < G, other=0.0)
        hard = cosine > limit[:, None]
        bent = tl.where(hard, cosine * (ease + cosine), cosine)
        slope = tl.where(hard, ease + 2 * cosine, 1.0)
    if threshold is not None:
        # In powers of two. Far below 0 the logarithm of the softplus comes from its series.
        value = tl.load(threshold).to(tl.float32) * 1.4426950408889634  # log2(e)
        logit = cosine * scale_log2 - value
        power = tl.exp2(-tl.abs(logit))
        soft = tl.maximum(logit, 0.0) + tl.log2(1 + power)
        series = 1 - power * (0.5 - power * (0.3333333333333333 - power * 0.25))
        far = logit < -6.0
        bent = tl.where(far, logit + tl.log2(series), tl.log2(soft * 0.6931471805599453))
        bent = bent / scale_log2
        share = tl.where(logit < 0, power, 1.0) / (1 + power)
        slope = tl.where(far, 1 / ((1 + power) * series), share / (soft * 0.6931471805599453))
    if filter_above is not None:
        bent = tl.where(cosine > filter_above, float("-inf"), bent)
    counts = (i < G)[:, None] & (j < S)[None, :] & (own[:, None] != j[None, :])
    if column_groups is not None:
        column = tl.load(column_groups + j, mask=j < S, other=-2)[None, :]
        row = tl.load(row_groups + i, mask=i < G, other=-2)[:, None]
        counts = counts & ((column == -1) | ((column == row) & (column != -2)))
    return bent, slope, counts


@_jit
def inverse_norms_kernel(
    centers,
    rows,
    inverse,
    columns,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Reciprocal lengths of BLOCK_R whole sub-centers a program."""
    jk = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = jk < columns
    at = (_row(rows, jk // K, inside) * (K * D) + jk % K * D)[:, None] + d[None, :]
    w = tl.load(centers + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    norm = tl.sqrt(tl.sum(w * w, 1))
    # Below the smallest normal float32 a row counts as zeros; NaN is not below it.
    tl.store(inverse + jk, tl.where(norm < 1.1754944e-38, 0.0, 1.0 / norm), mask=inside)


@_jit
def logsumexp_kernel(
    embeddings,
    centers,
    inverse,
    rows,
    positions,
    column_groups,
    row_groups,
    filter_above,
    hard_above,
    easing,
    threshold,
    partial,
    G,
    S,
    scale_log2,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Log-sum-exp of one batch tile over every n-th tile of classes, n programs beside each other.

    Neighbors in the grid's first axis read the same centers at the same time, from L2. In powers of
    two, as the hardware's exponential is.

    Args:
        partial: (n, G), which the host combines.
    """
    i = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    own = tl.load(positions + i, mask=i < G, other=-1).to(tl.int32)
    # Finite, so that -inf may be subtracted from it and from itself.
    largest = tl.full((BLOCK_G,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(S, BLOCK_C), tl.num_programs(1)):
        j = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        row = _row(rows, j, j < S)
        cosine = _cosines(
            embeddings, centers, inverse, row, j, 0, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D
        )
        for k in range(1, K):
            other = _cosines(
                embeddings, centers, inverse, row, j, k, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D
            )
            # tl.maximum would drop NaN.
            cosine = tl.where((other > cosine) | (other != other), other, cosine)
        bent, _, counts = _negatives(
            cosine,
            column_groups,
            row_groups,
            filter_above,
            hard_above,
            easing,
            threshold,
            scale_log2,
            j,
            i,
            G,
            S,
            own,
        )
        logit = tl.where(counts, bent * scale_log2, float("-inf"))
        # Whether or not these maxima keep a NaN, the sum does.
        peak = tl.maximum(largest, tl.max(logit, 1))
        total = total * tl.exp2(largest - peak) + tl.sum(tl.exp2(logit - peak[:, None]), 1)
        largest = peak
    natural = (largest + tl.log2(total)) * 0.6931471805599453  # ln 2
    tl.store(partial + tl.program_id(1) * G + i, natural, mask=i < G)


@_jit
def coefficients_kernel(
    embeddings,
    centers,
    inverse,
    rows,
    positions,
    column_groups,
    row_groups,
    filter_above,
    hard_above,
    easing,
    threshold,
    shift,
    target,
    target_subcenter,
    coefficients,
    partial,
    G,
    S,
    start,
    pitch,
    chunk_columns,
    scale_log2,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of the coefficients of a chunk, which begins at class `start`, and its two sums.

    Args:
        coefficients: (chunk_columns, pitch), class-major; the pitch's padding becomes 0.
        partial: (batch tiles, 2, chunk_columns), Σ c · cosine and Σ |c| over the tile's batch rows,
            of the narrowed coefficients: what the products read.
    """
    i = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    slot = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    j = start + slot
    row = _row(rows, j, j < S)
    own = tl.load(positions + i, mask=i < G, other=-1).to(tl.int32)
    is_own = own[:, None] == j[None, :]
    own_place = tl.load(target_subcenter + i, mask=i < G, other=0).to(tl.int32)[:, None]

    # The one sub-center of a class that has a coefficient: the largest, or the own class's target.
    cosine = _cosines(
        embeddings, centers, inverse, row, j, 0, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D
    )
    place = tl.zeros((BLOCK_G, BLOCK_C), tl.int32)
    for k in range(1, K):
        other = _cosines(
            embeddings, centers, inverse, row, j, k, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D
        )
        better = tl.where(is_own, own_place == k, (other > cosine) | (other != other))
        cosine = tl.where(better, other, cosine)
        place = tl.where(better, k, place)

    bent, slope, counts = _negatives(
        cosine,
        column_groups,
        row_groups,
        filter_above,
        hard_above,
        easing,
        threshold,
        scale_log2,
        j,
        i,
        G,
        S,
        own,
    )
    offset = tl.load(shift + i, mask=i < G, other=0.0)[:, None]
    own_value = tl.load(target + i, mask=i < G, other=0.0)[:, None]
    value = tl.where(counts, tl.exp2(bent * scale_log2 - offset) * slope, 0.0)
    value = tl.where(is_own, own_value, value).to(embeddings.dtype.element_ty)
    read = value.to(tl.float32)

    inside = j < S
    sums = partial + tl.program_id(0) * 2 * chunk_columns + slot * K
    stored = coefficients + (slot.to(tl.int64) * (K * pitch))[None, :] + i[:, None]
    for k in range(K):
        here = place == k
        kept = tl.where(here, read, 0.0)
        tl.store(sums + k, tl.sum(tl.where(here, read * cosine, 0.0), 0), mask=inside)
        tl.store(sums + chunk_columns + k, tl.sum(tl.abs(kept), 0), mask=inside)
        tl.store(
            stored + k * pitch,
            kept.to(value.dtype),
            mask=(i < pitch)[:, None] & inside[None, :],
        )


@_jit
def product_kernel(
    coefficients,
    embeddings,
    product,
    G,
    pitch,
    columns,
    D: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of a chunk's center gradients: (columns, G) coefficients · (G, D) embeddings."""
    d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    jk = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    left = coefficients + (jk.to(tl.int64) * pitch)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, G, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        c = tl.load(
            left + i[None, :], mask=(jk < columns)[:, None] & (i < pitch)[None, :], other=0.0
        )
        e = tl.load(
            embeddings + (i * D)[:, None] + d[None, :],
            mask=(i < G)[:, None] & (d < D)[None, :],
            other=0.0,
        )
        total = tl.dot(c, e, total)
    out = product + (jk.to(tl.int64) * D)[:, None] + d[None, :]
    mask = (jk < columns)[:, None] & (d < D)[None, :]
    if ACCUMULATE:
        total += tl.load(out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out, total.to(product.dtype.element_ty), mask=mask)


@_jit
def embedding_grad_kernel(
    coefficients,
    centers,
    inverse,
    rows,
    partial,
    G,
    pitch,
    start,
    columns,
    D: tl.constexpr,
    K: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A chunk's share of the embeddings' gradient: coefficients, transposed, · unit centers.

    One tile over every n-th tile of sub-centers, n programs beside each other, each with a slice
    of its own in partial, (n, G, D) float32, so that the order of the sum is fixed.
    """
    d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(tl.program_id(2), tl.cdiv(columns, BLOCK_K), tl.num_programs(2)):
        jk = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = jk < columns
        row = _row(rows, start + jk // K, inside)
        length = tl.load(inverse + start * K + jk, mask=inside, other=0.0)
        w = tl.load(
            centers + (row * (K * D) + jk % K * D)[:, None] + d[None, :],
            mask=inside[:, None] & (d < D)[None, :],
            other=0.0,
        )
        c = tl.load(
            coefficients + (jk.to(tl.int64) * pitch)[:, None] + i[None, :],
            mask=inside[:, None] & (i < pitch)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.trans(c), (w * length[:, None]).to(c.dtype), total)
    out = partial + ((tl.program_id(2) * G + i).to(tl.int64) * D)[:, None] + d[None, :]
    mask = (i < G)[:, None] & (d < D)[None, :]
    if ACCUMULATE:
        total += tl.load(out, mask=mask, other=0.0)
    tl.store(out, total, mask=mask)


@_jit
def update_kernel(
    centers,
    velocity,
    rows,
    product,
    pull,
    drift,
    active,
    apply,
    lr,
    momentum,
    weight_decay,
    columns,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The step of BLOCK_R whole sub-centers; where it does not apply nothing is read or written."""
    jk = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    # apply is 0 or 1.
    moves = jk < columns * tl.load(apply).to(tl.int32)
    row = _row(rows, jk // K, moves)
    if active is not None:
        moves = moves & (tl.load(active + jk // K, mask=moves, other=0) != 0)
    mask = moves[:, None] & (d < D)[None, :]
    at = (row * (K * D) + jk % K * D)[:, None] + d[None, :]
    w = tl.load(centers + at, mask=mask, other=0.0)
    gradient = tl.load(
        product + (jk.to(tl.int64) * D)[:, None] + d[None, :], mask=mask, other=0.0
    ).to(tl.float32)
    pulled = tl.load(pull + jk, mask=moves, other=0.0)[:, None] * gradient
    decayed = (tl.load(drift + jk, mask=moves, other=0.0) + weight_decay)[:, None] * w
    v = pulled
    if velocity is not None:
        v = momentum * tl.load(velocity + at, mask=mask, other=0.0) + pulled
    v += decayed
    if velocity is not None:
        tl.store(velocity + at, v, mask=mask)
    tl.store(centers + at, w - tl.load(lr) * v, mask=mask)
