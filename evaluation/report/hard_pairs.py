"""The pairs that a model judged worst, with or without their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from evaluation.report.element import element
from evaluation.report.figure_text import plain
from evaluation.report.thumbnails import Thumbnails
from evaluation.result import HardPair, Result

_SHOWN = 12  # pairs of a kind and set, shared among the models
_FEWEST = 3  # of a model

_ACCEPTS, _REJECTS = "false accepts", "false rejects"
_TITLES = {
    _ACCEPTS: "False accepts: the impostor pairs of highest score",
    _REJECTS: "False rejects: the genuine pairs of lowest score",
}


def hard_pairs(results: Sequence[Result], thumbnails: Thumbnails) -> Iterable[Element]:
    """The hardest pairs of each kind by each model, all of one set."""
    shown = max(_FEWEST, _SHOWN // max(1, len(results)))
    for kind in dict.fromkeys(kind for result in results for kind in result.hardest):
        having = [result for result in results if result.hardest.get(kind)]
        if having:
            yield element("h3", _TITLES.get(kind, plain(kind).capitalize()))
        for result in having:
            threshold = _threshold(result)
            said = [plain(result.model)] if len(results) > 1 else []
            if threshold is not None:
                said.append(f"one person from a cosine of {threshold:.3f} up")
            if said:
                yield element("h4", " · ".join(said))
            yield element(
                "ul",
                *(
                    _pair(result, pair, thumbnails, wrong=_wrong(kind, pair.score, threshold))
                    for pair in result.hardest[kind][:shown]
                ),
                class_="pairs" if thumbnails.wanted else "pairs bare",
            )


def _pair(result: Result, pair: HardPair, thumbnails: Thumbnails, *, wrong: bool) -> Element:
    first, second = (thumbnails.show(result.set, name) for name in (pair.a, pair.b))
    return element(
        "li",
        element("span", first, second, class_="faces") if thumbnails.wanted else None,
        element("b", f"{pair.score:.3f}".replace("-", "−")),
        element("span", "wrong", class_="wrong") if wrong else None,
        element("span", pair.a, class_="image-name"),
        element("span", pair.b, class_="image-name"),
    )


def _threshold(result: Result) -> float | None:
    """The cosine from which on a pair counts as one person, in the mean of the folds."""
    found = result.figures.get("threshold")
    return found.value if found else None


def _wrong(kind: str, score: float, threshold: float | None) -> bool:
    if threshold is None:
        return False
    return score >= threshold if kind == _ACCEPTS else kind == _REJECTS and score < threshold
