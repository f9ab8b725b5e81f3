"""Paired tests as tables: what is shown of two models, or how each of many differs from each."""

from __future__ import annotations

from dataclasses import replace

from evaluation.report.comparison import cell, shown_better
from evaluation.report.figure_text import plain, title
from evaluation.report.grid import Cell, Grid, Notes
from evaluation.result import Comparison, Evaluation, Figure

FEW = 3  # models, of which every two are compared in words

_NAME = "Differences on the same pairs"


def differences(evaluation: Evaluation, name: str) -> list[Grid]:
    """What the paired tests on the set `name` show: in words, or of many models as a square."""
    comparisons = [one for one in evaluation.comparisons if one.set == name]
    if not comparisons:
        return []
    if len(evaluation.models) <= FEW:
        return [_in_words(comparisons)]
    figures = dict.fromkeys(one.figure for one in comparisons)
    return [
        _square(evaluation, [one for one in comparisons if one.figure == figure])
        for figure in figures
    ]


def _in_words(comparisons: list[Comparison]) -> Grid:
    rows = [
        [
            Cell(f"{plain(one.first)} − {plain(one.second)}"),
            Cell(title(one.figure)),
            Cell(plain(one.verdict)),
        ]
        for one in comparisons
    ]
    columns = ["models", "figure", "what is shown of the first"]
    return Grid(title=_NAME, columns=columns, rows=rows, names=3)


def _square(evaluation: Evaluation, comparisons: list[Comparison]) -> Grid:
    """The row's model less the column's."""
    notes = Notes()
    cells: dict[tuple[str, str], Cell] = {}
    for one in comparisons:
        sign = shown_better(one)
        for models, difference, best in (
            ((one.first, one.second), one.difference, sign > 0),
            ((one.second, one.first), _reversed(one.difference), sign < 0),
        ):
            cells[models] = _signed(cell(one.figure, difference, notes, best=best))
    names = [model.name for model in evaluation.models]
    return Grid(
        title=f"{_NAME}: {title(comparisons[0].figure)}",
        columns=["model", *map(plain, names)],
        rows=[
            [Cell(plain(row)), *(cells.get((row, column), Cell("")) for column in names)]
            for row in names
        ],
        names=1,
        notes=notes.texts,
        captions=["The row's model less the column's; marked where it is shown to be better"],
    )


def _reversed(difference: Figure) -> Figure:
    value, low, high = (
        None if number is None else -number
        for number in (difference.value, difference.high, difference.low)
    )
    return replace(difference, value=value, low=low, high=high)


def _signed(shown: Cell) -> Cell:
    above = shown.figure and shown.figure.value is not None and shown.figure.value > 0
    return replace(shown, text=f"+{shown.text}") if above else shown
