"""The device code of class_kernels.py, which launches it and says what every argument is.

A kernel's arguments are pointers, named as the tensors are, then numbers; None compiles the kernel
without what it would decide. Upper-case numbers are sizes. Without triton the module still imports.
"""

from __future__ import annotations

from heads.passes.kernels.kernel_launch import jit, tl


@jit
def _load(pointers, d, D: tl.constexpr, BLOCK: tl.constexpr):
    """Values at dimensions d, 0 past the last; without a mask where blocks divide D."""
    mask = None if D % BLOCK == 0 else d < D
    other = None if D % BLOCK == 0 else 0.0
    return tl.load(pointers, mask=mask, other=other)


@jit
def _cosines(
    embeddings,
    unit,
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
    them takes few registers. Out of range the last row or class is repeated: the loads then need no
    mask.
    """
    left = embeddings + (tl.minimum(i, G - 1) * D)[:, None]
    right = unit + ((tl.minimum(j, S - 1).to(tl.int64) * K + k) * D)[None, :]
    cosine = tl.zeros((BLOCK_G, BLOCK_C), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        e = _load(left + d[None, :], d[None, :], D, BLOCK_D)
        w = _load(right + d[:, None], d[:, None], D, BLOCK_D)
        cosine = tl.dot(e, w, cosine)
    return cosine


@jit
def _bend(cosine, filter_above, hard_above, easing, threshold, scale_log2, i, G):
    """heads.negatives.Negatives.bend: bent cosines, and slopes.

    NaN stays: `a > b` is false for it.
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
    return bent, slope


@jit
def _seen(column_groups, row_groups, j, i, S, G):
    """Which classes count for which rows; (BLOCK_G, BLOCK_C)."""
    column = tl.load(column_groups + j, mask=j < S, other=-2)[None, :]
    row = tl.load(row_groups + i, mask=i < G, other=-2)[:, None]
    return (column == -1) | ((column == row) & (column != -2))


@jit
def logsumexp_kernel(
    embeddings,
    unit,
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
    BOUNDED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Log-sum-exp of one batch tile over every n-th tile of classes, n programs beside each other.

    Neighbors in the grid's first axis read the same centers at the same time, from L2. In powers of
    two, as the hardware's exponential is.

    Args:
        partial: (n, G), which the host combines.
        BOUNDED: the sum of the exponentials fits in float32 as it is, whatever the cosines are: no
            running maximum is kept.
    """
    i = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    own = tl.load(positions + i, mask=i < G, other=-1).to(tl.int32)
    # Finite, so that -inf may be subtracted from it and from itself.
    largest = tl.full((BLOCK_G,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(S, BLOCK_C), tl.num_programs(1)):
        j = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        cosine = _cosines(embeddings, unit, j, 0, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D)
        for k in range(1, K):
            other = _cosines(embeddings, unit, j, k, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D)
            # tl.maximum would drop NaN.
            cosine = tl.where((other > cosine) | (other != other), other, cosine)
        bent, _ = _bend(cosine, filter_above, hard_above, easing, threshold, scale_log2, i, G)
        # What is past the last class is left out in the multiplication's own addition.
        logit = bent * scale_log2 + tl.where(j < S, 0.0, float("-inf"))[None, :]
        logit = tl.where(own[:, None] == j[None, :], float("-inf"), logit)
        if column_groups is not None:
            logit = tl.where(_seen(column_groups, row_groups, j, i, S, G), logit, float("-inf"))
        if BOUNDED:
            total += tl.sum(tl.exp2(logit), 1)
        else:
            # Whether or not these maxima keep a NaN, the sum does.
            peak = tl.maximum(largest, tl.max(logit, 1))
            total = total * tl.exp2(largest - peak) + tl.sum(tl.exp2(logit - peak[:, None]), 1)
            largest = peak
    natural = tl.log2(total) * 0.6931471805599453  # ln 2
    if not BOUNDED:
        natural += largest * 0.6931471805599453
    tl.store(partial + tl.program_id(1) * G + i, natural, mask=i < G)


@jit
def coefficients_kernel(
    embeddings,
    unit,
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
    sums,
    G,
    S,
    start,
    pitch,
    scale_log2,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of the coefficients of a chunk, which begins at class `start`.

    Args:
        coefficients: (columns of a chunk, pitch), class-major; the pitch is whole tiles, and
            becomes 0 past the batch.
        sums: (batch tiles, tiles of all classes), of each tile without the rows' own classes.
    """
    i = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    slot = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    j = start + slot
    own = tl.load(positions + i, mask=i < G, other=-1).to(tl.int32)
    own_place = tl.load(target_subcenter + i, mask=i < G, other=0).to(tl.int32)

    # The one sub-center of a class that has a coefficient: the largest.
    cosine = _cosines(embeddings, unit, j, 0, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D)
    place = tl.zeros((BLOCK_G, BLOCK_C), tl.int32)
    for k in range(1, K):
        other = _cosines(embeddings, unit, j, k, i, G, S, D, K, BLOCK_C, BLOCK_G, BLOCK_D)
        better = (other > cosine) | (other != other)
        cosine = tl.where(better, other, cosine)
        place = tl.where(better, k, place)

    # Past the last row everything is shifted to 0; what is past the last class is not stored.
    offset = tl.load(shift + i, mask=i < G, other=float("inf"))[:, None]
    bent, slope = _bend(cosine, filter_above, hard_above, easing, threshold, scale_log2, i, G)
    value = tl.exp2(bent * scale_log2 - offset)
    if hard_above is not None or threshold is not None:
        value *= slope
    if column_groups is not None:
        value = tl.where(_seen(column_groups, row_groups, j, i, S, G), value, 0.0)
    value = value.to(embeddings.dtype.element_ty)
    if sums is not None:
        counts = (own[:, None] != j[None, :]) & (j < S)[None, :]
        total = tl.sum(tl.sum(tl.where(counts, value.to(tl.float32), 0.0), 1), 0)
        tile = start // BLOCK_C + tl.program_id(1)
        tl.store(sums + tl.program_id(0) * tl.cdiv(S, BLOCK_C) + tile, total)

    stored = coefficients + (slot.to(tl.int64) * (K * pitch))[None, :] + i[:, None]
    for k in range(K):
        tl.store(stored + k * pitch, tl.where(place == k, value, 0.0), mask=(j < S)[None, :])

    # The row's own class has one sub-center with a coefficient, too, put over what was just stored.
    slot = own - start
    here = (slot >= tl.program_id(1) * BLOCK_C) & (slot < (tl.program_id(1) + 1) * BLOCK_C)
    tl.debug_barrier()
    own_value = tl.load(target + i, mask=here, other=0.0).to(value.dtype)
    stored = coefficients + slot.to(tl.int64) * (K * pitch) + i
    for k in range(K):
        tl.store(stored + k * pitch, tl.where(own_place == k, own_value, 0.0), mask=here)


@jit
def product_kernel(
    coefficients,
    embeddings,
    unit,
    product,
    along,
    G,
    pitch,
    columns,
    all_columns,
    D: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of a chunk's center gradients: (columns, G) coefficients · (G, D) embeddings.

    Args:
        product: may be `unit`, as each program reads its own tile of that before it writes.
        along: (width tiles, all_columns), the tile's part of the gradient along the unit center,
            without what was there before.
    """
    d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    jk = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Past the end the last row is repeated: the pitch's padding is 0, other rows are not stored.
    left = coefficients + (tl.minimum(jk, columns - 1).to(tl.int64) * pitch)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, G, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        c = tl.load(left + i[None, :])
        right = embeddings + (tl.minimum(i, G - 1) * D)[:, None] + d[None, :]
        total = tl.dot(c, _load(right, d[None, :], D, BLOCK_N), total)
    inside = jk < columns
    at = (jk.to(tl.int64) * D)[:, None] + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    if ACCUMULATE:
        stored = total + tl.load(product + at, mask=mask, other=0.0)
    else:
        # What is kept is rounded: where that overflows, the sum shows it.
        stored = total.to(product.dtype.element_ty)
        total = stored.to(tl.float32)
    w = tl.load(unit + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(along + tl.program_id(0) * all_columns + jk, tl.sum(total * w, 1), mask=inside)
    tl.store(product + at, stored, mask=mask)


@jit
def embedding_grad_kernel(
    coefficients,
    unit,
    partial,
    G,
    pitch,
    columns,
    D: tl.constexpr,
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
    out = partial + ((tl.program_id(2) * G + i).to(tl.int64) * D)[:, None] + d[None, :]
    mask = (i < G)[:, None] & (d < D)[None, :]
    if ACCUMULATE:
        total = tl.load(out, mask=mask, other=0.0)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in range(tl.program_id(2), tl.cdiv(columns, BLOCK_K), tl.num_programs(2)):
        jk = tile * BLOCK_K + tl.arange(0, BLOCK_K)
        right = unit + (tl.minimum(jk, columns - 1).to(tl.int64) * D)[:, None] + d[None, :]
        left = coefficients + (jk.to(tl.int64) * pitch)[:, None] + i[None, :]
        c = tl.load(left, mask=(jk < columns)[:, None], other=0.0)
        total = tl.dot(tl.trans(c), _load(right, d[None, :], D, BLOCK_N), total)
    tl.store(out, total, mask=mask)
