"""Same person or not: what a model's card says of a cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.judge import FAR_LIMITS
from evaluation.metrics.limits import least_impostors
from facestream import UserError
from training.frozen.card import Card, OperatingPoint

SAME, DIFFERENT, UNDECIDED = "same", "different", "undecided"
USUAL = 1e-3  # false match rate


@dataclass(frozen=True)
class Decision:
    """Where a model decides: at one operating point of its card."""

    point: OperatingPoint

    def of(self, cosines: np.ndarray) -> np.ndarray:
        """(P,) words; those within the threshold's interval are undecided, and so is NaN."""
        low, high = self._bounds()
        words = np.full(len(cosines), UNDECIDED, object)
        words[cosines >= high] = SAME
        words[cosines < low] = DIFFERENT
        return words

    def __str__(self) -> str:
        point = self.point
        low, high = self._bounds()
        between = f" (undecided from {low:.3f} to {high:.3f})" if low < high else ""
        return (
            f"same from a cosine of {point.threshold:.3f}{between}: there, {point.fmr:g} of "
            f"{point.impostor} pairs of two people of {point.set} are taken for one person (FMR)"
        )

    def _bounds(self) -> tuple[float, float]:
        point = self.point
        low = point.threshold if point.low is None else min(point.low, point.threshold)
        high = point.threshold if point.high is None else max(point.high, point.threshold)
        return low, high


def decision_of(
    card: Card | None, *, of: str, digest: str, flip: bool, fmr: float | None, on: str
) -> Decision | str:
    """Where a model decides; or, where its card says nothing of that, why, and how to mend it.

    Args:
        of: the model, as it was named.
        digest: of the model that was opened: a card of others says nothing of it.
        flip: whether the embeddings are sums with those of the mirror images.
        fmr: false match rate that is wanted; None for that nearest to USUAL.
        on: the set that it is wanted on; empty for that with the most impostor pairs.

    Raises:
        UserError: a card without that set or rate.
    """
    if card is not None and card.scores and not card.points:
        return (
            "no decision: the model's card has no operating points. It was evaluated on "
            f"{', '.join(card.scores)}, with too few pairs of two people to show one. Evaluate it "
            f"with tools/evaluate.py --card on {least_impostors(max(FAR_LIMITS))} such pairs or "
            "more"
        )
    if card is None or not card.points:
        return (
            "no decision: the model has no card with operating points. Export it to .onnx or "
            ".safetensors, then evaluate it on your own pairs with tools/evaluate.py --card"
        )
    if card.digest != digest:
        return (
            f"no decision: the card is of weights of digest {card.digest or 'unknown'}, and these "
            f"are {digest}. Evaluate them with tools/evaluate.py --card"
        )
    points = [point for point in card.points if point.flip == flip]
    if not points:
        return (
            f"no decision: the model's card is of embeddings {'without' if flip else 'with'} the "
            f"mirror images': {'add' if flip else 'leave out'} --no-flip"
        )
    return Decision(chosen_point(points, of=of, fmr=fmr, on=on))


def chosen_point(
    points: Sequence[OperatingPoint], *, of: str, fmr: float | None, on: str
) -> OperatingPoint:
    """One of some thresholds; arguments and errors as those of `decision_of`."""
    sets = {point.set: point.impostor for point in points}
    on = on or max(sets, key=lambda name: sets[name])
    chosen = [point for point in points if point.set == on]
    if fmr is not None:
        chosen = [point for point in chosen if math.isclose(point.fmr, fmr, rel_tol=1e-6)]
    if not chosen:
        wanted = "" if fmr is None else f" at an FMR of {fmr:g}"
        known = ", ".join(f"{p.fmr:g} on {p.set}" for p in points)
        raise UserError(
            f"{of} has no threshold{wanted} on {on}. It has {known}: choose by --fmr and --set"
        )
    return min(chosen, key=lambda point: abs(math.log(point.fmr / USUAL)))
