"""Which test images show a person of the training set, by a model's embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from evaluation.people.centers import nearest_three
from evaluation.people.strangers import FEWEST, Strangers
from facestream import UserError

RATE = 1e-3  # share of test images for which a stranger is expected to be taken
_FEWEST_IDENTITIES = 4  # that the nearest three of can be told


class SharedPerson(NamedTuple):
    """A test image whose person is near the center of a training identity."""

    set: str
    place: int
    label: int
    cosine: float


@dataclass(frozen=True)
class SharedPeople:
    """What `find_shared_people` found.

    Attributes:
        found: by set and place.
        threshold: the cosine above which an image and an identity are taken for one person.
        expected_false: how many of all images are expected above it by chance.
    """

    found: list[SharedPerson] = field(default_factory=list)
    threshold: float = np.inf
    expected_false: float = 0.0


def find_shared_people(
    directions: np.ndarray,
    sets: Mapping[str, np.ndarray],
    *,
    rate: float = RATE,
    device: torch.device | None = None,
) -> SharedPeople:
    """Find test images that are nearer to a training identity than strangers come.

    Args:
        directions: (C, D) centers of the training identities, of unit length or zeros.
        sets: (N, D) embeddings by the name of a set; zeros for an image that is damaged.
        rate: the share of images for which a stranger may be taken for the same person.
        device: where the cosines are computed.

    Raises:
        UserError: too few identities or images to tell how near strangers come.
    """
    places = {name: np.flatnonzero(rows.any(1)) for name, rows in sets.items()}
    count, people = sum(map(len, places.values())), int(directions.any(1).sum())
    if count < FEWEST or people < _FEWEST_IDENTITIES:
        raise UserError(
            f"found {count} test images and {people} identities: expected {FEWEST} and "
            f"{_FEWEST_IDENTITIES} at least, to see how near strangers come. Leave --model out to "
            "look for copies of images alone"
        )
    nearest = {
        name: nearest_three(np.asarray(sets[name])[there], directions, device=device)
        for name, there in places.items()
    }
    strangers = Strangers.of(np.concatenate([found.cosine for found in nearest.values()]))
    threshold = strangers.threshold(rate)
    found = [
        SharedPerson(name, int(place), int(label), float(cosine))
        for name, there in places.items()
        for place, label, cosine in zip(
            there, nearest[name].which[:, 0], nearest[name].cosine[:, 0]
        )
        if cosine > threshold
    ]
    return SharedPeople(found, threshold, strangers.expected(threshold) * count)
