"""The figures of each group of people, and its error rates at the threshold that all share.

A pair is of a group where both its images are. The common threshold is chosen on the whole set,
and fixed in the draws: the question is how one and the same deployed threshold treats people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.metrics.folds import Folds
from evaluation.metrics.measure import Comparisons, Plan, measure, measure_shares
from evaluation.metrics.shares import Share
from evaluation.result import Figure, Group
from facestream import UserError

SHOWN = 5


def judge_groups(
    pairs: Comparisons,
    group_of: np.ndarray,
    *,
    threshold: float,
    folds: int,
    draws: int,
    seed: int,
    far_limits: Sequence[float],
) -> dict[str, Group]:
    """Every figure by group, and "fmr at the common threshold" and its "fnmr".

    Args:
        group_of: (N,) of strings, the group of each image; "" for none.
        threshold: at or above which a pair counts as one person.
        folds: contiguous, of each group's own pairs; 0, or fewer pairs, leave the accuracy out.

    Raises:
        UserError: no image of the pairs has a group, or a group has no genuine pair.
    """
    parts = parts_of_groups(group_of, pairs.first, pairs.second, pairs.same)
    return {
        name: _judge(
            pairs.within(part),
            threshold=threshold,
            folds=folds,
            draws=draws,
            seed=seed,
            far_limits=far_limits,
        )
        for name, part in parts.items()
    }


def parts_of_groups(
    group_of: np.ndarray, first: np.ndarray, second: np.ndarray, same: np.ndarray
) -> dict[str, np.ndarray]:
    """By group, (P,) bool: the pairs whose images are both in it.

    Args:
        group_of: (N,) of strings, the group of each image; "" for none.
        first, second: (P,) integers, a pair's images.
        same: (P,) bool, whether it shows one person.

    Raises:
        UserError: no image of the pairs has a group, or a group has no genuine pair.
    """
    every, number = np.unique(group_of, return_inverse=True)
    one, other = number[first], number[second]
    present = np.union1d(np.unique(one), np.unique(other))
    names = {str(every[group]): group for group in present.tolist() if every[group]}
    if not names:
        raise UserError(
            "none of the images in the pairs has a group: the list's names must be those of the "
            "images (`image 0`, `image 1`, … of a .bin file, else paths), or of their people "
            "where these are known"
        )
    parts = {name: (one == group) & (other == group) for name, group in names.items()}
    empty = [name for name, part in parts.items() if not same[part].any()]
    if empty:
        listed = ", ".join(map(repr, empty[:SHOWN])) + (", …" if len(empty) > SHOWN else "")
        raise UserError(
            f"no genuine pair of {listed}: a group needs pairs of two images of one person, both "
            "in the group. Take another grouping, or leave its images out of the list"
        )
    return parts


def _judge(
    pairs: Comparisons,
    *,
    threshold: float,
    folds: int,
    draws: int,
    seed: int,
    far_limits: Sequence[float],
) -> Group:
    accepted = pairs.scores >= threshold
    count = len(accepted)
    plan = Plan(
        folds=Folds.contiguous(count, folds) if 2 <= folds <= count else None,
        draws=draws,
        seed=seed,
        far_limits=far_limits,
        shares={
            "fmr at the common threshold": Share(~pairs.same, accepted),
            "fnmr at the common threshold": Share(pairs.same, ~accepted),
        },
    )
    if pairs.same.all():
        figures = measure_shares(pairs, plan)
        figures["fmr at the common threshold"] = Figure(None, note="no impostor pair in the group")
        return Group(pairs.counts, figures)
    return Group(pairs.counts, measure(pairs, plan).figures)
