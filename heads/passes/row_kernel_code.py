"""The device code of heads.passes.row_kernels, as heads.passes.kernel_code is that of kernels."""

from __future__ import annotations

from heads.passes.kernel_launch import jit, tl


@jit
def _row(rows, j, inside):
    """(n,) int64 rows of the centers at slots j; wide, as a row's offset may pass 2^31."""
    row = j.to(tl.int64)
    if rows is not None:
        row = tl.load(rows + j, mask=inside, other=0)
    return row


@jit
def unit_rows_kernel(
    centers,
    rows,
    unit,
    inverse,
    columns,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_R whole sub-centers a program: their reciprocal lengths, and the rows times these."""
    jk = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = jk < columns
    mask = inside[:, None] & (d < D)[None, :]
    at = (_row(rows, jk // K, inside) * (K * D) + jk % K * D)[:, None] + d[None, :]
    w = tl.load(centers + at, mask=mask, other=0.0)
    norm = tl.sqrt(tl.sum(w * w, 1))
    # Below the smallest normal float32 a row counts as zeros; NaN is not below it.
    length = tl.where(norm < 1.1754944e-38, 0.0, 1.0 / norm)
    tl.store(inverse + jk, length, mask=inside)
    scaled = (w * length[:, None]).to(unit.dtype.element_ty)
    tl.store(unit + (jk.to(tl.int64) * D)[:, None] + d[None, :], scaled, mask=mask)


@jit
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
