"""A center for each identity, and how near each image is to its own and to the nearest other.

Embeddings are read in blocks, so that they may be mapped from a file that is larger than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from evaluation.protocols.protocol import unit_rows

_BLOCK = 1 << 15  # rows
_COSINES = 1 << 26  # held at once
_LEAST = 0.1  # cosine that an image counts with at least
_ROUNDS = 2  # in which images far from their identity come to count less


@dataclass(frozen=True)
class Centers:
    """Where identities are.

    Attributes:
        directions: (C, D) float32 of unit length; zeros for an identity without an image.
        own: (N,) float32, the cosine of each image with the center that its identity has without
            that image; NaN for a damaged image, and for one whose identity has no other.
    """

    directions: np.ndarray
    own: np.ndarray


class Nearest(NamedTuple):
    """The nearest three directions of each row: which, (N, 3) int64, and how near, (N, 3) float32,
    the nearest first."""

    which: np.ndarray
    cosine: np.ndarray


def find_centers(rows: np.ndarray, labels: np.ndarray, *, num_classes: int) -> Centers:
    """Robust centers: an image counts by the square of its cosine with the rest of its identity.

    Args:
        rows: (N, D) embeddings of any norm; zeros for a damaged image.
        labels: (N,) int64 below num_classes.
    """
    weights = np.ones(len(rows), np.float32)
    for _ in range(_ROUNDS):
        own = _without_itself(rows, labels, weights, _sums(rows, labels, weights, num_classes))
        # One that has no other counts in full: it is all that is known of its identity.
        weights = np.where(np.isnan(own), 1, np.maximum(own, _LEAST) ** 2).astype(np.float32)
    sums = _sums(rows, labels, weights, num_classes)
    return Centers(unit_rows(sums), _without_itself(rows, labels, weights, sums))


def dominant_centers(rows: np.ndarray, labels: np.ndarray, subcenters: np.ndarray) -> Centers:
    """Of a head with sub-centers, each identity's that most of its images are nearest to.

    The others collect what is wrongly labeled (Sub-center ArcFace, Deng et al., 2020). `own` is the
    cosine with it; a head's centers were learned from each image, too.

    Args:
        subcenters: (C, K, D).
    """
    classes, count, _ = subcenters.shape
    units = unit_rows(subcenters.reshape(classes * count, -1)).reshape(subcenters.shape)
    votes = np.zeros((classes, count), np.int64)
    for at, block in blocks(rows):
        whole = block.any(1)
        theirs = labels[at][whole]
        cosines = np.einsum("nkd,nd->nk", units[theirs], block[whole])
        np.add.at(votes, (theirs, cosines.argmax(1)), 1)
    directions = units[np.arange(classes), votes.argmax(1)]
    directions[~votes.any(1)] = 0
    own = np.empty(len(rows), np.float32)
    for at, block in blocks(rows):
        cosine = np.einsum("nd,nd->n", directions[labels[at]], block)
        own[at] = np.where(block.any(1), cosine, np.nan)
    return Centers(directions, own)


def nearest_three(
    rows: np.ndarray,
    directions: np.ndarray,
    *,
    besides: np.ndarray | None = None,
    device: torch.device | None = None,
) -> Nearest:
    """The nearest three of C ≥ 4 directions to each row.

    Args:
        rows: (N, D) of any norm.
        directions: (C, D) of unit length; those of zeros are nobody's and never the nearest.
        besides: (N,) int64, for each row one direction that does not count: its own.
        device: where the cosines are computed; the CPU by default.
    """
    device = device or torch.device("cpu")
    there = torch.from_numpy(np.ascontiguousarray(directions)).to(device)
    nobody = ~there.any(1)
    which, cosine = np.empty((len(rows), 3), np.int64), np.empty((len(rows), 3), np.float32)
    size = max(1, min(_BLOCK, _COSINES // len(directions)))
    for at, block in blocks(rows, size=size):
        cosines = torch.from_numpy(block).to(device) @ there.T
        cosines[:, nobody] = -2
        if besides is not None:
            own = torch.from_numpy(besides[at]).to(device)
            cosines.scatter_(1, own[:, None], -2)
        values, places = cosines.topk(3)
        which[at], cosine[at] = places.cpu().numpy(), values.cpu().numpy()
    return Nearest(which, cosine)


def blocks(rows: np.ndarray, *, size: int = _BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
    """Where, and (b, D) float32 rows of unit length; rows of zeros stay."""
    for begin in range(0, len(rows), size):
        at = slice(begin, min(begin + size, len(rows)))
        yield at, unit_rows(np.asarray(rows[at], np.float32))


def _sums(
    rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_classes: int
) -> np.ndarray:
    sums = torch.zeros(num_classes, rows.shape[1])
    for at, block in blocks(rows):
        weighted = torch.from_numpy(block * weights[at, None])
        sums.index_add_(0, torch.from_numpy(labels[at]), weighted)
    return sums.numpy()


def _without_itself(
    rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, sums: np.ndarray
) -> np.ndarray:
    """(N,) the cosine of each image with the sum of the others of its identity."""
    own = np.empty(len(rows), np.float32)
    for at, block in blocks(rows):
        rest = sums[labels[at]] - weights[at, None] * block
        length = np.linalg.norm(rest, axis=1)
        known = (length > 1e-4) & block.any(1)
        cosine = np.einsum("nd,nd->n", rest, block) / np.where(known, length, 1)
        own[at] = np.where(known, cosine, np.nan)
    return own
