"""The tables that an Evaluation is compared by, in no format yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.figure_names import direction, is_norm
from evaluation.report.figure_text import (
    MISSING,
    interval_text,
    interval_words,
    plain,
    title,
    value_text,
)
from evaluation.report.grid import Cell, Grid, Notes
from evaluation.result import Comparison, Evaluation, Figure, Model, Result

BEST = (
    "Marked in bold: shown to be better than every other model by paired tests on the same pairs, "
    "each test taken by itself"
)


def by_set(evaluation: Evaluation) -> Grid:
    """A row a set and a column a model: each set's headline figure."""
    notes = Notes()
    marks = Marks(evaluation)
    results = _by_place(evaluation)
    rows = []
    for name in sets(evaluation):
        figures = _headlines(evaluation, name)
        for figure in figures:
            row = [Cell(plain(name)), Cell(title(figure))]
            for model in evaluation.models:
                result = results.get((model.name, name))
                shown = result and result.headline == figure and result.figures[figure]
                row.append(marks.cell(name, figure, model.name, shown or None, notes))
            rows.append(row)
    return Grid(
        title="Comparison",
        columns=["set", "figure", *(plain(model.name) for model in evaluation.models)],
        rows=rows,
        names=2,
        notes=notes.texts,
        captions=_captions(evaluation.results, rows),
    )


def by_model(evaluation: Evaluation) -> list[Grid]:
    """A row a model and its sample rate, a column a set: headline figures, then feature norms.

    The form in which models trained with PartialFC are published: a table of each headline figure,
    and one of the mean feature norm where any result has it.
    """
    columns: dict[str, list[tuple[str, str]]] = {}  # by the table's title: set and figure
    for name in sets(evaluation):
        for figure in _headlines(evaluation, name):
            columns.setdefault(_capital(title(figure)), []).append((name, figure))
    for name in sets(evaluation):
        if norm := _norm(evaluation, name):
            columns.setdefault("Mean feature norm", []).append((name, norm))
    return [_rated(evaluation, name, places) for name, places in columns.items()]


def of_set(evaluation: Evaluation, name: str) -> Grid:
    """Every figure of one set: a row a figure, a column a model."""
    results = [result for result in evaluation.results if result.set == name]
    notes = Notes()
    marks = Marks(evaluation)
    rows = []
    for figure in dict.fromkeys(figure for result in results for figure in result.figures):
        cells = [
            marks.cell(name, figure, result.model, result.figures.get(figure), notes)
            for result in results
        ]
        rows.append([Cell(title(figure)), *cells])
    return Grid(
        title=plain(name),
        columns=["figure", *(plain(result.model) for result in results)],
        rows=rows,
        names=1,
        notes=notes.texts,
        captions=_captions(results, rows),
    )


def of_groups(evaluation: Evaluation, name: str) -> Grid | None:
    """The groups of one set: a row a group and model; None where it has no groups.

    A group's name stands in its first row alone. What groups are compared by, their errors at the
    threshold that they share, comes first.
    """
    results = [result for result in evaluation.results if result.set == name and result.groups]
    if not results:
        return None
    notes = Notes()
    names = dict.fromkeys(group for result in results for group in result.groups)
    parts = [(group, result) for group in names for result in results if group in result.groups]
    found = [result.groups[group] for group, result in parts]
    counted = list(dict.fromkeys(kind for group in found for kind in group.counts))
    figures = dict.fromkeys(figure for group in found for figure in group.figures)
    named = sorted(figures, key=lambda figure: "at the common threshold" not in figure)
    rows = []
    for i, ((part, result), group) in enumerate(zip(parts, found)):
        again = i > 0 and parts[i - 1][0] == part
        row = [Cell("" if again else plain(part)), Cell(plain(result.model))]
        row += [Cell(f"{group.counts[k]:,}" if k in group.counts else MISSING) for k in counted]
        row += [cell(figure, group.figures.get(figure), notes) for figure in named]
        rows.append(row)
    return Grid(
        title=f"{plain(name)}: groups",
        columns=["group", "model", *map(plain, counted), *(title(f) for f in named)],
        rows=rows,
        names=2,
        notes=notes.texts,
        captions=_captions(results, rows),
        one_figure_a_row=False,
    )


