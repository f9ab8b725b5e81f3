"""Every measured figure in the documents comes from a file in benchmarks/results/.

How a figure names its file: in its block (a paragraph, an entry of a list, a table), or for a table
in the block before or after it, stands a link to the file, or `<!-- measured: NAME.json -->`. Then
each number with a unit in the block, and each with a decimal point in a table, must be in the file,
rounded as it is written: as it stands there, in another unit, as the median of a list, as the ratio
of two that stand beside one another, or, of cells in a .jsonl that differ in their seed alone, as
the mean or the deviation.

Other numbers in such a block are named in it, `<!-- not measured: 80 GB, 4 KB -->`. A table with
units of which nothing was measured says what it is, `<!-- not measured: counted -->`.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "files.md"),
]
# Of each unit the factors from what a file may have: seconds, bytes, or the unit itself.
UNITS: dict[str, tuple[float, ...]] = {
    "µs": (1e6, 1),
    "ms": (1e3, 1),
    "s": (1,),
    "seconds": (1,),
    "minutes": (1 / 60, 1),
    "min": (1 / 60, 1),
    "images/s": (1,),
    "MB": (1e-6, 1),
    "GB": (1e-9, 1e-3, 1),
    "GB/s": (1e-9, 1),
    "TFLOP/s": (1e-12, 1),
    "×": (1,),
    "times": (1,),
    "%": (100, 1),
}
RATIOS = ("×", "times", "%", "")  # units of figures that may be ratios
_NUMBER = r"(?<![\w.,/-])\d+(?:,\d{3})*(?:\.\d+)?"
_FIGURE = re.compile(rf"({_NUMBER}) ?({'|'.join(sorted(UNITS, key=len, reverse=True))})(?![\w/])")
_IN_CELL = re.compile(rf"{_NUMBER}(?![\w.])")


class Figure(NamedTuple):
    """A number as it is written, and its unit, if any."""

    number: str
    unit: str

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".strip()


def blocks(text: str) -> list[str]:
    """Paragraphs, entries of lists and tables, without code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in re.split(r"\n\s*\n|\n(?=- )", text) if block.strip()]


def figures(block: str) -> list[Figure]:
    """Those that must be somewhere; not those that the block says nobody measured."""
    # Sizes such as 14 × 14, and 8 × V100, are no ratios.
    ignored = r"<!--.*?-->|`[^`]*`|\]\([^)]*\)|\d+ ?× ?(?:\d+|[A-Z]\w+)"
    plain = re.sub(ignored, " ", block, flags=re.DOTALL)
    plain = re.sub(r"(\d+) min (\d+) s\b", lambda m: f"{60 * int(m[1]) + int(m[2])} s", plain)
    found = [Figure(*match) for match in _FIGURE.findall(plain)]
    if is_table(block):
        rows = [line for line in plain.splitlines() if line.startswith("|")]
        units = [_unit_of_column(cell) for cell in rows[0].split("|")]
        with_unit = {figure.number for figure in found}
        found += [
            Figure(number, unit or "%" * ("%" in cell))
            for row in rows
            for cell, unit in zip(row.split("|"), units)
            for number in _IN_CELL.findall(cell)
            if ("." in number or unit) and number not in with_unit
        ]
    return [figure for figure in dict.fromkeys(found) if str(figure) not in not_measured(block)]


def _unit_of_column(title: str) -> str:
    if title.strip().startswith("of "):  # a share of something that has a unit
        return ""
    words = re.sub(r"\d+ \S+", "", title).replace(",", " ").split()
    return next((word for word in words if word in UNITS and word not in RATIOS), "")


def not_measured(block: str) -> list[str]:
    """What a block names as not measured; one entry without a digit stands for all of it."""
    comments = re.findall(r"<!-- not measured: (.*?) -->", block, re.DOTALL)
    return [entry.strip() for comment in comments for entry in comment.split(", ")]


def is_table(block: str) -> bool:
    return "|---" in block


def named_files(block: str) -> list[str]:
    """Result files that a block links or names in a comment."""
    named = re.findall(r"results/([a-z\d_.-]+\.jsonl?)", block)
    named += re.findall(r"<!-- measured: ([\w.-]+\.jsonl?) -->", block)
    return sorted(set(named))


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """(document, block, its files) of every block that has figures."""
    for document in DOCUMENTS:
        parts = blocks(document.read_text(encoding="utf-8"))
        for place, block in enumerate(parts):
            near = parts[max(0, place - 1) : place + 2] if is_table(block) else [block]
            yield document.name, block, named_files("\n".join(near))


# --- what a file has ---


