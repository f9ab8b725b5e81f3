"""How every number was made: the models, and each set's settings, counts and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from evaluation.report.comparison import sets
from evaluation.report.element import Content, element
from evaluation.report.figure_text import MISSING, interval_words
from evaluation.report.html_table import facts, scrolling
from evaluation.report.svg import key
from evaluation.result import Evaluation, Result


def models_table(evaluation: Evaluation, series: Mapping[str, int]) -> Element:
    """What each model is, with the whole digest of its weights."""
    columns = (
        *("model", "sample rate", "network", "embedding", "image", "input", "precision"),
        *("weights' digest", "read from"),
    )
    rows = []
    for model in evaluation.models:
        stroke = key(series[model.name]) if len(evaluation.models) > 1 else None
        rate = MISSING if model.sample_rate is None else f"{model.sample_rate:g}"
        cells: Sequence[Content] = [
            *(rate, model.network, str(model.embedding_dim), f"{model.image_size} px"),
            *(model.input, model.precision, element("code", model.digest), model.source),
        ]
        rows.append(
            element(
                "tr",
                element("th", stroke, model.name, scope="row", class_="name"),
                *(element("td", content, class_="name") for content in cells),
            )
        )
    heads = [element("th", name, scope="col", class_="name") for name in columns]
    table = element(
        "table",
        element("caption", "Models", class_="unseen"),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
        class_="words",
    )
    return scrolling(table, "Models")


def how_made(evaluation: Evaluation) -> Iterable[Element]:
    """For every set what its numbers rest on; what differs between models is said for each."""
    for name in sets(evaluation):
        results = [result for result in evaluation.results if result.set == name]
        stated = [_stated(result) for result in results]
        pairs = []
        for label in dict.fromkeys(label for one in stated for label in one):
            texts = {result.model: one.get(label, MISSING) for result, one in zip(results, stated)}
            pairs.append((label, _one_or_each(texts)))
        yield element("h3", name)
        yield facts(pairs)


def overlap_facts(overlap: Mapping[str, Any]) -> Element:
    """What the leak check found, as it is named there."""
    return facts((name, _shown(value)) for name, value in overlap.items())


def _stated(result: Result) -> dict[str, str]:
    """What is said of a result, by its name."""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in result.counts.items())
    return {
        "protocol": result.protocol,
        **{str(name): _words(value) for name, value in result.settings.items()},
        "counts": counts or MISSING,
        "intervals": interval_words(result.interval, whole=True) or "none",
        "made": result.made or MISSING,
        "code": result.code,
    }


def _one_or_each(texts: Mapping[str, str]) -> Content:
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return element("ul", *(element("li", f"{model}: {text}") for model, text in texts.items()))


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_words(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return MISSING if value is None else str(value)


def _shown(value: Any) -> Content:
    if isinstance(value, Mapping):
        return facts((str(name), _shown(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        return element("ul", *(element("li", _words(item)) for item in value))
    return _words(value)
