"""Tables: what is in them, which figure is marked, and names that mean something to a format."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from evaluation.report import tables
from evaluation.report.comparison import by_model, by_set, of_groups
from evaluation.report.console import ConsoleTables
from evaluation.report.figure_text import plain
from evaluation.report.grid import Cell, Grid
from evaluation.result import Comparison, Evaluation, Figure
from tests.evaluation.report import made_up

FORMATS = (tables.markdown, tables.latex, tables.csv)


def on_console(evaluation: Evaluation, width: int = 120, **options) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(tables.console_table(evaluation, **options))
    return console.file.getvalue()


def test_the_two_tables_of_partial_fc_are_models_by_sample_rate_by_set():
    accuracy, norm = by_model(made_up.evaluation(searches=False))
    assert (accuracy.title, norm.title) == ("Accuracy, %", "Mean feature norm")
    assert accuracy.columns == norm.columns == ["model", "sample rate", "lfw.bin", "lfw.bin+blur"]
    assert [[cell.text for cell in row[:2]] for row in accuracy.rows] == [
        ["r50_rate1.0", "1"],
        ["r50_rate0.9", "0.9"],
    ]
    assert norm.rows[0][2].text == "21.73"


def test_no_model_with_a_sample_rate_no_column_of_it():
    evaluation = made_up.evaluation(1)
    evaluation = replace(evaluation, models=[made_up.model("r50_rate1.0", None)])
    assert by_model(evaluation)[0].columns == ["model", "lfw.bin", "lfw.bin+blur"]


@pytest.mark.parametrize(
    ("figure", "low", "high", "first"),
    [
        ("accuracy", 0.001, 0.003, True),
        ("accuracy", -0.003, -0.001, False),
        ("accuracy", -0.001, 0.003, None),
        ("accuracy", None, None, None),
        ("eer", -0.003, -0.001, True),
        ("threshold", 0.001, 0.003, None),
    ],
)
def test_the_best_is_marked_only_where_the_paired_test_shows_it(figure, low, high, first):
    """Higher is better for some figures, lower for others, and a threshold is neither."""
    evaluation = made_up.evaluation(places=("a",), searches=False)
    names = [model.name for model in evaluation.models]
    evaluation = replace(
        evaluation,
        results=[replace(result, headline=figure) for result in evaluation.results],
        comparisons=[Comparison("a", figure, *names, Figure(0.0, low, high), "")],
    )
    (row,) = by_set(evaluation).rows
    assert [cell.best for cell in row[2:]] == [first is True, first is False]


def test_of_three_models_the_best_must_be_shown_better_than_both():
    evaluation = made_up.evaluation(3, places=("a",), searches=False)
    assert by_set(evaluation).rows[0][2].best
    (row,) = by_set(replace(evaluation, comparisons=evaluation.comparisons[:1])).rows
    assert not any(cell.best for cell in row)


def test_what_a_set_cannot_show_has_its_note_in_every_format():
    evaluation = made_up.evaluation()
    for text in (on_console(evaluation), *(write(evaluation) for write in FORMATS)):
        words = " ".join(text.split())
        assert "3,000 impostor pairs cannot show a FAR of 1e-06" in words
    assert "– (1)" in on_console(evaluation)


def test_csv_holds_every_figure_as_exactly_as_it_is_known():
    evaluation = made_up.evaluation()
    rows = list(csv.DictReader(io.StringIO(tables.csv(evaluation))))
    figures = sum(
        len(part.figures)
        for result in evaluation.results
        for part in (result, *result.groups.values())
    )
    assert len(rows) == figures
    first = evaluation.results[0].figures["accuracy"]
    assert float(rows[0]["value"]) == first.value
    assert rows[0]["sample_rate"] == "1.0"
    assert {row["group"] for row in rows} == {"", "African", "Asian", "Caucasian"}


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "![a](http://x.org/y.png) <http://x.org> &lt;b&gt; ~~x~~ `|` \\",
    "a|b`*_x_*[l](u)",
    r"50%_$\input{/etc/passwd}^~#&",
    "\x1b[2J\u202egnp\nrow two",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_only_names(name):
    evaluation = named(name)
    for line in tables.markdown(evaluation).splitlines():
        if line.startswith("|"):
            assert line.replace(r"\|", "").count("|") == line_of(evaluation)
    assert r"\input" not in tables.latex(evaluation).replace(r"\textbackslash{}input", "")
    for text in (on_console(evaluation), *(write(evaluation) for write in FORMATS)):
        assert "\x1b" not in text
        assert "\u202e" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_name_letter_by_letter(name):
    """As read by the parser that comes with rich."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = [
        child
        for token in parser.parse(tables.markdown(named(name)))
        for child in token.children or []
    ]
    assert {token.type for token in tokens} <= {"text", "text_special"}
    shown = "".join(token.content for token in tokens)
    assert shown.count(plain(name)) == 4  # a column, a row, a title and a column