def sets(evaluation: Evaluation) -> list[str]:
    """The names of the sets, in the order of their results."""
    return list(dict.fromkeys(result.set for result in evaluation.results))


def cell(name: str, figure: Figure | None, notes: Notes, *, best: bool = False) -> Cell:
    """How a figure stands in a table; its note is numbered."""
    if figure is None:
        return Cell(MISSING)
    return Cell(
        value_text(name, figure),
        doubt=interval_text(name, figure),
        best=best,
        note=notes.number(plain(figure.note)),
        figure=figure,
    )


def shown_better(comparison: Comparison) -> int:
    """1 where the first model is shown to be better, -1 where the second is, else 0."""
    low, high = comparison.difference.low, comparison.difference.high
    if low is None or high is None or low <= 0 <= high:
        return 0
    return direction(comparison.figure) * (1 if low > 0 else -1)


class Marks:
    """Which figures are shown to be the best: better than every other model in a paired test."""

    def __init__(self, evaluation: Evaluation) -> None:
        shown: set[tuple[str, str, str, str]] = set()  # set, figure, better, worse
        for one in evaluation.comparisons:
            if sign := shown_better(one):
                better, worse = (one.first, one.second)[::sign]
                shown.add((one.set, one.figure, better, worse))
        judged: dict[tuple[str, str], list[str]] = {}
        for result in evaluation.results:
            for figure, found in result.figures.items():
                if found.value is not None:
                    judged.setdefault((result.set, figure), []).append(result.model)
        self.best = {
            (name, figure, model)
            for (name, figure), models in judged.items()
            for model in models
            if len(models) > 1
            and all((name, figure, model, o) in shown for o in models if o != model)
        }

    def cell(self, place: str, name: str, model: str, figure: Figure | None, notes: Notes) -> Cell:
        return cell(name, figure, notes, best=(place, name, model) in self.best)


def _rated(evaluation: Evaluation, name: str, columns: Sequence[tuple[str, str]]) -> Grid:
    """A row a model, its sample rate beside it where any is known; a column a set's figure."""
    rated = any(model.sample_rate is not None for model in evaluation.models)
    results = _by_place(evaluation)
    marks = Marks(evaluation)
    notes = Notes()
    rows = []
    for model in evaluation.models:
        row = [Cell(plain(model.name)), *([Cell(_rate(model))] if rated else [])]
        for place, figure in columns:
            result = results.get((model.name, place))
            found = result.figures.get(figure) if result else None
            row.append(marks.cell(place, figure, model.name, found, notes))
        rows.append(row)
    shown = {place for place, _ in columns}
    return Grid(
        title=name,
        columns=["model", *(["sample rate"] if rated else []), *(plain(p) for p, _ in columns)],
        rows=rows,
        names=1 + rated,
        notes=notes.texts,
        captions=_captions([r for r in evaluation.results if r.set in shown], rows),
    )


def _by_place(evaluation: Evaluation) -> dict[tuple[str, str], Result]:
    return {(result.model, result.set): result for result in evaluation.results}


def _headlines(evaluation: Evaluation, name: str) -> list[str]:
    """The headline figures of a set: one, unless two models were judged by two protocols."""
    return list(dict.fromkeys(r.headline for r in evaluation.results if r.set == name))


def _norm(evaluation: Evaluation, name: str) -> str | None:
    """The name of the figure of the set that is the mean feature norm, where one has it."""
    for result in evaluation.results:
        for figure in result.figures if result.set == name else ():
            if is_norm(figure):
                return figure
    return None


def _rate(model: Model) -> str:
    return MISSING if model.sample_rate is None else f"{model.sample_rate:g}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _captions(results: Iterable[Result], rows: Iterable[Sequence[Cell]]) -> list[str]:
    ways = dict.fromkeys(words for result in results if (words := interval_words(result.interval)))
    return [*ways, *([BEST] if any(cell.best for row in rows for cell in row) else [])]
