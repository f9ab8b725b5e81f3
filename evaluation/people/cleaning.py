"""What is wrong in a training set, and what to leave out of it or to make one.

First which labels are one person, so that their images are not taken for each other's mistakes;
then photographs under two people; then images that are not of the person they are filed under.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evaluation.people.centers import (
    Centers,
    Nearest,
    dominant_centers,
    find_centers,
    nearest_three,
)
from evaluation.people.duplicates import Duplicate, find_duplicates
from evaluation.people.mislabeled import Mislabeled, find_mislabeled
from evaluation.people.twins import RATE, Twins, find_twins
from facestream import UserError
from pipeline.records.index import RecordIndex

MISLABELED, DUPLICATE = "wrong label", "photograph of two people"
_FEWEST_IDENTITIES = 4  # that the nearest three of can be told


class CleaningError(UserError):
    """A training set that cannot be looked through: says why."""


@dataclass(frozen=True)
class Cleaning:
    """What `clean` found.

    Attributes:
        labels: (N,) int64, those of the images when labels of one person are made one.
        centers, others: by these labels, as they were judged by.
        twins: labels that are one person.
        duplicates: photographs under two people.
        mislabeled: images that are not of their person.
        left_out: image to why it is to be left out, in the order of the file.
    """

    labels: np.ndarray
    centers: Centers
    others: Nearest
    twins: Twins
    duplicates: list[Duplicate]
    mislabeled: Mislabeled
    left_out: dict[int, str]


def clean(
    index: RecordIndex,
    rows: np.ndarray,
    *,
    subcenters: np.ndarray | None = None,
    rate: float = RATE,
    seed: int = 0,
    threads: int | None = None,
    device: torch.device | None = None,
) -> Cleaning:
    """Look a training set through.

    Args:
        index: of its one file.
        rows: (N, D) embeddings of its images; zeros for a damaged one.
        subcenters: (C, K, D) by label, of a head that was trained on it with K > 1, to judge by its
            dominant sub-centers instead of by the images' mean.
        rate: the share of identities for which a stranger may be taken for the same person.
        seed: of the identities that are drawn to learn what wrong labels look like.
        threads: that read.
        device: where cosines are computed.

    Raises:
        CleaningError: fewer than four identities.
    """
    classes = index.summary.num_classes
    if index.summary.identities < _FEWEST_IDENTITIES:
        raise CleaningError(
            f"{index.path} has {index.summary.identities} identities: expected "
            f"{_FEWEST_IDENTITIES} at least, to compare them with one another"
        )
    assert subcenters is None or len(subcenters) == classes

    def centers_by(labels: np.ndarray) -> Centers:
        if subcenters is not None:
            return dominant_centers(rows, labels, subcenters)
        return find_centers(rows, labels, num_classes=classes)

    labels = index.labels(np.arange(len(index)))
    centers = centers_by(labels)
    twins = find_twins(centers.directions, rate=rate, device=device)
    if twins.groups:
        labels = _merged(labels, twins.groups, classes)
        centers = centers_by(labels)
    others = nearest_three(rows, centers.directions, besides=labels, device=device)
    duplicates = find_duplicates(index, rows, labels, others, threads=threads)
    mislabeled = find_mislabeled(rows, labels, centers, others, seed=seed)
    left_out = {_worse(pair, mislabeled.margins): DUPLICATE for pair in duplicates}
    left_out |= {int(image): MISLABELED for image in mislabeled.suspects}
    return Cleaning(
        labels, centers, others, twins, duplicates, mislabeled, dict(sorted(left_out.items()))
    )


def _merged(labels: np.ndarray, groups: list[list[int]], classes: int) -> np.ndarray:
    one_of = np.arange(classes)
    for group in groups:
        one_of[group] = group[0]
    return one_of[labels]


def _worse(pair: Duplicate, margins: np.ndarray) -> int:
    """Which of the two fits its identity less; one that cannot be judged fits least of all."""
    first, second = np.nan_to_num(margins[[pair.first, pair.second]], nan=-np.inf)
    return pair.first if first < second else pair.second
