"""Scored pairs of simulated people, some of whom are harder to recognize than others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Simulated:
    """P pairs of N images: scores and same (P,), first and second (P,), people (N,)."""

    scores: np.ndarray
    same: np.ndarray
    first: np.ndarray
    second: np.ndarray
    people: np.ndarray


def simulated(
    seed: int,
    *,
    people: int = 100,
    images: int = 4,
    impostors: int = 600,
    dim: int = 32,
    noise: tuple[float, float] = (0.5, 1.3),
) -> Simulated:
    """All genuine pairs of `people` with `images` each and some impostor pairs, in mixed order."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, 1, dim))
    hardness = rng.uniform(*noise, (people, 1, 1))
    vectors = (centers + hardness * rng.normal(size=(people, images, dim))).reshape(-1, dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    one, other = np.triu_indices(images, 1)
    shift = np.arange(people)[:, None] * images
    a = rng.integers(0, people, impostors)
    b = (a + rng.integers(1, people, impostors)) % people
    taken = rng.integers(0, images, (2, impostors))
    first = np.r_[(shift + one).ravel(), a * images + taken[0]]
    second = np.r_[(shift + other).ravel(), b * images + taken[1]]
    mixed = rng.permutation(len(first))
    first, second = first[mixed], second[mixed]
    owners = np.repeat(np.arange(people), images)
    scores = (vectors[first] * vectors[second]).sum(axis=1)
    return Simulated(scores, owners[first] == owners[second], first, second, owners)
