"""Accuracy in folds: the threshold that judges a pair was chosen without it.

The candidates are InsightFace's, steps of 0.01 in the squared distance of unit vectors, so that
results stand beside its tables digit by digit.

Two ways to split P pairs:

- contiguous: parts of the pairs in their order, as LFW's protocol has it. Its official folds share
  no person; other lists may, and then a person helps to choose the threshold that judges him.
- identity-disjoint: the people, in order of appearance, are split into folds. A pair of two folds
  belongs to both, and its threshold is chosen on the pairs that have nobody in either: no pair is
  left unjudged, and no person judged by a threshold that he helped to choose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facestream import UserError

# Midpoints between the data would fit a little closer, and no longer give the accuracies that
# others publish.
DISTANCES = np.arange(0, 4, 0.01)


@dataclass(frozen=True)
class Folds:
    """Parts of P pairs, each with the parts that its threshold is chosen on.

    Attributes:
        part: (P,) which part a pair is of.
        chosen_on: (parts, parts) float, 1 where the column's pairs choose the row's threshold.
        identity_disjoint: whether the folds are of people.
        choosing: the smallest number of pairs that chooses a threshold.
    """

    part: np.ndarray
    chosen_on: np.ndarray
    identity_disjoint: bool
    choosing: int

    @classmethod
    def contiguous(cls, pairs: int, folds: int) -> Folds:
        """Parts of the pairs in their order; the first ones are longer by one where need be.

        Raises:
            UserError: fewer than 2 folds, or fewer pairs than folds.
        """
        if not 2 <= folds <= pairs:
            raise UserError(f"found {pairs} pairs for {folds} folds; expected 2 to P folds")
        sizes = [len(part) for part in np.array_split(np.arange(pairs), folds)]
        part = np.repeat(np.arange(folds), sizes)
        return cls(part, 1.0 - np.eye(folds), False, pairs - max(sizes))

    @classmethod
    def of_people(cls, first: np.ndarray, second: np.ndarray, folds: int) -> Folds:
        """Folds of people: first, second (P,) integers, whom a pair's images show.

        Raises:
            UserError: fewer than 3 folds or fewer people than folds, or a fold whose threshold no
                pair could choose.
        """
        people, appearance, of_image = np.unique(
            np.stack([first, second], axis=1).ravel(), return_index=True, return_inverse=True
        )
        if not 3 <= folds <= len(people):
            raise UserError(
                f"found {len(people)} people for {folds} identity-disjoint folds; expected at "
                "least 3 folds (a pair may be of two of them) and at most one a person"
            )
        fold_of = np.empty(len(people), np.int64)
        fold_of[np.argsort(appearance)] = np.arange(len(people)) * folds // len(people)
        pair_folds = np.sort(fold_of[of_image.reshape(-1, 2)], axis=1)
        found, part = np.unique(pair_folds, axis=0, return_inverse=True)
        part = part.reshape(-1)
        apart = (found[:, None, :, None] != found[None, :, None, :]).all(axis=(2, 3))
        choosing = apart @ np.bincount(part)
        if choosing.min() == 0:
            raise UserError(
                f"with {folds} identity-disjoint folds no pair is left to choose a threshold for "
                f"some: the {len(part)} pairs of {len(people)} people have too few people each "
                "apart; take another number of folds, or contiguous ones"
            )
        return cls(part, apart.astype(np.float64), True, int(choosing.min()))


class FoldAccuracy:
    """The accuracy of pairs whose weights may be drawn again and again.

    Args:
        distances: (P,) squared distances of unit vectors: 2 - 2 · cosine.
        same: (P,) bool.
    """

    def __init__(self, distances: np.ndarray, same: np.ndarray, folds: Folds) -> None:
        self._folds = folds
        self._parts = len(folds.chosen_on)
        self._same = same
        # A distance is below the candidate k where k is at or after this place.
        self._place = np.searchsorted(DISTANCES, distances, side="right")

    def cells(self) -> tuple[np.ndarray, int]:
        """(P,) the cell of each pair among the parts × places, and how many cells there are."""
        width = len(DISTANCES) + 1
        return self._folds.part * width + self._place, self._parts * width

    def of_counts(self, genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, ...]:
        """From the weights of each cell (..., cells), of genuine and of impostor pairs.

        Returns:
            Accuracy, its standard deviation over the parts, and the cosine threshold: mean over
            the parts. Shapes (...). With identity-disjoint folds, whose parts are of unlike size,
            the mean is over the pairs.
        """
        shape = (*genuine.shape[:-1], self._parts, len(DISTANCES) + 1)
        genuine, impostor = genuine.reshape(shape), impostor.reshape(shape)
        refused = impostor.sum(axis=-1, keepdims=True)  # all impostors, by a threshold of 0
        right = (refused + np.cumsum(genuine - impostor, axis=-1))[..., :-1]
        best = (self._folds.chosen_on @ right).argmax(axis=-1)  # (..., parts)
        judged = np.take_along_axis(right, best[..., None], axis=-1)[..., 0]
        weight = refused[..., 0] + genuine.sum(axis=-1)
        # A draw of a small set may leave a fold without pairs, or have none at all.
        drawn = weight > 0
        number = np.where(drawn.any(axis=-1), drawn.sum(axis=-1), np.nan)
        shares = judged / np.where(drawn, weight, 1)
        accuracy = shares.sum(axis=-1) / number
        apart = np.where(drawn, shares - accuracy[..., None], 0)
        deviation = np.sqrt((apart * apart).sum(axis=-1) / number)
        chosen = 1 - DISTANCES[best] / 2
        if not self._folds.identity_disjoint:
            return accuracy, deviation, chosen.mean(axis=-1)
        total = np.where(drawn.any(axis=-1), weight.sum(axis=-1), np.nan)
        return judged.sum(axis=-1) / total, deviation, (chosen * weight).sum(axis=-1) / total

    def __call__(self) -> tuple[float, float, float]:
        """Accuracy, standard deviation and threshold of the pairs as they are, all floats."""
        cells, count = self.cells()
        genuine = np.bincount(cells[self._same], minlength=count)
        impostor = np.bincount(cells[~self._same], minlength=count)
        accuracy, std, threshold = self.of_counts(genuine, impostor)
        return float(accuracy), float(std), float(threshold)
