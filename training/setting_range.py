"""The range of a number among the settings, stated in the type that describes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """What a number may be: from `low` to `high`, both allowed but for `above` and `below`."""

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        fits = self.low < value if self.above else self.low <= value
        return fits and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:,}" if self.above else f"at least {self.low:,}"
        high = f"below {self.high:,}" if self.below else f"at most {self.high:,}"
        return f"{low} and {high}"


# What settings have in common; where 0 is allowed it turns a thing off, as the setting says.
Count = Annotated[int, Range(1, 10**9)]
CountOrZero = Annotated[int, Range(0, 10**9)]
Amount = Annotated[float, Range(0, 10**6)]
Positive = Annotated[float, Range(0, 1000, above=True)]
Decay = Annotated[float, Range(0, 100)]  # of weights
Fraction = Annotated[float, Range(0, 1)]
Remainder = Annotated[float, Range(0, 1, below=True)]  # of what must change


def out_of_range(settings: Any) -> Iterator[tuple[str, Any, Range]]:
    """(name, value, what is allowed) of each number that is out of the range of its field's type.

    Args:
        settings: an instance of a dataclass. Of its fields it looks at
            ``Annotated[kind, Range(…)]``, alone, or none, or in tuples, keys and values of dicts.
    """
    section: Any = type(settings)
    for name, kind in _kinds(section).items():
        for inner, number, allowed in _numbers(getattr(settings, name), kind):
            if number not in allowed:
                yield name + inner, number, allowed


@cache
def _kinds(section: type) -> dict[str, Any]:
    return get_type_hints(section, include_extras=True)


def _numbers(value: Any, kind: Any) -> Iterator[tuple[str, Any, Range]]:
    """Where in a value a number has a range; the number; the range."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield "", value, inside[1]
    elif origin in (Union, UnionType) and value is not None:
        for one in inside:
            if isinstance(value, dict) == (get_origin(one) is dict):  # a number, or a mapping
                yield from _numbers(value, one)
    elif origin is tuple:
        for i, item in enumerate(value):
            for at, number, allowed in _numbers(item, inside[0]):
                yield f"[{i}]{at}", number, allowed
    elif origin is dict:
        for key, item in value.items():
            for one, kind_of_it in zip((key, item), inside):
                for at, number, allowed in _numbers(one, kind_of_it):
                    yield f"[{key!r}]{at}", number, allowed
