"""The order in which identities are numbered by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_NUMBER = re.compile(r"-?[0-9]{1,4000}")  # of more digits Python makes no number


def order_of(names: Iterable[int | str]) -> Callable[[int | str], tuple[int, str]]:
    """The key by which these identities are sorted: numbers, text or not, as numbers; else as text.

    Numbers of one value, such as 7 and 007, go by their text.
    """
    if all(_NUMBER.fullmatch(str(name)) for name in names):
        return lambda name: (int(name), str(name))
    return lambda name: (0, str(name))
