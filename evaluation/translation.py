"""Embeddings of an old model brought into the space of a new one, by least squares.

Faces that both models have embedded show the way. Two kinds of map are fitted: a rotation, which
keeps all angles (orthogonal Procrustes, Schönemann 1966), and affine maps, held to be small (ridge
regression), which can also do what the new model does otherwise. Which is better depends on the two
models and on how many faces there are, so it is measured on people who were not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.limits import can_show
from evaluation.metrics.roc import Roc
from evaluation.protocols.protocol import unit_rows
from facestream import UserError

FEWEST_PEOPLE = 10
HELD_OUT = 0.2  # of the people
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # shares of the mean variance of an old value
_FARS = (1e-3, 1e-2)  # the first that the people held out can show
_MOST = 2000  # images of people held out: all pairs of them are scored
_BLOCK = 1 << 14  # rows at a time


class TranslationError(UserError):
    """Embeddings that no translator can be made of, or that it cannot be used on."""


@dataclass(frozen=True)
class Translator:
    """An old model's embeddings to those that the new one would have made.

    Attributes:
        kind: such as "rotation".
        matrix: (D_old, D_new) float32, for old embeddings of unit length.
        offset: (D_new,) float32, added to their products.
    """

    kind: str
    matrix: np.ndarray
    offset: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(N, D_old) of any length to (N, D_new) float32 of unit length; rows of zeros stay."""
        if rows.shape[1] != len(self.matrix):
            raise TranslationError(
                f"the translator takes embeddings of {len(self.matrix)} values, found "
                f"{rows.shape[1]}: it was fitted on another model"
            )
        found = np.empty((len(rows), self.matrix.shape[1]), np.float32)
        for start in range(0, len(rows), _BLOCK):
            block = np.asarray(rows[start : start + _BLOCK], np.float32)
            made = unit_rows(unit_rows(block) @ self.matrix + self.offset)
            made[~block.any(axis=1)] = 0
            found[start : start + _BLOCK] = made
        return found


@dataclass(frozen=True)
class Trial:
    """What a kind of translator reached on people who were not fitted on.

    Attributes:
        cosine: mean, of an image's translated embedding with its new one.
        far: rate at which `tar` was taken; None where these people cannot show any.
        tar: of all pairs of their images, the first new, the second translated.
    """

    kind: str
    cosine: float
    far: float | None
    tar: float | None


@dataclass(frozen=True)
class Fit:
    """A translator, fitted on everybody after the best kind was chosen.

    Attributes:
        trials: of every kind, the best first: by TAR, then by the mean cosine.
        images, people: that it was fitted on.
        held_out: people whom the kind was chosen on.
    """

    translator: Translator
    trials: Sequence[Trial]
    images: int
    people: int
    held_out: int


def fit(old: np.ndarray, new: np.ndarray, people: np.ndarray, *, seed: int = 0) -> Fit:
    """Fit a translator on images that both models have embedded.

    Args:
        old: (N, D_old), rows of any length but zero.
        new: (N, D_new), of the same images.
        people: (N,) integers, whom they show.
        seed: of who is held out.

    Raises:
        TranslationError: too few people.
    """
    known, who = np.unique(people, return_inverse=True)
    if len(known) < FEWEST_PEOPLE:
        raise TranslationError(
            f"found {len(known)} people to fit a translator on, expected {FEWEST_PEOPLE} or more: "
            "some are held out to choose it by. Name more images for --fit, a folder for each "
            "person"
        )
    old, new = unit_rows(old), unit_rows(new)
    order = np.random.default_rng(seed).permutation(len(known))
    held_out = order[: max(2, round(HELD_OUT * len(known)))]
    is_held = np.isin(who, held_out)
    trials = [
        (_tried(one, old[is_held], new[is_held], who[is_held]), place)
        for place, one in enumerate(_candidates(old[~is_held], new[~is_held]))
    ]
    trials.sort(key=lambda trial: (-(trial[0].tar or 0.0), -trial[0].cosine))
    best = _candidates(old, new)[trials[0][1]]
    return Fit(best, [trial for trial, _ in trials], len(who), len(known), len(held_out))


def _candidates(old: np.ndarray, new: np.ndarray) -> list[Translator]:
    return [rotation(old, new), *(affine(old, new, ridge) for ridge in RIDGES)]


def rotation(old: np.ndarray, new: np.ndarray) -> Translator:
    """The matrix with orthonormal rows or columns that brings unit rows nearest to the new ones."""
    left, _, right = np.linalg.svd(_product(old, new), full_matrices=False)
    matrix = (left @ right).astype(np.float32)
    return Translator("rotation", matrix, np.zeros(matrix.shape[1], np.float32))


def affine(old: np.ndarray, new: np.ndarray, ridge: float) -> Translator:
    """The affine map of least squares, its matrix held small by `ridge` times the mean variance."""
    from_mean, to_mean = (rows.mean(axis=0, dtype=np.float64) for rows in (old, new))
    count, width = old.shape
    spread = _product(old, old) - count * np.outer(from_mean, from_mean)
    shared = _product(old, new) - count * np.outer(from_mean, to_mean)
    spread[np.diag_indices(width)] += ridge * max(np.trace(spread) / width, np.finfo(float).tiny)
    matrix = np.linalg.solve(spread, shared)
    offset = to_mean - from_mean @ matrix
    return Translator(
        f"affine, ridge {ridge:g}", *(part.astype(np.float32) for part in (matrix, offset))
    )


def _product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, B) float64: the sum over rows (N, A) and (N, B) of their outer products."""
    total = np.zeros((first.shape[1], second.shape[1]))
    for start in range(0, len(first), _BLOCK):
        block = slice(start, start + _BLOCK)
        total += first[block].astype(np.float64).T @ second[block].astype(np.float64)
    return total


def _tried(translator: Translator, old: np.ndarray, new: np.ndarray, who: np.ndarray) -> Trial:
    translated = translator(old)
    cosine = float(np.einsum("nd,nd->n", translated, new).mean())
    some = np.unique(np.linspace(0, len(who) - 1, _MOST).astype(int))
    same = who[some, None] == who[some]
    apart = ~np.eye(len(some), dtype=bool)  # an image beside itself is no pair of a person
    impostors = int((~same).sum())
    far = next((limit for limit in _FARS if can_show(limit, impostors)), None)
    if far is None or not (same & apart).any():
        return Trial(translator.kind, cosine, None, None)
    scores = new[some] @ translated[some].T
    tar = float(Roc.of(scores[apart], same[apart]).tar_at_far(far))
    return Trial(translator.kind, cosine, far, tar)
