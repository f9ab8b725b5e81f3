"""Images that are not of the person they are filed under.

An image's margin is its cosine with the center of its own identity, less that with the nearest
other. What margins wrong labels have is known without knowing any: it is what images have when they
are filed under an identity that is drawn for them. How many labels are wrong, and how many of those
below a threshold, follows from comparing the two distributions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.people.centers import Centers, Nearest, blocks

_FEWEST = 100  # images that two distributions can be told from
_LEAST_SEEN = 0.2  # of the drawn margins below a place where the share of wrong labels is read off
_SURE = 0.7  # of those left out that must be wrong by the estimate, unreliable below
_MOST = 0.5  # of all labels: where more seem wrong, it is the model that cannot tell


@dataclass(frozen=True)
class Mislabeled:
    """Which images have a wrong label, and how sure that is.

    Attributes:
        suspects: (K,) int64, the images, the worst first.
        margins: (N,) float32; NaN for an image that cannot be judged.
        threshold: the margin below which an image is a suspect; -inf where there is none.
        share: of all labels that are wrong, an estimate from above.
        precision: of the suspects that are wrongly labeled, estimated.
        recall: of the wrong labels that are among the suspects, estimated.
    """

    suspects: np.ndarray
    margins: np.ndarray
    threshold: float
    share: float
    precision: float
    recall: float


def find_mislabeled(
    rows: np.ndarray,
    labels: np.ndarray,
    centers: Centers,
    others: Nearest,
    *,
    seed: int = 0,
) -> Mislabeled:
    """Find wrong labels; as many right ones are taken for wrong as wrong ones are missed.

    Where too many right ones would go, because the model tells people apart too badly, none goes.

    Args:
        rows: (N, D) embeddings.
        labels: (N,) int64.
        centers: of these.
        others: for each image the nearest three identities besides its own.
        seed: of the identities that are drawn.
    """
    margins = centers.own - others.cosine[:, 0]
    judged = np.sort(margins[np.isfinite(margins)])
    drawn = np.sort(_drawn_margins(rows, labels, centers, others, seed))
    if min(len(judged), len(drawn)) < _FEWEST:
        return Mislabeled(np.empty(0, np.int64), margins, -np.inf, 0.0, 0.0, 0.0)
    below = np.arange(1, len(judged) + 1) / len(judged)  # of all margins
    wrong = np.searchsorted(drawn, judged, side="right") / len(drawn)  # of those of wrong labels
    seen = wrong >= _LEAST_SEEN
    share = float((below[seen] / wrong[seen]).min(initial=1))
    # Right ones that would go, and wrong ones that would stay, as shares of all.
    lost, kept = below - share * wrong, share * (1 - wrong)
    at = int(np.abs(lost - kept).argmin())
    precision, recall = min(1.0, float(share * wrong[at] / below[at])), float(wrong[at])
    if precision < _SURE or share > _MOST:
        return Mislabeled(np.empty(0, np.int64), margins, -np.inf, share, 0.0, 0.0)
    threshold = float(judged[at])
    suspects = np.flatnonzero(margins < threshold)
    return Mislabeled(
        suspects[np.argsort(margins[suspects], kind="stable")],
        margins,
        threshold,
        share,
        precision,
        recall,
    )


def _drawn_margins(
    rows: np.ndarray, labels: np.ndarray, centers: Centers, others: Nearest, seed: int
) -> np.ndarray:
    """Margins that images have under an identity that is drawn among those with images."""
    random = np.random.default_rng(seed)
    there = np.flatnonzero(centers.directions.any(1))
    drawn = there[random.integers(len(there), size=len(rows))]
    margins = np.full(len(rows), np.nan, np.float32)
    for at, block in blocks(rows):
        cosine = np.einsum("nd,nd->n", centers.directions[drawn[at]], block)
        margins[at] = cosine - others.cosine[at, 0]
    # Their own, or the nearest other, they would be right under.
    usable = np.isfinite(centers.own) & (drawn != labels) & (drawn != others.which[:, 0])
    return margins[usable]
