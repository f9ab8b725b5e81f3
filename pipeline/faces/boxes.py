"""Faces as detectors find them, and which of those that overlap is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Faces:
    """N faces in an image.

    Attributes:
        boxes: (N, 4), left, top, right, bottom in pixels.
        landmarks: (N, 5, 2), (x, y) in pixels, in the template's order.
        scores: (N,), 0 to 1.
    """

    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def taken(self, places: np.ndarray) -> Faces:
        """These of them, by place or by truth value."""
        return Faces(self.boxes[places], self.landmarks[places], self.scores[places])


def without_overlaps(faces: Faces, *, most: float) -> Faces:
    """The faces, the surest first, less those that a surer one covers by more than `most`.

    Args:
        most: of two boxes the common area over that of both together.
    """
    faces = faces.taken(np.argsort(-faces.scores, kind="stable"))
    left, top, right, bottom = faces.boxes.T
    areas = (right - left).clip(0) * (bottom - top).clip(0)
    left_over = np.ones(len(faces), bool)
    kept = []
    for place in range(len(faces)):
        if not left_over[place]:
            continue
        kept.append(place)
        width = np.minimum(right, right[place]) - np.maximum(left, left[place])
        height = np.minimum(bottom, bottom[place]) - np.maximum(top, top[place])
        common = width.clip(0) * height.clip(0)
        left_over &= common <= most * (areas + areas[place] - common)
    return faces.taken(np.array(kept, np.intp))
