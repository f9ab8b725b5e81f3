"""Are these two pictures of one photograph? They are laid over each other as well as they fit.

One of them is shifted, scaled and mirrored, the other turned, by as much as crops and alignments of
the same photograph differ. What counts is detail: what is left when the blurred picture is taken
off. Two photographs of one person, taken a moment apart, differ there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from evaluation.leaks.thumbnails import SIDE, resampling

SAME_PHOTOGRAPH = 0.95  # of `likeness`; two photographs of one scene reach some 0.94

_CELLS = 28
_BLUR = 1.5  # cells
_MARGIN = 3  # cells at each edge that do not count: another crop may have something else there
_INNER = _CELLS - 2 * _MARGIN
_NOISE = 0.3  # gray levels: a picture with less detail than that has none to compare
_SCALES = (0.96, 1.0, 1.04, 1.08)
_SHIFTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # pixels: 4 of 112 to each side
_TURNS = (-4, -2, 0, 2, 4)  # degrees
_FINER_SCALES, _FINER_SHIFTS = (-0.02, 0.0, 0.02), (-0.5, 0.0, 0.5)  # about the best of these


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """The best correlation of two (SIDE, SIDE) uint8 pictures' details, at most 1."""
    pixels, others = first.astype(np.float32), _turned(second)
    best = max(_best_fit(pixels, others, scale, _SHIFTS, _SHIFTS) for scale in _SCALES)
    down, across = ([at + by for by in _FINER_SHIFTS] for at in (best.down, best.across))
    finer = (best.scale + by for by in _FINER_SCALES)
    return max(_best_fit(pixels, others, scale, down, across).correlation for scale in finer)


class _Fit(NamedTuple):
    """How a picture lies on another: scale, and pixels shifted."""

    correlation: float
    scale: float
    down: float
    across: float


def _best_fit(
    pixels: np.ndarray,
    others: np.ndarray,
    scale: float,
    down: Sequence[float],
    across: Sequence[float],
) -> _Fit:
    """The best of some shifts of a (SIDE, SIDE) picture, against (n, cells) of `_turned`."""
    rows, columns = (np.stack([_window(scale, shift) for shift in way]) for way in (down, across))
    correlations = (_details(pixels, rows, columns) @ others.T).max(1)
    best = int(correlations.argmax())
    y, x = divmod(best, len(across))
    return _Fit(float(correlations[best]), scale, down[y], across[x])


def _turned(picture: np.ndarray) -> np.ndarray:
    """(2 · turns, cells) of unit length: every second one mirrored."""
    image, upright = Image.fromarray(picture), _window(1.0, 0.0)[None]
    corners = int(picture.mean())  # black ones would be a detail
    found = []
    for turn in _TURNS:
        rotated = image.rotate(turn, Image.Resampling.BILINEAR, fillcolor=corners)
        turned = np.asarray(rotated, np.float32)
        found += [_details(side, upright, upright) for side in (turned, turned[:, ::-1])]
    return np.concatenate(found)


def _details(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(rows · columns, cells) of unit length, for each pair of windows.

    Each product is so small that a linear algebra library leaves it to one thread: more would wait
    for one another for ten times as long.
    """
    sharp, blurred = (
        (rows[:, kind] @ pixels)[:, None] @ columns[None, :, kind].swapaxes(2, 3) for kind in (0, 1)
    )
    details = (sharp - blurred).reshape(-1, _INNER * _INNER)
    details -= details.mean(1, keepdims=True)
    return details / np.sqrt((details * details).sum(1, keepdims=True) + _INNER**2 * _NOISE**2)


@lru_cache(4096)
def _window(scale: float, shift: float) -> np.ndarray:
    """(2, cells, SIDE): what makes a picture's rows or columns into cells, sharp and blurred."""
    length = SIDE / scale
    sharp = resampling((SIDE - length) / 2 + shift, length, cells=_CELLS, pixels=SIDE)
    places = np.arange(_CELLS)
    blur = np.exp(-0.5 * ((places[:, None] - places) / _BLUR) ** 2)
    blurred = (blur / blur.sum(1, keepdims=True)) @ sharp
    return np.stack([sharp, blurred])[:, _MARGIN:-_MARGIN].astype(np.float32)
