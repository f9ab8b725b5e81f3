"""What a number of comparisons can show at all.

Where no error is seen in N independent comparisons, the rate is below 3/N with 95 % confidence
(the rule of three, from (1 - p)^N = 0.05). So no set of N impostor pairs can show a FAR below 3/N.

Comparisons that share a person are not independent, and how strongly they depend on each other
cannot be seen where no error is. An interval that rests on this rule counts only as many as can be
made with nobody in two of them (`bootstrap.Clusters.apart`); whether a rate is shown at all goes by
the number of pairs, as the field's tables do.
"""

from __future__ import annotations

import math


def below(comparisons: int) -> float:
    """The rate that is ruled out, at 95 %, by no error in that many independent comparisons."""
    return min(3 / comparisons, 1.0) if comparisons else 1.0


def can_show(far: float, impostors: int) -> bool:
    """Whether that many impostor pairs, taken as independent, can show a rate so small."""
    return below(impostors) <= far


def least_impostors(far: float) -> int:
    """How many impostor pairs `can_show` wants for that rate."""
    return math.ceil(3 / far)


def cannot_show(far: float, impostors: int) -> str:
    """The note of a figure that stays empty."""
    return (
        f"this set cannot show a FAR of {far:g}: no error in {impostors:,} impostor pairs means "
        f"a rate below {below(impostors):.2g}"
    )
