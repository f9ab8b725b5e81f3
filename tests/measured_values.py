"""What files of benchmarks/results/ hold: each number, with what it is of, so that a text that says
of what its figure is means few of them."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

# Of the machine, and the course of a run, whose end stands beside it.
_PASSED_OVER = (
    *("cpu", "versions", "date", "commit", "code", "python", "torch", "instruction_sets"),
    "journal",
)
_FEW = 8  # numbers of a list, all of which a text may name; of more, the first and the last
_WORD = re.compile(r"[0-9]+(?:\.[0-9]+)?m?(?!\w)|[^\W\d]+\w*")

Words = frozenset[str]


def words(text: str) -> Words:
    """Words and numbers; these as {:g} writes them, so that 100,000 is 1e+05 and so is 0.1m."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower()).replace("_", " ")
    return frozenset(map(_one_word, _WORD.findall(plain)))


def _one_word(word: str) -> str:
    if not "0" <= word[0] <= "9":
        return word
    return f"{float(word.removesuffix('m')) * (1e6 if word[-1] == 'm' else 1):g}"


@dataclass(frozen=True)
class Choice:
    """Which one of several a value is of: of records by a setting, or of values by their keys.

    Attributes:
        own: the words of it; of a ratio there are two.
        others: those of what it is not.
        setting: words of the setting's name, of which a text must have one where it is a number.
    """

    own: tuple[Words, ...]
    others: tuple[Words, ...]
    setting: Words | None = None

    def is_ruled_out(self, text: Words) -> bool:
        """Whether a text names another one instead, or one that says more."""
        if self.setting and not self.setting & text:
            return False
        others = [one for one in self.others if one <= text]
        if any(own < other for own in self.own for other in others):
            return True
        named = sum(one <= text for one in self.own)
        return named < min(len(self.own), named + len(others))


@dataclass(frozen=True)
class Value:
    """A number of a file.

    Attributes:
        units: words of the keys that it is under.
        settings, keys: what it is of.
        kind: "value", "ratio" of two values side by side, or "deviation" over seeds.
    """

    number: float
    units: Words = frozenset()
    settings: tuple[Choice, ...] = ()
    keys: tuple[Choice, ...] = ()
    kind: str = "value"


@cache
def values(path: Path) -> tuple[Value, ...]:
    """All of a .json; of a .jsonl whose lines have seeds, means and deviations over these."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return tuple(_of(json.loads(text), Value(0)))
    lines = [json.loads(line) for line in text.splitlines()]
    seeded = [line for line in lines if "seed" in line]
    if not seeded:
        return tuple(_of(lines, Value(0)))
    means, deviations = _over_seeds(seeded)
    return (*_of(means, Value(0)), *_of(deviations, Value(0, kind="deviation")))


def _of(found: Any, at: Value) -> Iterator[Value]:
    """Those below a place of a file; `at` says what all there are of."""
    if isinstance(found, list):
        records = [one for one in found if isinstance(one, dict)]
        for one in found:
            more = _settings(one, records) if isinstance(one, dict) else ()
            yield from _of(one, replace(at, settings=(*at.settings, *more)))
    elif isinstance(found, dict):
        kept = {key: one for key, one in found.items() if key not in _PASSED_OVER}
        ways = {key: words(key) for key in kept}
        for key, one in kept.items():
            others = (k for k in kept if k != key and _sort(kept[k]) == _sort(one))
            choice = Choice((ways[key],), tuple(ways[other] for other in others))
            here = replace(at, units=at.units | ways[key], keys=(*at.keys, choice))
            numbers = _numbers(one)
            yield from (replace(here, number=number) for number in numbers)
            if not numbers:
                yield from _of(one, here)
            if at.kind == "value" and isinstance(one, dict):
                yield from _ratios(one, here)
                for unit, bound in one.items():  # one of the ways that stand beside it
                    if isinstance(kept.get(unit), dict):
                        yield from _ratios({key: bound, **kept[unit]}, here)


def _ratios(kept: Mapping[str, Any], at: Value) -> Iterator[Value]:
    """Between ways of doing the same, that stand side by side with nothing else."""
    numbers = {key: _numbers(one) for key, one in kept.items()}
    if not all(numbers.values()):
        return
    ways = {key: words(key) for key in kept}
    for one, other in permutations(numbers, 2):
        if numbers[other][0]:
            left = tuple(way for key, way in ways.items() if key not in (one, other))
            keys = (*at.keys, Choice((ways[one], ways[other]), left))
            ratio = numbers[one][0] / numbers[other][0]
            yield replace(at, number=ratio, units=frozenset(), keys=keys, kind="ratio")


def _settings(
    record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> tuple[Choice, ...]:
    """What tells a record of a list from the others."""
    choices = []
    for key, value in record.items():
        if key in _PASSED_OVER or not _said(value) or _is_measured(value):
            continue
        others = {words(_said(one.get(key))) for one in records} - {words(_said(value)), words("")}
        setting = words(key) if _is_number(value) else None
        choices.append(Choice((words(_said(value)),), tuple(others), setting))
    return tuple(choices)


def _is_measured(value: Any) -> bool:
    """Settings are round."""
    return isinstance(value, float) and float(f"{value:.2g}") != value


def _sort(one: Any) -> str:
    """Names choose only among what is alike."""
    return "number" if _numbers(one) else type(one).__name__


def _said(value: Any) -> str:
    """Of a setting; numbers as words are compared."""
    return f"{value:g}" if _is_number(value) else value if isinstance(value, str) else ""


def _numbers(one: Any) -> list[float]:
    """A number; or of a list of them the median, and those that a text may name."""
    if _is_number(one):
        return [float(one)]
    if not (isinstance(one, list) and one and all(map(_is_number, one))):
        return []
    few = one if len(one) <= _FEW else (one[0], one[-1])
    return [float(statistics.median(one)), *map(float, few)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _over_seeds(lines: Sequence[dict[str, Any]]) -> tuple[list[dict], list[dict]]:
    """Means and deviations, of the cells that differ in their seed alone, number by number."""
    flat = [dict(_flat(line)) for line in lines]
    settings = [key for key in flat[0] if key != "seed" and _is_setting(key, flat)]
    cells: dict[tuple, list[dict[str, Any]]] = {}
    for line in flat:
        cells.setdefault(tuple(line.get(key) for key in settings), []).append(line)
    means, deviations = [], []
    for cell in cells.values():
        about = {key: cell[0].get(key) for key in settings}
        measured = {
            key: [line[key] for line in cell]
            for key in cell[0]
            if key not in ("seed", *settings) and all(_is_number(line.get(key)) for line in cell)
        }
        means.append(about | {key: statistics.mean(found) for key, found in measured.items()})
        if len(cell) > 1:
            spread = {key: statistics.stdev(found) for key, found in measured.items()}
            deviations.append(about | spread)
    return means, deviations


def _is_setting(key: str, lines: Sequence[dict[str, Any]]) -> bool:
    """Whether its values come back with other seeds; what is measured does not."""
    seeds: dict[str, set[int]] = {}
    for line in lines:
        seeds.setdefault(str(line.get(key)), set()).add(line["seed"])
    again = [value for value in seeds if len(seeds[value]) > 1]
    return 2 * len(again) >= len(seeds)


def _flat(line: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, one in line.items():
        if key in _PASSED_OVER:
            continue
        if isinstance(one, dict):
            yield from _flat(one, f"{at}{key} ")
        elif isinstance(one, list):
            if all(map(_is_number, one)):
                yield from ((f"{at}{key} {place}", number) for place, number in enumerate(one, 1))
        else:
            yield at + key, one
