"""One page that shows an Evaluation: complete in itself, without network, with or without faces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from xml.etree.ElementTree import Element

from evaluation.report.comparison import by_set, sets
from evaluation.report.document import document
from evaluation.report.element import element
from evaluation.report.figure_text import plain
from evaluation.report.html_table import html_table
from evaluation.report.provenance import how_made, models_table, overlap_facts
from evaluation.report.set_section import set_section
from evaluation.report.thumbnails import Pictures, Thumbnails
from evaluation.result import Evaluation
from pipeline.whole_file import write_whole


def write_html(
    evaluation: Evaluation,
    path: str | Path,
    *,
    pictures: Pictures | None = None,
    more: Sequence[Element] = (),
) -> None:
    """Write the page, complete or not at all.

    Args:
        pictures: (set, name of an image) to its encoded bytes, None for one that there is not; it
            is asked for the hardest pairs alone. Without it the page holds no picture of anyone,
            and says so.
        more: sections that come after those of the sets.

    Raises:
        OSError: where it cannot be written.
    """
    write_whole(Path(path), page(evaluation, pictures=pictures, more=more))


def page(
    evaluation: Evaluation, *, pictures: Pictures | None = None, more: Sequence[Element] = ()
) -> str:
    """The page's text; arguments as for `write_html`."""
    thumbnails = Thumbnails(pictures)
    series = {model.name: place for place, model in enumerate(evaluation.models)}
    anchors = {name: f"set-{place}" for place, name in enumerate(sets(evaluation), 1)}
    sections = [
        set_section(evaluation, name, anchor=anchor, series=series, thumbnails=thumbnails)
        for name, anchor in anchors.items()
    ]
    body = element(
        "body",
        _header(evaluation, thumbnails),
        element(
            "main",
            _summary(evaluation, series, anchors),
            *sections,
            *more,
            _leaks(evaluation),
            element(
                "section",
                element("h2", "Models"),
                models_table(evaluation, series),
                id="models",
            ),
            element(
                "section",
                element("h2", "How every number was made"),
                *how_made(evaluation),
                id="provenance",
            ),
        ),
    )
    return document(_heading(evaluation), body)


def _header(evaluation: Evaluation, thumbnails: Thumbnails) -> Element:
    made = _moment(max((result.made for result in evaluation.results), default=""))
    codes = ", ".join(dict.fromkeys(result.code for result in evaluation.results))
    return element(
        "header",
        element("p", "Face recognition · evaluation", class_="eyebrow"),
        element("h1", _heading(evaluation)),
        element("p", " · ".join(part for part in (made, codes) if part), class_="subtitle"),
        element("p", _pictures_held(thumbnails), class_="subtitle"),
    )


def _heading(evaluation: Evaluation) -> str:
    models, places = evaluation.models, sets(evaluation)
    who = plain(models[0].name) if len(models) == 1 else f"{len(models)} models"
    where = plain(places[0]) if len(places) == 1 else f"{len(places)} sets"
    return f"{who} on {where}"


def _moment(made: str) -> str:
    """ "1 March 2026, 12:00 UTC"; what is no ISO 8601 stays as it is."""
    try:
        moment = datetime.fromisoformat(made.replace("Z", "+00:00"))
    except ValueError:
        return made
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _pictures_held(thumbnails: Thumbnails) -> str:
    if not thumbnails.wanted:
        return "This report holds no pictures of people: they were left out."
    if not thumbnails.count:
        return "This report holds no pictures of people."
    return (
        f"This report holds {thumbnails.count} pictures of people: show it only to those who may "
        "see them."
    )


def _summary(evaluation: Evaluation, series: dict[str, int], anchors: dict[str, str]) -> Element:
    grid = by_set(evaluation)
    below = [
        [replace(name, doubt=figure.text), *numbers] for name, figure, *numbers in grid.rows
    ]  # what the headline figure is stands below the set's name
    return element(
        "section",
        element("h2", "Summary"),
        html_table(
            replace(grid, columns=[grid.columns[0], *grid.columns[2:]], rows=below, names=1),
            series=series if len(series) > 1 else {},
            links={plain(name): anchor for name, anchor in anchors.items()},
        ),
        id="summary",
    )


def _leaks(evaluation: Evaluation) -> Element | None:
    if not evaluation.overlap:
        return None
    return element(
        "section",
        element("h2", "Leak check"),
        overlap_facts(evaluation.overlap),
        id="leaks",
    )
