"""An Evaluation as tables for the console, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv as csv_format
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from evaluation.report.comparison import by_model, by_set, of_groups, of_set, sets
from evaluation.report.console import ConsoleTables
from evaluation.report.differences import FEW, differences
from evaluation.report.figure_text import plain
from evaluation.report.grid import Cell, Grid
from evaluation.result import Evaluation, Figure

_MARKDOWN = re.compile(r"([\\|`*_\[\]~#])")
_LATEX = {
    **{letter: "\\" + letter for letter in "#$%&_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
    **{"–": "--", "−": "$-$", "×": r"$\times$", "′": "$'$", "≤": r"$\leq$", "≥": r"$\geq$"},
    # A row that begins with it would be taken for the space that \\ allows to be asked for.
    **{"[": "{[}", "]": "{]}"},
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def console_table(evaluation: Evaluation, *, every_figure: bool = True) -> ConsoleTables:
    """Tables for a rich console: the comparison, then every set's figures and the paired tests.

    Args:
        every_figure: False leaves the comparison alone. The paired tests of more than three models
            are left to the page and to Markdown: a console would scroll over the comparison.
    """
    grids = [by_set(evaluation)]
    if every_figure:
        grids += _details(evaluation)
        grids += _tests(evaluation) if len(evaluation.models) <= FEW else []
    return ConsoleTables(list(_once(grids)))


def markdown(evaluation: Evaluation) -> str:
    """Tables in GitHub's Markdown: models × sample rate × sets, feature norms, then every set."""
    grids = [*by_model(evaluation), *_details(evaluation), *_tests(evaluation)]
    return "\n".join(_markdown(grid) for grid in _once(grids))


def latex(evaluation: Evaluation) -> str:
    """The same tables as LaTeX, for the package booktabs."""
    grids = [*by_model(evaluation), *_details(evaluation), *_tests(evaluation)]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex(grid) for grid in grids)


def csv(evaluation: Evaluation) -> str:
    """One row a figure, groups' too, with everything that tells it from others.

    Shares are shares, not percentages, and as exact as they are known. A name that a spreadsheet
    would run as a formula has an apostrophe before it.
    """
    models = {model.name: model for model in evaluation.models}
    counted = list(dict.fromkeys(kind for result in evaluation.results for kind in result.counts))
    out = io.StringIO()
    writer = csv_format.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("model", "sample_rate", "set", "protocol", "group", "figure"),
            *("value", "low", "high", "level", "note"),
            *map(_csv_text, counted),
            *("digest", "code", "made"),
        ]
    )
    for result in evaluation.results:
        model = models.get(result.model)
        parts = [("", result.counts, result.figures)]
        parts += [(name, group.counts, group.figures) for name, group in result.groups.items()]
        for group, counts, figures in parts:
            for name, figure in figures.items():
                writer.writerow(
                    [
                        _csv_text(result.model),
                        "" if model is None or model.sample_rate is None else model.sample_rate,
                        *map(_csv_text, (result.set, result.protocol, group, name)),
                        *_csv_numbers(figure),
                        result.interval.get("level", ""),
                        _csv_text(figure.note),
                        *(counts.get(kind, "") for kind in counted),
                        *map(_csv_text, (model.digest if model else "", result.code, result.made)),
                    ]
                )
    return out.getvalue()


def _details(evaluation: Evaluation) -> list[Grid]:
    grids = [of_set(evaluation, name) for name in sets(evaluation)]
    groups = [of_groups(evaluation, name) for name in sets(evaluation)]
    return [*grids, *(grid for grid in groups if grid)]


def _tests(evaluation: Evaluation) -> list[Grid]:
    """The paired tests of every set, each with the set's name."""
    return [
        replace(grid, title=f"{plain(name)}: {grid.title}")
        for name in sets(evaluation)
        for grid in differences(evaluation, name)
    ]


def _once(grids: Iterable[Grid]) -> Iterator[Grid]:
    """The grids, each caption under the first alone that it is true of."""
    said: set[str] = set()
    for grid in grids:
        yield replace(grid, captions=[caption for caption in grid.captions if caption not in said])
        said.update(grid.captions)


def _markdown(grid: Grid) -> str:
    def escape(text: str) -> str:
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return _MARKDOWN.sub(r"\\\1", text)

    def show(cell: Cell) -> str:
        text = f"**{escape(cell.text)}**" if cell.best else escape(cell.text)
        doubt = f" {escape(cell.doubt)}" if cell.doubt else ""
        return text + doubt + (f" ({cell.note})" if cell.note else "")

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = [":---" if i < grid.names else "---:" for i in range(len(grid.columns))]
    lines = [f"### {escape(grid.title)}", "", line(map(escape, grid.columns)), line(rule)]
    lines += [line(map(show, row)) for row in grid.rows]
    for caption in grid.captions:
        lines += ["", escape(caption) + "."]
    for i, note in enumerate(grid.notes, 1):
        lines += ["", f"({i}) {escape(note)}"]
    return "\n".join([*lines, ""])


def _latex(grid: Grid) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in text)

    def show(cell: Cell) -> str:
        text = escape(cell.text)
        text = rf"\textbf{{{text}}}" if cell.best else text
        if cell.doubt:
            text += rf" {{\scriptsize {escape(cell.doubt)}}}"
        return text + (rf"\textsuperscript{{{cell.note}}}" if cell.note else "")

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    below = [f"{escape(caption)}." for caption in grid.captions]
    below += [rf"\textsuperscript{{{i}}}\,{escape(note)}" for i, note in enumerate(grid.notes, 1)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{' '.join([escape(grid.title) + '.', *below])}}}",
            rf"\begin{{tabular}}{{{'l' * grid.names}{'r' * (len(grid.columns) - grid.names)}}}",
            r"\toprule",
            line([escape(name) for name in grid.columns]),
            r"\midrule",
            *(line([show(cell) for cell in row]) for row in grid.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _csv_text(text: str) -> str:
    """A name in one line that no spreadsheet takes for a formula."""
    text = plain(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _csv_numbers(figure: Figure) -> list[str]:
    numbers = (figure.value, figure.low, figure.high)
    return [
        "" if number is None or not math.isfinite(number) else repr(float(number))
        for number in numbers
    ]
