"""Grids on a console: as many columns abreast as it is wide enough for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from evaluation.report.grid import Cell, Grid

_ENDLESS = 1 << 16  # letters


@dataclass(frozen=True)
class ConsoleTables:
    """What rich prints of grids; one too wide is cut into several with the names in each."""

    grids: Sequence[Grid]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for grid in self.grids:
            yield from _fitting(grid, console, options)


def _fitting(grid: Grid, console: Console, options: ConsoleOptions) -> Iterator[Table]:
    """The fewest tables that fit; each has at least one column of numbers, however wide."""
    endless = options.update(max_width=_ENDLESS)  # in which a table measures what it would take

    def fits(part: Grid) -> bool:
        wanted = Measurement.get(console, endless, _table(part)).maximum
        return wanted <= options.max_width

    numbers = len(grid.columns) - grid.names
    begin = 0
    while True:
        end = begin + 1
        while end < numbers and fits(_part(grid, begin, end + 1)):
            end += 1
        yield _table(_part(grid, begin, end))
        if end >= numbers:
            return
        begin = end


def _part(grid: Grid, begin: int, end: int) -> Grid:
    """The names, and these of the columns right of them; the last part has what stands below."""
    kept = slice(grid.names + begin, grid.names + end)
    last = grid.names + end >= len(grid.columns)
    return replace(
        grid,
        columns=[*grid.columns[: grid.names], *grid.columns[kept]],
        rows=[[*row[: grid.names], *row[kept]] for row in grid.rows],
        notes=grid.notes if last else (),
        captions=grid.captions if last else (),
    )


def _table(grid: Grid) -> Table:
    below = [*grid.captions, *(f"({i}) {note}" for i, note in enumerate(grid.notes, 1))]
    table = Table(
        title=Text(grid.title, style="bold"),
        title_justify="left",
        caption=Text("\n".join(below), style="dim") if below else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, name in enumerate(grid.columns):
        table.add_column(Text(name), justify="left" if i < grid.names else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(_cell(cell) for cell in row))
    return table


def _cell(cell: Cell) -> Text:
    text = Text(cell.text, style="bold green" if cell.best else "")
    if cell.doubt:
        text.append(f" {cell.doubt}", style="not bold dim")
    if cell.note:
        text.append(f" ({cell.note})", style="not bold dim")
    return text
