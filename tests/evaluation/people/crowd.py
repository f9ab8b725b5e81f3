"""Embeddings of made-up people: a direction each, and noise around it."""

from __future__ import annotations

import numpy as np

DIM = 128


def crowd(
    people: int, images: int, *, noise: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(people · images, DIM) float32 of any norm, and their (N,) int64 labels."""
    random = np.random.default_rng(seed)
    directions = random.standard_normal((people, DIM))
    labels = np.repeat(np.arange(people), images)
    rows = directions[labels] + noise * random.standard_normal((len(labels), DIM))
    return (rows * random.uniform(1, 9, (len(rows), 1))).astype(np.float32), labels


def swapped(labels: np.ndarray, share: float, *, seed: int = 1) -> np.ndarray:
    """Labels of which about `share` are drawn again."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(labels)) < share
    return np.where(wrong, random.integers(labels.max() + 1, size=len(labels)), labels)
