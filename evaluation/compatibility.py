"""A new model beside an old one: what its embeddings are worth against those that are enrolled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evaluation.features import Features
from evaluation.protocols.pairs import Pairs
from evaluation.protocols.protocol import Asked
from evaluation.result import Comparison, Result
from evaluation.translation import Translator

TRANSLATED, CROSSED = "new × translated old", "new × old"
NEW, OLD = "new × new", "old × old"
_SECOND = {
    TRANSLATED: "the old model, translated; of the first by the new one",
    CROSSED: "the old model; of the first by the new one",
}


def combine(old: Features, new: Features, translator: Translator | None) -> dict[str, Features]:
    """A set's embeddings by both models, as they may meet; by name, in the order to compare them.

    New and old are compared as they are only where they have as many values.
    """
    damaged = {**old.damaged, **new.damaged}
    old, new = replace(old, damaged=damaged), replace(new, damaged=damaged)
    found: dict[str, Features] = {}
    if translator:
        found[TRANSLATED] = replace(new, against=translator(old.embeddings))
    if old.embeddings.shape[1] == new.embeddings.shape[1]:
        found[CROSSED] = replace(new, against=old.embeddings)
    return found | {NEW: new, OLD: old}


def judge_together(
    test_set: Pairs, features: Mapping[str, Features], asked: Asked
) -> tuple[list[Result], list[Comparison]]:
    """What every combination reaches on a set, and every two of them on the same pairs.

    The headline is the TAR at the smallest FAR that the set can show, or the accuracy.

    Raises UserError where the set cannot show what is asked.
    """
    results = []
    for name, one in features.items():
        about = test_set.about
        if name in _SECOND:
            about = {**about, "second images are embedded by": _SECOND[name]}
        result = replace(test_set, about=about).judge(one, model=name, asked=asked)
        shown = [
            figure
            for figure, found in result.figures.items()
            if figure.startswith("tar@far=") and found.value is not None
        ]
        results.append(replace(result, headline=[result.headline, *shown][-1]))
    return results, test_set.compare(features, asked=asked) if asked.draws else []
