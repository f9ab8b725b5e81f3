"""A table before it is Markdown, LaTeX, CSV or a page: names, cells and numbered notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from evaluation.result import Figure


@dataclass(frozen=True)
class Cell:
    """What stands in one place.

    Attributes:
        text: as it is to be read; escaped by whoever writes it.
        doubt: the interval, which may be set smaller.
        best: whether it is shown to be better than every other of its kind.
        note: the number of a note of the grid; 0 for none.
        figure: whose text it is, where it is a figure's.
    """

    text: str
    doubt: str = ""
    best: bool = False
    note: int = 0
    figure: Figure | None = None


@dataclass(frozen=True)
class Grid:
    """A table with one row of column names.

    Attributes:
        title: what it shows.
        columns: a name for each column.
        rows: as many cells each as there are columns.
        names: so many columns at the left are names, set flush left; the others are numbers.
        notes: what the cells' notes refer to, the first by 1.
        captions: what is true of the whole table, a sentence each.
        one_figure_a_row: whether a row holds one kind of figure, or a column does.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int
    notes: Sequence[str] = ()
    captions: Sequence[str] = ()
    one_figure_a_row: bool = True

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title


@dataclass
class Notes:
    """Numbers notes as they come up, equal ones alike."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        """The number of this note, 0 for an empty one."""
        if not text:
            return 0
        if text not in self.texts:
            self.texts.append(text)
        return 1 + self.texts.index(text)
