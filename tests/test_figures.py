"""Every measured figure in the documents comes from a file in benchmarks/results/.

How a figure names its file: in its block (a paragraph, an entry of a list, a table), or for a table
in the block before or after it, stands a link to the file, or `<!-- measured: NAME.json -->`. Then
each number with a unit in the block, and each with a decimal point in a table, must be in the file,
rounded as it is written: as it stands there, in another unit, as the median of a list, as the ratio
of two that stand beside one another, or, of cells in a .jsonl that differ in their seed alone, as
the mean, and behind ± as the deviation. Where a table's row or title, or a paragraph, names one of
the file's settings or keys, it must be of that one.

Other numbers of such a block are named in it: `<!-- not measured: 80 GB, 4 KB -->`, or
`<!-- computed: 2.6 times -->` from what is in the file. A block whose figures have units and no
file says why: `<!-- not measured: counted -->`.

written_figures.py finds what stands in the documents, measured_values.py what is in the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.measured_values import Value, values
from tests.written_figures import RATIOS, UNITS, Figure, blocks, figures, is_table, not_measured

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
GENERATED = ("files.md", "settings.md")
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in GENERATED),
]
BY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def named_files(block: str) -> list[str]:
    """Result files that a block links or names in a comment."""
    named = re.findall(r"results/([a-z\d_.-]+\.jsonl?)", block)
    named += re.findall(r"<!-- measured: ([\w.-]+\.jsonl?) -->", block)
    return sorted(set(named))


def documented(document: Path) -> Iterator[tuple[str, list[str]]]:
    """(block, its files) of every block."""
    parts = blocks(document.read_text(encoding="utf-8"))
    for place, block in enumerate(parts):
        near = parts[max(0, place - 1) : place + 2] if is_table(block) else [block]
        yield block, named_files("\n".join(near))


# --- the rule ---


def is_in(figure: Figure, files: Sequence[str]) -> bool:
    """Whether one of the files has it, rounded as it is written."""
    wanted, most = float(figure.number.replace(",", "")), 0.5001 * _place(figure.number)
    return any(
        abs(value.number * _factor(figure, value) - wanted) <= most
        for name in files
        for value in values(RESULTS / name)
        if may_mean(figure, value)
    )


def may_mean(figure: Figure, value: Value) -> bool:
    """Whether what is written of a figure is of this value, as far as it says."""
    return (
        bool(_factor(figure, value))
        and figure.is_deviation == (value.kind == "deviation")
        and (figure.unit in RATIOS or value.kind != "ratio")
        and not any(choice.is_ruled_out(figure.about) for choice in value.settings)
        and not any(choice.is_ruled_out(figure.called) for choice in value.keys)
    )


def _factor(figure: Figure, value: Value) -> float:
    """From the value to the figure's unit; 0 where it has another one."""
    of_keys = UNITS[figure.unit]
    for word, factor in of_keys.items():
        if word in value.units:
            return factor
    has_a_unit = any(value.units & factors.keys() for factors in UNITS.values())
    return 0.0 if has_a_unit else of_keys[""]


def _place(number: str) -> float:
    """What its last digit stands for; zeros at the end of thousands are taken for rounded ones."""
    whole, _, digits = number.replace(",", "").partition(".")
    if digits or len(whole) < 4:
        return 10.0 ** -len(digits)
    return 10.0 ** min(len(whole) - len(whole.rstrip("0")), len(whole) - 2)


# --- the documents ---


@BY_DOCUMENT
def test_measured_figures_are_in_the_file_that_they_name(document):
    missing = [
        f"{figure} in {files}: {block.strip()[:60]}…"
        for block, files in documented(document)
        for figure in figures(block)
        if files and not is_in(figure, files)
    ]
    assert missing == [], "see this file's first lines"


@BY_DOCUMENT
def test_figures_with_units_name_their_file_or_say_what_they_are(document):
    bare = [
        f"{figure}: {block.strip()[:80]}…"
        for block, files in documented(document)
        if not files
        if not [entry for entry in not_measured(block) if not re.search(r"\d", entry)]
        for figure in figures(block)
        if figure.unit
    ]
    assert bare == [], "add <!-- measured: FILE --> or <!-- not measured: counted -->"


def test_a_file_that_is_named_is_there():
    named = {file for path in DOCUMENTS for _, files in documented(path) for file in files}
    assert [file for file in sorted(named) if not (RESULTS / file).exists()] == []


# --- the finder and the rule themselves ---


@pytest.fixture
def results(tmp_path, monkeypatch) -> None:
    speed = {
        "seconds": {"ours": 0.25, "theirs": [0.9, 1.0, 1.1], "all": 62.4, "n": 1.254},
        "bytes": 3_400_000,
        "runs": [{"classes": c, "dtype": d, "ms": c / f} for c in (100, 400) for d, f in DTYPES],
    }
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    cells = [
        {"rate": rate, "seed": seed, "accuracy": rate + 0.02 * seed, "tar": 0.5 + 0.013 * seed}
        for rate in (0.8, 0.6)
        for seed in range(3)
    ]
    (tmp_path / "cells.jsonl").write_text("\n".join(map(json.dumps, cells)))
    monkeypatch.setitem(globals(), "RESULTS", tmp_path)


DTYPES = (("float32", 10), ("bfloat16", 30))


def not_found(block: str, file: str) -> list[str]:
    return [str(one) for one in figures(block) if not is_in(one, [file])]


def test_a_figure_that_no_file_has_is_found_out(results):
    text = "250 ms, 4.0 × as fast, 3.4 MB, 25 images/s, 4.1 ×, 1,300 ms, 300 ms, 90 s, 1 min 2 s"
    assert not_found(text, "speed.json") == ["25 images/s", "4.1 ×", "300 ms", "90 s"]
    assert not_found(text + "<!-- not measured: 90 s, 300 ms -->", "speed.json") == [
        *("25 images/s", "4.1 ×"),
    ]


def test_a_unit_behind_the_last_of_several_is_of_all_of_them(results):
    assert not_found("4.0 and 4.2 times", "speed.json") == ["4.2 times"]
    assert not_found("4.2 / 4.0 times", "speed.json") == ["4.2 times"]


def test_a_row_has_what_was_measured_of_it_and_not_of_another(results):
    table = "| classes | float32, ms | bfloat16 |\n|---|---|---|\n| {} | {} | {} |"
    assert not_found(table.format(100, 10, 3.3), "speed.json") == []
    assert not_found(table.format(400, 40, 13), "speed.json") == []
    assert not_found(table.format(100, 40, 3.3), "speed.json") == ["40 ms"]
    assert not_found(table.format(100, 10, 13), "speed.json") == ["13 ms"]


def test_behind_a_sign_of_both_stands_a_deviation_over_seeds(results):
    table = "| rate | accuracy | TAR |\n|---|---|---|\n| 0.8 | {} | {} |"
    assert not_found(table.format("0.820 ± 0.020", "0.513 ± 0.013"), "cells.jsonl") == []
    assert not_found(table.format("0.020 ± 0.820", "0.513"), "cells.jsonl") == ["0.020", "0.820"]
    assert not_found(table.format("0.620", "0.820"), "cells.jsonl") == ["0.620", "0.820"]