def line_of(evaluation: Evaluation) -> int:
    """Bars in a line of the only tables there are: a name, a number and what is outside."""
    return 3 if len(evaluation.models) == 1 else 4


def named(name: str) -> Evaluation:
    return Evaluation(
        models=[made_up.model(name, None)],
        results=[replace(made_up.empty(), model=name, set=name)],
    )


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", " =", "\t="])
def test_no_name_is_a_formula_to_a_spreadsheet(begin):
    (row,) = csv.DictReader(io.StringIO(tables.csv(named(f"{begin}HYPERLINK(1)"))))
    assert row["model"].startswith("'")
    assert row["set"].startswith("'")


def test_names_are_no_markup_of_the_console():
    assert "[red]m[/red]" in on_console(named("[red]m[/red]"))


def test_one_model_one_set_one_number_that_cannot_be_shown():
    evaluation = Evaluation(models=[made_up.model("m")], results=[made_up.empty()])
    assert "no genuine pair" in on_console(evaluation)
    assert tables.markdown(evaluation).count("no genuine pair") == 2
    assert "nan" not in tables.csv(evaluation).lower()


def test_nothing_at_all():
    for write in (on_console, *FORMATS):
        write(Evaluation(models=[], results=[]))


@pytest.mark.parametrize(("width", "times"), [(80, 5), (120, 3), (260, 1)])
def test_a_console_has_as_many_models_abreast_as_it_is_wide(width, times):
    text = on_console(made_up.evaluation(10, searches=False), width=width, every_figure=False)
    assert text.count("Comparison") == times
    assert all(f"r50_rate{1 - 0.1 * i:.1f}" in text for i in range(10))
    assert text.count("95 % intervals") == 1


def test_one_wide_column_leaves_the_others_side_by_side():
    """Groups have many narrow columns and a wide one; only the wide one stands alone."""
    columns = ["group", *(f"n{i}" for i in range(8)), "x" * 60]
    grid = Grid(title="Groups", columns=columns, rows=[[Cell("1") for _ in columns]], names=1)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(ConsoleTables([grid]))
    assert console.file.getvalue().count("Groups") == 2


def test_errors_at_the_common_threshold_come_first_of_a_groups_figures():
    evaluation = made_up.evaluation()
    grid = of_groups(evaluation, next(r.set for r in evaluation.results if r.groups))
    common = ["common threshold" in name for name in grid.columns if "," in name or "@" in name]
    assert any(common)
    assert common == sorted(common, reverse=True)


def test_a_console_too_narrow_for_one_model_breaks_its_cells():
    assert "r50" in on_console(made_up.evaluation(2), width=20)


def test_not_a_number_is_no_number():
    evaluation = named("m")
    result = evaluation.results[0]
    odd = replace(result, figures={"accuracy": Figure(float("nan"), float("nan"), float("inf"))})
    evaluation = replace(evaluation, results=[odd])
    for text in (on_console(evaluation), *(write(evaluation) for write in FORMATS)):
        assert "nan" not in text.lower()
