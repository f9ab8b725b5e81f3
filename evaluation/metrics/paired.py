"""Is one model better than another? Tested on the same pairs or searches, in the same draws.

Two models mistake much the same pairs, so the difference of their figures is far better known than
either figure: intervals that overlap say nothing. Here the difference itself is taken in every
draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from evaluation.figure_names import direction, is_percentage
from evaluation.metrics.bootstrap import bootstrap
from evaluation.metrics.intervals import LEVEL, Spread
from evaluation.metrics.measure import Comparisons, Plan, scored
from evaluation.result import Comparison, Figure


def compare_models(
    models: Mapping[str, Comparisons], plan: Plan, *, set_name: str, figures: Sequence[str]
) -> list[Comparison]:
    """Every two models, in their order, by each of the figures.

    Args:
        models: by name, the scores of each on the very same pairs.
        plan: with draws; its shares and discards are not looked at.
        set_name: whose pairs they are.
        figures: by the names that `measure` gives them. One that the set cannot show is left out.

    Raises:
        UserError: pairs of one kind only, or scores that are not finite.
    """
    points: dict[str, Mapping[str, np.ndarray]] = {}
    spreads: dict[str, Mapping[str, Spread]] = {}
    for name, pairs in models.items():
        of_model = scored(pairs, plan)
        points[name] = of_model.point()
        spreads[name] = bootstrap(
            of_model.figures,
            pairs.clusters,
            draws=plan.draws,
            seed=plan.seed,
            at_once=of_model.at_once,
        )
    first = next(iter(models.values()))
    return pairwise(points, spreads, set_name=set_name, figures=_shown(figures, first, plan))


def pairwise(
    points: Mapping[str, Mapping[str, np.ndarray]],
    spreads: Mapping[str, Mapping[str, Spread]],
    *,
    set_name: str,
    figures: Iterable[str],
) -> list[Comparison]:
    """Every two models, in their order, by each of the figures.

    Args:
        points: by model and figure, (1,).
        spreads: by model and figure, over the same draws for all models.
    """
    return [
        comparison
        for first, second in combinations(points, 2)
        for figure in figures
        if (
            comparison := _comparison(
                figure,
                set_name,
                (first, second),
                [float(points[name][figure][0]) for name in (first, second)],
                spreads[first][figure] - spreads[second][figure],
            )
        )
    ]


def _shown(figures: Iterable[str], pairs: Comparisons, plan: Plan) -> list[str]:
    cannot = plan.cannot_show(pairs)
    return [figure for figure in figures if figure not in cannot]


def _comparison(
    figure: str,
    set_name: str,
    models: tuple[str, str],
    points: Sequence[float],
    spread: Spread,
) -> Comparison | None:
    difference = points[0] - points[1]
    if not np.isfinite(difference):
        return None
    low, high = (float(end) for end in spread.interval(np.asarray(difference)))
    if not (np.isfinite(low) and np.isfinite(high)):
        low = high = difference  # the same in every draw
    found = Figure(difference, low, high)
    return Comparison(set_name, figure, *models, found, verdict(figure, found))


def verdict(figure: str, difference: Figure) -> str:
    """What is shown of the first model, in words: better, worse, or neither.

    Args:
        difference: the first model's figure less the second's, with its interval.
    """
    assert difference.value is not None
    assert difference.low is not None
    assert difference.high is not None
    gain, low, high = difference.value, difference.low, difference.high
    if direction(figure) < 0:
        gain, low, high = -gain, -high, -low
    if low == high == 0:
        return "nothing is judged otherwise: not shown to differ"
    word = "better" if gain >= 0 else "worse"
    scale, unit = (100, " points") if is_percentage(figure) else (1, "")
    shown = "shown" if low > 0 or high < 0 else "not shown"
    return (
        f"{abs(scale * gain):.2f}{unit} {word}, {100 * LEVEL:.0f} % interval "
        f"{_signed(scale * low)} … {_signed(scale * high)}: {shown} to be {word}"
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
