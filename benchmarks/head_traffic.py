"""What the head's Triton kernels read and write, from the arguments of a launch alone.

Two counts of each: what differs, which memory must move at least, and what all programs ask for
together, which the caches serve too. tests/heads/passes counts both under Triton's interpreter,
load by load, and holds these formulas to that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.compiled_kernels import Launch


class Moved(NamedTuple):
    """Bytes. asked: by all programs, reads and writes; the others: what of that differs."""

    read: int
    written: int
    asked: int


class _Access(NamedTuple):
    """bytes: that differ. asked: of them, and again, by all programs; None: once."""

    bytes: int
    asked: int | None = None
    read: bool = True
    written: bool = False


Arguments = dict[str, Any]
Grid = tuple[int, int, int]


def moved(launch: Launch) -> Moved:
    """Of one launch for a step without groups and with negatives as they are."""
    arguments = launch.arguments
    for hook in ("column_groups", "hard_above", "threshold"):
        assert arguments.get(hook) is None, f"{hook} is not counted"
    first, second, third = (*launch.grid, 1, 1)[:3]
    accesses = _ACCESSES[launch.kernel.fn.__name__](arguments, (first, second, third))
    return Moved(
        read=sum(access.bytes for access in accesses if access.read),
        written=sum(access.bytes for access in accesses if access.written),
        asked=sum(
            (a.bytes if a.asked is None else a.asked) * (a.read + a.written) for a in accesses
        ),
    )


def _unit_rows(a: Arguments, grid: Grid) -> list[_Access]:
    columns, values = a["columns"], a["columns"] * a["D"]
    return [
        *_kept(a, "centers", "scales", written=False),
        _row_numbers(a),
        _written(values * a["unit"].itemsize),
        _written(4 * columns),
    ]


def _logsumexp(a: Arguments, grid: Grid) -> list[_Access]:
    batch_tiles, splits, _ = grid
    class_tiles = -(-a["S"] // a["BLOCK_C"])
    return [
        *_cosines(a, a["S"], batch_tiles, class_tiles),
        _Access(8 * a["G"], asked=8 * a["G"] * splits),  # positions
        _written(4 * a["G"] * splits),
    ]


def _coefficients(a: Arguments, grid: Grid) -> list[_Access]:
    batch_tiles, class_tiles, _ = grid
    classes = min(a["coefficients"].shape[0] // a["K"], a["S"] - a["start"])
    itemsize = a["coefficients"].itemsize
    per_row = 8 + 8 + 4  # positions, target sub-center, shift
    own = _own_in_chunk(a["positions"], a["start"], classes)
    return [
        *_cosines(a, classes, batch_tiles, class_tiles),
        _Access(per_row * a["G"], asked=per_row * a["G"] * class_tiles),
        _Access(4 * own),  # target
        _Access(
            classes * a["K"] * a["pitch"] * itemsize,
            asked=(classes * a["pitch"] + own) * a["K"] * itemsize,
            read=False,
            written=True,
        ),
    ]


def _own_in_chunk(positions: Tensor, start: int, classes: int) -> int:
    """Rows whose own class is there; for tensors without values all: it is little."""
    if positions.device.type == "meta":
        return len(positions)
    return int(((positions >= start) & (positions < start + classes)).sum())


def _cosines(a: Arguments, classes: int, batch_tiles: int, class_tiles: int) -> list[_Access]:
    """The last row and class are asked for again where tiles reach past them."""
    columns, row = classes * a["K"], a["D"] * a["unit"].itemsize
    tile_pairs = batch_tiles * class_tiles * a["K"]
    return [
        _Access(columns * row, asked=tile_pairs * a["BLOCK_C"] * row),
        _Access(a["G"] * row, asked=tile_pairs * a["BLOCK_G"] * row),
    ]


def _embedding_grad(a: Arguments, grid: Grid) -> list[_Access]:
    width_tiles, batch_tiles, splits = grid
    columns = a["columns"]
    column_tiles = -(-columns // a["BLOCK_K"])
    coefficients = columns * a["pitch"] * a["coefficients"].itemsize
    row = a["D"] * a["unit"].itemsize
    return [
        _Access(coefficients, asked=coefficients * width_tiles),
        _Access(columns * row, asked=column_tiles * a["BLOCK_K"] * row * batch_tiles),
        _written(splits * a["G"] * a["D"] * 4, read=a["ACCUMULATE"]),
    ]


def _product(a: Arguments, grid: Grid) -> list[_Access]:
    width_tiles, column_tiles, _ = grid
    columns, values = a["columns"], a["columns"] * a["D"]
    steps = -(-a["G"] // a["BLOCK_K"]) * a["BLOCK_K"]
    itemsize, row = a["coefficients"].itemsize, a["D"] * a["embeddings"].itemsize
    return [
        _Access(
            columns * min(steps, a["pitch"]) * itemsize,
            asked=width_tiles * column_tiles * a["BLOCK_M"] * steps * itemsize,
        ),
        _Access(a["G"] * row, asked=steps * row * column_tiles),
        _Access(values * a["unit"].itemsize),
        _written(values * a["product"].itemsize, read=a["ACCUMULATE"]),
        _written(4 * columns * width_tiles),
    ]


def _update(a: Arguments, grid: Grid) -> list[_Access]:
    columns, values = a["columns"], a["columns"] * a["D"]
    keys = [
        _Access(4 * columns // a["K"], asked=4 * columns)
        for name in ("centers", "velocity")
        if a[name] is not None and a[name].itemsize < 4
    ]
    if a["column_keys"] is not None:
        keys.append(_Access(4 * a["K"] * a["D"], asked=4 * values))
    return [
        *_kept(a, "centers", "center_scales", written=True),
        *_kept(a, "velocity", "velocity_scales", written=True),
        *keys,
        _Access(values * a["product"].itemsize),
        _Access(2 * 4 * columns),  # pull and drift
        _row_numbers(a),
        _Access(1 + 4, asked=(1 + 4) * grid[0]),  # whether it applies, and the rate
    ]


def _kept(a: Arguments, values: str, scales: str, *, written: bool) -> list[_Access]:
    """Rows as they are kept: their values, and of float8 a scale for each sub-center."""
    if a[values] is None:
        return []
    itemsizes = a["D"] * a[values].itemsize, 0 if a[scales] is None else a[scales].itemsize
    found = [_Access(a["columns"] * size, read=True, written=written) for size in itemsizes]
    if written and a[scales] is not None:
        # The old scale is read once more where the new one is found.
        found.append(_Access(0, asked=a["columns"] * a[scales].itemsize))
    return found


def _written(count: int, read: bool = False) -> _Access:
    return _Access(count, read=read, written=True)


def _row_numbers(a: Arguments) -> _Access:
    """The int64 numbers of the rows, where there are any, for each of their sub-centers."""
    columns = 0 if a["rows"] is None else a["columns"]
    return _Access(8 * columns // a["K"], asked=8 * columns)


_ACCESSES: dict[str, Callable[[Arguments, Grid], list[_Access]]] = {
    "unit_rows_kernel": _unit_rows,
    "logsumexp_kernel": _logsumexp,
    "coefficients_kernel": _coefficients,
    "embedding_grad_kernel": _embedding_grad,
    "product_kernel": _product,
    "update_kernel": _update,
}