@cache
def values(name: str) -> tuple[list[float], list[float]]:
    """What a figure may say of a file: its numbers, and ratios."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        found = json.loads(text)
        return list(_values(found)), list(_ratios(found))
    lines = [json.loads(line) for line in text.splitlines()]
    alike = [line for line in lines if "seed" in line]
    return list(_of_seeds(alike) if alike else _values(lines)), []


def _values(found: Any) -> Iterator[float]:
    """Numbers, and of lists of them some."""
    if isinstance(found, list):
        for value in found:
            yield from _values(value)
    elif isinstance(found, dict):
        yield from _numbers(found).values()
        for value in found.values():
            yield from _values(value)
    elif _is_number(found):
        yield float(found)


def _ratios(found: Any) -> Iterator[float]:
    """Of what stands side by side: ways of doing the same, and nothing else."""
    if isinstance(found, list):
        for value in found:
            yield from _ratios(value)
    elif isinstance(found, dict):
        numbers = _numbers(found)
        if numbers.keys() >= found.keys():
            medians = [numbers[key] for key in found]
            yield from (a / b for a, b in permutations(medians, 2) if b)
        for value in found.values():
            yield from _ratios(value)


def _numbers(found: dict[str, Any], at: str = "") -> dict[str, float]:
    """The numbers of a dictionary, of its lists of numbers the median, and all of short ones
    or else the first and the last."""
    here: dict[str, float] = {}
    for key, value in found.items():
        if _is_number(value):
            here[at + key] = float(value)
        elif isinstance(value, list) and value and all(map(_is_number, value)):
            here[at + key] = float(statistics.median(value))
            few = value if len(value) <= 40 else (value[0], value[-1])
            here |= {f"{at}{key}.{place}": float(one) for place, one in enumerate(few)}
    return here


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_seeds(lines: Sequence[dict[str, Any]]) -> Iterator[float]:
    """Means and deviations of the cells that differ in their seed alone, number by number."""
    if not lines:
        return
    flat = [_flat(line) for line in lines]
    settings = [key for key in flat[0] if key != "seed" and _is_setting(key, flat)]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for line in flat:
        groups.setdefault(tuple(line.get(key) for key in settings), []).append(line)
    for group in groups.values():
        for key in group[0]:
            found = [line[key] for line in group if _is_number(line.get(key))]
            if found:
                yield statistics.mean(found)
            if len(found) > 1:
                yield statistics.stdev(found)


def _is_setting(key: str, lines: Sequence[dict[str, Any]]) -> bool:
    """Whether its values come back with other seeds; what is measured does not."""
    seeds: dict[str, set[int]] = {}
    for line in lines:
        seeds.setdefault(str(line.get(key)), set()).add(line["seed"])
    again = [value for value in seeds if len(seeds[value]) > 1]
    return key not in ("code", "commit", "date") and 2 * len(again) >= len(seeds)


def _flat(line: dict[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {k: v for k, v in line.items() if isinstance(v, str)} if not at else {}
    flat |= _numbers(line, at)
    for key, value in line.items():
        if isinstance(value, dict) and key not in ("cpu", "versions"):
            flat |= _flat(value, f"{at}{key}.")
    return flat


def is_in(figure: Figure, files: Sequence[str]) -> bool:
    """Whether one of the files has it, rounded as it is written."""
    wanted, most = float(figure.number.replace(",", "")), 0.5001 * _place(figure.number)
    return any(
        abs(value * factor - wanted) <= most
        for name in files
        for numbers in values(name)[: 1 + (figure.unit in RATIOS)]
        for value in numbers
        for factor in UNITS.get(figure.unit, (1,))
    )


def _place(number: str) -> float:
    """What its last digit stands for; zeros at the end of thousands are taken for rounded ones."""
    whole, _, digits = number.replace(",", "").partition(".")
    if digits or len(whole) < 4:
        return 10.0 ** -len(digits)
    return 10.0 ** min(len(whole) - len(whole.rstrip("0")), len(whole) - 2)


# --- the documents ---


@pytest.mark.parametrize("document", [path.name for path in DOCUMENTS])
def test_measured_figures_are_in_the_file_that_they_name(document):
    missing = [
        f"{figure} in {files}: {block.strip()[:60]}…"
        for name, block, files in documented()
        if name == document and files
        for figure in figures(block)
        if not is_in(figure, files)
    ]
    assert missing == [], "see this file's first lines"


@pytest.mark.parametrize("document", [path.name for path in DOCUMENTS])
def test_a_table_with_units_names_its_file_or_says_what_it_is(document):
    bare = [
        block.strip().splitlines()[0]
        for name, block, files in documented()
        if name == document and is_table(block) and not files
        if [figure for figure in figures(block) if figure.unit not in ("", "%")]
        if not [entry for entry in not_measured(block) if not re.search(r"\d", entry)]
    ]
    assert bare == [], "add <!-- measured: FILE --> or <!-- not measured: counted -->"


def test_a_file_that_is_named_is_there():
    named = {file for _, _, files in documented() for file in files}
    assert [file for file in sorted(named) if not (RESULTS / file).exists()] == []


def test_a_figure_that_no_file_has_is_found_out(tmp_path, monkeypatch):
    found = {"ours": 0.25, ".theirs": [0.9, 1.0, 1.1], "all": 62.4, "n": 1.254, "bytes": 3_400_000}
    (tmp_path / "speed.json").write_text(json.dumps(found))
    cells = [{"rate": 0.1, "seed": seed, "accuracy": 0.80 + 0.02 * seed} for seed in range(3)]
    (tmp_path / "cells.jsonl").write_text("\n".join(map(json.dumps, cells)))
    monkeypatch.setitem(globals(), "RESULTS", tmp_path)
    text = "250 ms, 4.0 × as fast, 3.4 MB, 25 images/s, 4.1 ×, 1,300 ms, 300 ms, 90 s, 1 min 2 s"
    text += "<!-- not measured: 90 s -->"
    wrong = [str(one) for one in figures(text) if not is_in(one, ["speed.json"])]
    assert wrong == ["25 images/s", "4.1 ×", "300 ms"]
    table = "| rate | accuracy |\n|---|---|\n| 0.1 | 0.820 ± 0.020 |\n| 0.1 | 0.823 |"
    wrong = [str(one) for one in figures(table) if not is_in(one, ["cells.jsonl"])]
    assert wrong == ["0.823"]
