"""Identities that are one person under two labels, or more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evaluation.people.centers import nearest_three
from evaluation.people.strangers import FEWEST, Strangers

RATE = 1e-3  # share of identities for which a stranger is expected to be taken


@dataclass(frozen=True)
class Twins:
    """Which labels are one person.

    Attributes:
        pairs: (K, 2) int64 labels, rising in each pair, the most alike first.
        cosines: (K,) float32, of their centers.
        groups: labels that are one person, rising; every label of `pairs` is in one.
        threshold: the cosine above which two are taken for one.
        expected_false: how many of all pairs are expected above it by chance.
    """

    pairs: np.ndarray
    cosines: np.ndarray
    groups: list[list[int]]
    threshold: float
    expected_false: float


def find_twins(
    directions: np.ndarray, *, rate: float = RATE, device: torch.device | None = None
) -> Twins:
    """Find identities whose centers are nearer to each other than strangers' come.

    Args:
        directions: (C, D) centers of unit length; those of zeros are nobody's.
        rate: the share of identities for which a stranger may be taken for the same person.
        device: where the cosines are computed.
    """
    people = np.flatnonzero(directions.any(1))
    if len(people) < FEWEST:
        none = np.empty((0, 2), np.int64)
        return Twins(none, np.empty(0, np.float32), [], np.inf, 0.0)
    present = directions[people]
    nearest = nearest_three(present, present, besides=np.arange(len(people)), device=device)
    strangers = Strangers.of(nearest.cosine)
    threshold = strangers.threshold(rate)
    first, place = np.nonzero(nearest.cosine > threshold)
    both = np.sort(people[np.stack([first, nearest.which[first, place]], axis=1)], axis=1)
    pairs, once = np.unique(both, axis=0, return_index=True)
    cosines = nearest.cosine[first, place][once]
    order = np.argsort(-cosines, kind="stable")
    return Twins(
        pairs[order],
        cosines[order],
        _groups(pairs),
        threshold,
        strangers.expected(threshold) * len(people) / 2,
    )


def _groups(pairs: np.ndarray) -> list[list[int]]:
    """Labels that pairs connect."""
    first_of: dict[int, int] = {}

    def first(label: int) -> int:
        while first_of.setdefault(label, label) != label:
            label = first_of[label]
        return label

    for a, b in pairs.tolist():
        low, high = sorted((first(a), first(b)))
        first_of[high] = low
    groups: dict[int, list[int]] = {}
    for label in sorted(first_of):
        groups.setdefault(first(label), []).append(label)
    return list(groups.values())
