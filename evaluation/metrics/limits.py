"""What a number of comparisons can show at all.

Where no error is seen in N independent comparisons, the rate is below 3/N with 95 % confidence
(the rule of three, from (1 - p)^N = 0.05). So no set of N impostor pairs can show a FAR below 3/N.

Comparisons that share a person are not independent. Nothing is assumed of how strongly they depend
on each other: only as many are counted as can be drawn without a person taken twice, one genuine
pair a person and one impostor pair for each two.
"""

from __future__ import annotations

import numpy as np


def below(comparisons: int) -> float:
    """The rate that is ruled out, at 95 %, by no error in that many independent comparisons."""
    return min(3 / comparisons, 1.0) if comparisons else 1.0


def can_show(far: float, impostors: int) -> bool:
    """Whether that many impostor pairs, taken as independent, can show a rate so small."""
    return below(impostors) <= far


def cannot_show(far: float, impostors: int) -> str:
    """The note of a figure that stays empty."""
    return (
        f"this set cannot show a FAR of {far:g}: no error in {impostors:,} impostor pairs means "
        f"a rate below {below(impostors):.2g}"
    )


def apart(first: np.ndarray, second: np.ndarray, same: np.ndarray) -> int:
    """How many of the pairs could at most be drawn with nobody in two of them.

    Args:
        first, second: (P,) integers, the person or image on each side.
        same: (P,) bool; all True or all False, or a mixture.
    """
    genuine = len(np.unique(first[same]))
    impostor = len(np.unique(np.r_[first[~same], second[~same]])) // 2
    return min(genuine, int(same.sum())) + min(impostor, int((~same).sum()))
