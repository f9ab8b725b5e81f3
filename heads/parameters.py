"""The numbers that margins and extra terms are built with, checked by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from facestream import UserError


def check(owner: object, name: str, fits: Callable[[float], bool], stated: str) -> None:
    """Raises UserError unless the owner's attribute is a finite number that `fits`."""
    value = getattr(owner, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and fits(value)):
        raise UserError(
            f"{type(owner).__name__}: {name}={value!r}, expected a finite number in {stated}"
        )


def check_angle(owner: object, name: str) -> None:
    """Raises UserError unless it is an angle in [0, π/2)."""
    check(owner, name, lambda angle: 0 <= angle < math.pi / 2, "[0, π/2)")


def check_flag(owner: object, name: str) -> None:
    """Raises UserError unless it is True or False."""
    value = getattr(owner, name)
    if not isinstance(value, bool):
        raise UserError(f"{type(owner).__name__}: {name}={value!r}, expected True or False")
