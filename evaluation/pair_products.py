"""Products of pairs of embeddings by the million: block by block, on threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

_PAIRS = 1 << 10  # at a time, for which both sides are gathered: few enough for the caches

Chosen = tuple[np.ndarray, np.ndarray]
"""Rows (N, D), float32 or float16, and the places (P,) of those that are in pairs."""


def pair_products(first: Chosen, second: Chosen, *, threads: int) -> np.ndarray:
    """(P,) float32: the products of P pairs of rows, their cosines if rows have unit length.

    Args:
        threads: that multiply.
    """
    (ours, left), (theirs, right) = first, second
    products = np.empty(len(left), np.float32)

    def multiply(start: int) -> None:
        block = slice(start, start + _PAIRS)
        a = ours.take(left[block], axis=0).astype(np.float32, copy=False)
        b = theirs.take(right[block], axis=0).astype(np.float32, copy=False)
        np.einsum("pd,pd->p", a, b, out=products[block])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(multiply, range(0, len(left), _PAIRS)):
            pass
    return products
