"""Images of one person pooled into a template, IJB's way.

The embeddings of a medium (the frames of a video) are averaged within a template, the media are
added, and the sum is brought to unit length: a video counts as much as a photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evaluation.protocols.protocol import unit_rows

_ROWS = 1 << 13  # of embeddings at a time


@dataclass(frozen=True)
class Members:
    """Which images make up which templates, a row for each line of the list: L of them.

    Attributes:
        image: (L,) int64, places among the images.
        template: (L,) int64, places among the templates.
        medium: (L,) int64, the number of the photo or video that an image is from.
    """

    image: np.ndarray
    template: np.ndarray
    medium: np.ndarray


def pool(
    embeddings: np.ndarray,
    members: Members,
    *,
    templates: int,
    kept: np.ndarray,
    weights: np.ndarray | None,
    unit: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Pool in one pass over the embeddings, in their order: they may be mapped from a file.

    Args:
        embeddings: (N, D) float32.
        members: of the templates.
        templates: how many there are, T.
        kept: (N,) bool, which images take part.
        weights: (N,) float32, what each embedding is multiplied by; None for nothing.
        unit: whether embeddings are brought to unit length first.

    Returns:
        (T, D) float32 of unit length, zeros where no image is left; and (T,) bool, whether any is.
    """
    left = np.flatnonzero(kept[members.image])
    image, template = members.image[left], members.template[left]
    share = 1 / _images_of_medium(template, members.medium[left])
    if weights is not None:
        share *= weights[image]
    sums = torch.zeros(templates, embeddings.shape[1], dtype=torch.float64)
    for start in range(0, len(left), _ROWS):
        block = slice(start, start + _ROWS)
        rows = np.asarray(embeddings[image[block]], np.float64)
        if unit:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
        rows *= share[block, None]
        sums.index_add_(0, torch.from_numpy(template[block]), torch.from_numpy(rows))
    present = np.bincount(template, minlength=templates) > 0
    return unit_rows(sums.numpy()), present


def _images_of_medium(template: np.ndarray, medium: np.ndarray) -> np.ndarray:
    """(L,) how many images of its template are of its medium, too."""
    media, of_media = np.unique(medium, return_inverse=True)
    _, which, counts = np.unique(
        template * len(media) + of_media.reshape(-1), return_inverse=True, return_counts=True
    )
    return counts[which.reshape(-1)]
