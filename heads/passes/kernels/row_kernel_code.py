"""The device code of row_kernels.py, as class_kernel_code.py is that of class_kernels.py."""

from __future__ import annotations

from heads.passes.kernels.kernel_launch import jit, tl


@jit
def _row(rows, j, inside):
    """(n,) int64 rows of the centers at slots j; wide, as a row's offset may pass 2^31."""
    row = j.to(tl.int64)
    if rows is not None:
        row = tl.load(rows + j, mask=inside, other=0)
    return row


@jit
def _read(values, scales, at, sub, inside, mask):
    """(BLOCK_R, BLOCK_D) float32 of whole sub-centers as they are kept, exactly; out of range 0.

    bfloat16 comes as its bits, int16, and float8 as its own, uint8: they are taken apart as whole
    numbers, which every GPU can.
    """
    kept = tl.load(values + at, mask=mask, other=0)
    if values.dtype.element_ty == tl.int16:
        kept = (kept.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    if values.dtype.element_ty == tl.uint8:
        # As heads.rows.rounding.from_float8 does, by way of float16's bits, 2^8 apart.
        bits = ((kept & 0x7F).to(tl.uint16) << 7) | ((kept & 0x80).to(tl.uint16) << 8)
        scale = tl.load(scales + sub, mask=inside, other=0.0) * 256.0
        kept = bits.to(tl.float16, bitcast=True).to(tl.float32) * scale[:, None]
    return kept


@jit
def _write(values, scales, row_keys, columns, new, at, sub, slot, inside, mask):
    """Put back what `_read` gave, changed: heads.rows.rounding's rules, the same bits.

    Args:
        row_keys: (S,) int32, at slots of classes.
        columns: (BLOCK_R, BLOCK_D) int32, the columns' keys.
        new: float32.
    """
    if values.dtype.element_ty == tl.float32:
        tl.store(values + at, new, mask=mask)
    else:
        noise = tl.load(row_keys + slot, mask=inside, other=0)[:, None] * columns
        if values.dtype.element_ty == tl.int16:
            bits = new.to(tl.int32, bitcast=True) + ((noise >> 16) & 0xFFFF)
            tl.store(values + at, (bits >> 16).to(tl.int16), mask=mask)
        else:
            # Of magnitudes as whole numbers, among which NaN and inf are the largest.
            top = tl.max(tl.where(mask, new.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0), 1)
            largest = top.to(tl.float32, bitcast=True)
            old = tl.load(scales + sub, mask=inside, other=1.0)
            exponent = tl.maximum(((top + 0x1FFFFF) >> 23) - 8, 1)
            fitting = (exponent << 23).to(tl.float32, bitcast=True)
            serves = (largest <= 448.0 * old) & (largest >= 224.0 * old)
            scale = tl.where(serves | (top == 0), old, fitting)
            # Of a power of two the reciprocal is a subtraction of exponents.
            inverse = ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
            aligned = (new * inverse[:, None]) * 7.52316384526264e-37  # 2^-120
            bits = aligned.to(tl.int32, bitcast=True) + ((noise >> 12) & 0xFFFFF)
            codes = ((bits >> 20) & 0x7F) | ((bits >> 24) & 0x80)
            tl.store(values + at, codes.to(tl.uint8), mask=mask)
            scale = tl.where(top < 0x7F800000, scale, float("nan"))
            tl.store(scales + sub, scale, mask=inside)


@jit
def unit_rows_kernel(
    centers,
    scales,
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
    sub = _row(rows, jk // K, inside) * K + jk % K
    w = _read(centers, scales, (sub * D)[:, None] + d[None, :], sub, inside, mask)
    norm = tl.sqrt(tl.sum(w * w, 1))
    # Below the smallest normal float32 a row counts as zeros; NaN is not below it.
    length = tl.where(norm < 1.1754944e-38, 0.0, 1.0 / norm)
    tl.store(inverse + jk, length, mask=inside)
    scaled = (w * length[:, None]).to(unit.dtype.element_ty)
    tl.store(unit + (jk.to(tl.int64) * D)[:, None] + d[None, :], scaled, mask=mask)


@jit
def update_kernel(
    centers,
    center_scales,
    center_keys,
    velocity,
    velocity_scales,
    velocity_keys,
    column_keys,
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
    slot = jk // K
    d = tl.arange(0, BLOCK_D)
    # apply is 0 or 1.
    moves = jk < columns * tl.load(apply).to(tl.int32)
    row = _row(rows, slot, moves)
    if active is not None:
        moves = moves & (tl.load(active + slot, mask=moves, other=0) != 0)
    mask = moves[:, None] & (d < D)[None, :]
    sub = row * K + jk % K
    at = (sub * D)[:, None] + d[None, :]
    w = _read(centers, center_scales, at, sub, moves, mask)
    gradient = tl.load(
        product + (jk.to(tl.int64) * D)[:, None] + d[None, :], mask=mask, other=0.0
    ).to(tl.float32)
    pulled = tl.load(pull + jk, mask=moves, other=0.0)[:, None] * gradient
    decayed = (tl.load(drift + jk, mask=moves, other=0.0) + weight_decay)[:, None] * w
    v = pulled
    if velocity is not None:
        v += momentum * _read(velocity, velocity_scales, at, sub, moves, mask)
    v += decayed
    keys = None
    if column_keys is not None:
        keys = tl.load(column_keys + (jk % K * D)[:, None] + d[None, :], mask=mask, other=0)
    if velocity is not None:
        _write(velocity, velocity_scales, velocity_keys, keys, v, at, sub, slot, moves, mask)
    w -= tl.load(lr) * v
    _write(centers, center_scales, center_keys, keys, w, at, sub, slot, moves, mask)
