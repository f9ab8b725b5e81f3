"""The figures in a document: numbers with a unit, and those of tables, with what they are of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.measured_values import Words, words

# Of each unit the factors from what a file may have, by a word of the keys there; "" for keys that
# have no such word, whose values are seconds, bytes or no unit's.
UNITS: dict[str, dict[str, float]] = {
    "µs": {"seconds": 1e6, "s": 1e6, "us": 1, "": 1e6},
    "ms": {"seconds": 1e3, "ms": 1, "": 1e3},
    "s": {"seconds": 1, "": 1},
    "seconds": {"seconds": 1, "": 1},
    "minutes": {"seconds": 1 / 60, "minutes": 1, "": 1 / 60},
    "min": {"seconds": 1 / 60, "minutes": 1, "": 1 / 60},
    "images/s": {"images": 1, "": 0},
    "MB": {"mb": 1, "bytes": 1e-6, "": 1e-6},
    "GB": {"mb": 1e-3, "bytes": 1e-9, "": 1e-9},
    "GB/s": {"bytes": 1e-9, "": 0},
    "TFLOP/s": {"flops": 1e-12, "": 0},
    "×": {"": 1},
    "times": {"": 1},
    "%": {"percent": 1, "": 100},
    "": {"": 1},
}
RATIOS = ("×", "times", "%", "")  # units of what may be a ratio
_NUMBER = r"(?<![\w.,/-])[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?"
_UNIT = "|".join(sorted(filter(None, UNITS), key=len, reverse=True))
_FIGURE = re.compile(rf"({_NUMBER}) ?({_UNIT})(?![\w/])")
# "1.5 / 3.9 times" and "2.6 and 3.0 times": the unit is of both.
_SHARED = re.compile(
    rf"({_NUMBER})(?= (?:/|and|to|or) {_NUMBER}(?: (?:/|and|to|or) {_NUMBER})* ?({_UNIT})(?![\w/]))"
)
_IN_CELL = re.compile(rf"(±\s)?({_NUMBER})(?![\w.])")


class Figure(NamedTuple):
    """A number as it is written.

    Attributes:
        unit: "" for none.
        about: words that may say which settings it is of: in a table, what is left of it.
        called: words that may say which value it is: in a table, its row's and column's titles.
        is_deviation: it follows a ±.
    """

    number: str
    unit: str
    about: Words
    called: Words
    is_deviation: bool = False

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".strip()


def blocks(text: str) -> list[str]:
    """Paragraphs, entries of lists and tables, without code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in re.split(r"\n\s*\n|\n(?=- )", text) if block.strip()]


def is_table(block: str) -> bool:
    return "|---" in block


def figures(block: str) -> list[Figure]:
    """Those that must be somewhere; not those that the block says nobody measured."""
    # Sizes such as 14 × 14, and 8 × V100, are no ratios.
    ignored = r"<!--.*?-->|\]\([^)]*\)|\d+ ?× ?(?:\d+|[A-Z]\w+)"
    plain = re.sub(ignored, " ", block, flags=re.DOTALL)
    plain = re.sub(r"(\d+) min (\d+) s\b", lambda m: f"{60 * int(m[1]) + int(m[2])} s", plain)
    found = _in_table(plain) if is_table(block) else _in_prose(plain)
    exempt = not_measured(block)
    return [figure for figure in dict.fromkeys(found) if str(figure) not in exempt]


def not_measured(block: str) -> list[str]:
    """What a block names as in no file: not measured, or computed from what is in one.

    One entry without a digit stands for all of it.
    """
    comments = re.findall(r"<!-- (?:not measured|computed): (.*?) -->", block, re.DOTALL)
    return [entry.strip() for comment in comments for entry in comment.split(", ")]


def _in_prose(plain: str) -> Iterator[Figure]:
    without_code = re.sub(r"`[^`]*`", " ", plain)
    for number, unit in (*_FIGURE.findall(without_code), *_SHARED.findall(without_code)):
        yield Figure(number, unit, words(plain), frozenset())


def _in_table(plain: str) -> Iterator[Figure]:
    """Numbers with a unit of their own or of their column, and all with a decimal point.

    The first column says what a row is of.
    """
    lines = [line for line in plain.splitlines() if line.startswith("|")]
    titles = ["", *lines[0].strip("|").split("|")]
    units_of_columns = _units_of_columns(titles)
    for line in lines[2:]:
        cells = ["", *line.strip("|").split("|")]
        for place, (cell, title) in enumerate(zip(cells[2:], titles[2:]), start=2):
            without_code = re.sub(r"`[^`]*`", " ", cell)
            units = dict(_FIGURE.findall(without_code))
            unit = units_of_columns[place]
            about = words(" ".join((*cells[: place + 1], *titles[: place + 1])))
            called = words(f"{cells[1]} {title} {_without_numbers(cell)}")
            for deviation, number in _IN_CELL.findall(without_code):
                own = units.get(number) or unit or "%" * ("%" in cell and "." in number)
                if own or "." in number:
                    yield Figure(number, own, about, called, bool(deviation))


def _units_of_columns(titles: list[str]) -> list[str]:
    """A column that is called by a dtype alone has the unit of the one before it."""
    units: list[str] = []
    for title in titles:
        same = units and re.fullmatch(r"b?float[0-9]+", title.strip())
        units.append(units[-1] if same else _unit_of_column(title))
    return units


def _unit_of_column(title: str) -> str:
    if title.strip().startswith("of "):  # a share of something that has a unit
        return ""
    plain = re.sub(r"[0-9]+ \S+", "", title).replace(",", " ").split()
    return next((word for word in plain if word in UNITS and word not in RATIOS), "")


def _without_numbers(text: str) -> str:
    return re.sub(r"[0-9][0-9,.]*", " ", text)
