"""What every protocol offers: its images, quick scores for a run, a full result for a report.

A protocol embeds nothing. Whoever evaluates asks for its images, embeds them (evaluation/
features.py), and hands it the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evaluation.features import Features
from evaluation.images import Images
from evaluation.result import Comparison, Result
from facestream import UserError


@dataclass(frozen=True)
class Asked:
    """What a full result is to hold.

    Attributes:
        draws: of the bootstrap, for intervals; 0 for none.
        seed: of the draws.
        folds: parts that accuracy is measured on, each with the others' threshold.
        disjoint_folds: whether no person may be in two of them; only where people are known.
        groups: image or person name to the group that figures are wanted of.
        quality: a value by image name, higher for better, for the error-versus-discard curve; the
            embeddings' norms where there is none.
        without: names of images to leave out with all their comparisons, such as leaked ones.
    """

    draws: int = 1000
    seed: int = 0
    folds: int = 10
    disjoint_folds: bool = False
    groups: Mapping[str, str] | None = None
    quality: Mapping[str, float] | None = None
    without: frozenset[str] = frozenset()


class TestSet(Protocol):
    """A set of images and what is asked of them: pairs, templates, galleries and probes.

    It is a frozen dataclass: a degraded set is a copy with other images, name and `about`.

    Attributes:
        name: as shown: "lfw", "lfw+blur", "ijbc".
        images: to embed.
        headline: the score by which models are compared: "accuracy", "tar@far=0.0001", "rank-1".
        about: what a result is to say of how the set was made, such as a degradation.
    """

    @property
    def name(self) -> str: ...

    @property
    def images(self) -> Images: ...

    @property
    def headline(self) -> str: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def check(self, asked: Asked) -> None:
        """Raise UserError where the set cannot show what is asked, whatever the embeddings are."""

    def scores(self, features: Features) -> dict[str, float]:
        """A few figures without intervals, quick enough to be made at every epoch."""

    def judge(self, features: Features, *, model: str, asked: Asked) -> Result:
        """All figures, with their doubt.

        Raises:
            UserError: where the set, or what is left of it, cannot show what is asked.
        """

    def compare(self, features: Mapping[str, Features], *, asked: Asked) -> list[Comparison]:
        """Every two models, by name, on the very same pairs; none where no such test is made.

        Raises:
            UserError: as `judge`.
        """


def quality_of(names: Sequence[str], quality: Mapping[str, float]) -> np.ndarray:
    """(N,) the quality of each image. Raises UserError where one has none."""
    missing = [name for name in names if name not in quality]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} images have no quality, such as {missing[0]}; "
            "expected a value for each"
        )
    return np.array([quality[name] for name in names])


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """(N, D) to float32 rows of unit length; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
