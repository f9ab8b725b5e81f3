"""The nearest centers of each center, the same to the last bit however the work is divided.

Unit rows are rounded to int8 and multiplied as float32. Every product and every sum of products is
then an integer that float32 holds exactly: neither the order of a sum nor the shape of a block, nor
TF32, nor the device changes it. The cosine is off by about 0.0006 at 512 dimensions, a hundredth of
what tells near classes apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Entries of a rounded unit row have this standard deviation: four of them fit into int8.
_DEVIATION = 32.0

# Candidates at a time; and rows, few enough for a CPU's caches and enough to occupy a GPU.
PIECE = 1024
_CPU_ROWS, _ROWS = 512, 8192
_BLOCK = 1 << 19  # elements at a time where nothing is multiplied

# By Cauchy and Schwarz no sum exceeds (32·√D + √D/2)²: below 2**24, and times PIECE within int32.
LARGEST_DIM = 1980

# A product and a class id in one int64: the larger the nearer, and of equals the smaller id.
_ID_BITS = 32
NOTHING = -(1 << 63)
# The same of one piece in int32, with the place in the piece.
_PIECE_BITS = PIECE.bit_length() - 1
_NO_KEY = -(1 << 31)


def rounded(centers: Tensor, *, subcenters: int, out: Tensor) -> None:
    """Unit rows times 32·√D as integers; a row that is 0 or not finite becomes 0.

    Args:
        centers: (n, K·D), of any floating dtype.
        out: (n, K·D) int8.
    """
    dim = centers.shape[1] // subcenters
    for part in _blocks(len(centers), max(1, _BLOCK // centers.shape[1])):
        # In float64 no order of the sum of squares moves a value over the middle of two integers.
        rows = centers[part].reshape(-1, dim).double()
        scaled = rows * (_DEVIATION * math.sqrt(dim) / rows.norm(dim=1, keepdim=True))
        whole = scaled.nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-127, 127)
        out[part] = whole.view(-1, subcenters * dim).to(torch.int8)


def take_nearest(
    best: Tensor,
    rows: Tensor,
    candidates: Tensor,
    *,
    first_row: int,
    first_candidate: int,
    subcenters: int,
) -> None:
    """Put the candidates that are nearer than what `best` holds into it, in place.

    Two classes are as near as the nearest of their sub-centers. A class is no neighbor of itself.

    Args:
        best: (n, k) int64, in descending order; at first NOTHING everywhere.
        rows: (n, K·D) int8 from `rounded`, of consecutive classes.
        candidates: (P, K·D) int8, of consecutive classes, at most PIECE.
        first_row, first_candidate: class ids.
    """
    dim, count = rows.shape[1] // subcenters, len(candidates)
    columns = candidates.view(-1, dim).float().t()
    index = torch.arange(count, dtype=torch.int32, device=rows.device)
    neighbors, together = best.shape[1], _CPU_ROWS if best.device.type == "cpu" else _ROWS
    for part in _blocks(len(rows), max(1, together // subcenters**2)):
        products = rows[part].view(-1, dim).float() @ columns
        if subcenters > 1:
            products = products.view(-1, subcenters, count, subcenters).amax((1, 3))
        # The same order as in `best`, in half of the bytes.
        keys = products.int().mul_(PIECE).sub_(index)  # (rows, P)
        itself = first_row + part.start - first_candidate
        if -len(keys) < itself < count:
            keys.diagonal(itself).fill_(_NO_KEY)
        keys = keys.topk(min(neighbors, count), dim=1, sorted=False).values
        products = (keys + (PIECE - 1)) >> _PIECE_BITS
        ids = first_candidate + products * PIECE - keys
        wide = torch.where(keys == _NO_KEY, NOTHING, (products.long() << _ID_BITS) - ids)
        best[part] = torch.cat([best[part], wide], dim=1).topk(neighbors, dim=1).values


def write_ids(best: Tensor, *, out: Tensor) -> None:
    """(n, k) int32 class ids, nearest first; -1 where there is none."""
    for part in _blocks(len(best), max(1, _BLOCK // best.shape[1])):
        ids = -best[part] & ((1 << _ID_BITS) - 1)
        out[part] = ids.masked_fill_(best[part] == NOTHING, -1)


def search_bytes(rows: int, *, width: int, neighbors: int) -> tuple[int, int]:
    """What a table of `rows` takes with all that it is built from, and the scratch on a CPU."""
    table = rows * (width + neighbors * (torch.int32.itemsize + torch.int64.itemsize))
    piece = (PIECE + _CPU_ROWS) * width * (torch.int8.itemsize + torch.float32.itemsize)
    products = 3 * PIECE * _CPU_ROWS * torch.float32.itemsize
    return table, max(piece + products, 4 * _BLOCK * torch.float64.itemsize)


def _blocks(count: int, together: int) -> Iterator[slice]:
    for start in range(0, count, together):
        yield slice(start, min(start + together, count))
