"""Sketches: a few numbers of a picture that crops, mirror images and encodings hardly change.

A sketch is the picture's low frequencies, in the directions that tell most: where pictures differ
much from one another and little from their own crops (a linear discriminant, learned from the
pictures at hand). The cosine of two sketches says which pairs deserve a closer look; alone it says
too little, as two faces before the same bright and dark may have it high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.leaks.thumbnails import SIDE, resampling

DIMS = 64
WORTH_A_LOOK = 0.8  # cosine: one in some 400,000 pairs of different photographs has it

_CELLS = 28  # a side that the picture is reduced to
_FREQUENCIES = 10  # of each direction
_DRAWS = 12  # crops of each picture that is learned from
_DEEPEST = 4 / 112 * SIDE  # pixels that a crop takes off a side at most
_PICTURES_A_DIM = 8  # that a direction is learned from at least
_FLOOR = 1e-3  # of the mean variance: what is below is noise of the encoding

# How pictures are cropped to meet others, whole or of any crop: (left, top, right, bottom), 112ths.
_CROPS = ((2, 2, 2, 2), (4, 4, -2, -2), (-2, 4, 4, -2), (4, -2, -2, 4), (-2, -2, 4, 4))


@dataclass(frozen=True)
class Sketcher:
    """Makes sketches; those of one sketcher can be compared with one another.

    Attributes:
        projection: (_CELLS², D) float32.
        origin: (D,) float32, what is taken off.
    """

    projection: np.ndarray
    origin: np.ndarray

    @classmethod
    def learned_from(cls, thumbnails: np.ndarray, *, seed: int = 0) -> Sketcher:
        """Learn from pictures like those that will be compared.

        Args:
            thumbnails: (N, SIDE, SIDE) uint8; some thousand are enough, with fewer the sketches
                have fewer numbers and tell less.
        """
        random = np.random.default_rng(seed)
        basis = _basis()
        drawn = []
        for draw in range(_DRAWS):
            left, top, right, bottom = random.uniform(0, _DEEPEST, 4)
            cells = _crop(thumbnails, left, top, right, bottom)
            drawn.append(_even(cells[:, :, :: 1 if draw % 2 else -1]) @ basis)
        features = np.stack(drawn)  # (draws, N, features)
        mirrors = features.reshape(_DRAWS // 2, 2, *features.shape[1:])
        mean = features.mean((0, 1))
        own = mirrors - mirrors.mean(0)  # how crops of one picture, turned alike, differ
        within = _covariance(own.reshape(-1, basis.shape[1]))
        total = _covariance((features - mean).reshape(-1, basis.shape[1]))
        floor = (_FLOOR * np.trace(total) / len(total) + 1e-12) * np.eye(len(total))
        dims = min(DIMS, max(2, len(thumbnails) // _PICTURES_A_DIM))
        directions = _most_telling(within + floor, total + floor, dims)
        return cls((basis @ directions).astype(np.float32), (mean @ directions).astype(np.float32))

    def __call__(self, thumbnails: np.ndarray) -> np.ndarray:
        """(B, SIDE, SIDE) uint8 to (B, D) float32 of unit length."""
        return self._of_cells(_crop(thumbnails, 0, 0, 0, 0))

    def variants(self, thumbnails: np.ndarray) -> np.ndarray:
        """(N, SIDE, SIDE) uint8 to (V, N, D): cropped in several ways, each mirrored, too."""
        found = []
        for crop in _CROPS:
            cells = _crop(thumbnails, *(side / 112 * SIDE for side in crop))
            found += [self._of_cells(cells), self._of_cells(cells[:, :, ::-1])]
        return np.stack(found)

    def _of_cells(self, cells: np.ndarray) -> np.ndarray:
        rows = _even(cells) @ self.projection - self.origin
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _crop(
    thumbnails: np.ndarray, left: float, top: float, right: float, bottom: float
) -> np.ndarray:
    """(B, SIDE, SIDE) to (B, _CELLS, _CELLS) float32, so many pixels taken off each side."""
    across = resampling(left, SIDE - left - right, cells=_CELLS, pixels=SIDE)
    down = resampling(top, SIDE - top - bottom, cells=_CELLS, pixels=SIDE)
    return down @ (thumbnails.astype(np.float32) @ across.T)


def _even(cells: np.ndarray) -> np.ndarray:
    """(B, _CELLS²), brightness and contrast taken out."""
    rows = cells.reshape(len(cells), _CELLS * _CELLS)
    rows = rows - rows.mean(1, keepdims=True)
    # One gray level of noise: a picture that is all gray stays small.
    return rows / np.sqrt((rows * rows).mean(1, keepdims=True) + 1)


def _basis() -> np.ndarray:
    """(_CELLS², features): cosines of low frequencies, fading out where crops cut."""
    places = (np.arange(_CELLS) + 0.5) / _CELLS
    fading = np.sqrt(np.sin(np.pi * places))
    waves = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * places) * fading
    products = np.einsum("ky,lx->klyx", waves, waves).reshape(_FREQUENCIES**2, -1)
    return products[1:].T / _CELLS


def _covariance(rows: np.ndarray) -> np.ndarray:
    return rows.T @ rows / len(rows)


def _most_telling(within: np.ndarray, total: np.ndarray, dims: int) -> np.ndarray:
    """(features, dims): unit total variance in each, and as little as can be within."""
    variances, axes = np.linalg.eigh(total)
    white = axes / np.sqrt(variances)
    _, turned = np.linalg.eigh(white.T @ within @ white)  # rising: those that tell most come first
    return white @ turned[:, :dims]
