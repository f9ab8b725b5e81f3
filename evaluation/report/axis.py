"""Axes: from where to where, linear or logarithmic, and what stands at which place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FEWEST_DECADES = 1
_MOST_DECADES = 9
_SMALLEST = 1e-12  # what is below it is no rate that anything shows


@dataclass(frozen=True)
class Axis:
    """A scale.

    Attributes:
        label: what is measured along it.
        low, high: its ends, low < high; above 0 where it is logarithmic.
        log: whether it is logarithmic.
        percent: whether shares are written in percent, on a linear axis.
        whole: whether there is nothing between whole numbers.
    """

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high one; beyond them at the end."""
        if not self.log:
            part = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            part = 0.0
        else:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        return min(1.0, max(0.0, part))

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Values to mark, with their texts, in rising order."""
        if self.log:
            first, last = math.ceil(_log(self.low) - 1e-9), math.floor(_log(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / most))
            powers = range(last, first - 1, -every)
            return [(10.0**power, _power(power)) for power in reversed(powers)]
        step = _step((self.high - self.low) / most)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(i * step, self._text(i * step, step)) for i in range(first, last + 1)]

    def _text(self, value: float, step: float) -> str:
        if self.percent:
            value, step = 100 * value, 100 * step
        digits = max(0, -math.floor(_log(step) + 1e-9))
        return f"{value:,.{digits}f}".replace("-", "−") + ("%" if self.percent else "")


def log_axis(label: str, values: Iterable[float], *, to_one: bool) -> Axis:
    """From the power of ten below the least positive value to 1, or to that above the largest."""
    positive = [value for value in values if _SMALLEST < value < math.inf]
    low = math.floor(_log(min(positive, default=0.001)) + 1e-9)
    high = 0 if to_one else math.ceil(_log(max(positive, default=1)) - 1e-9)
    low = max(high - _MOST_DECADES, min(low, high - _FEWEST_DECADES))
    return Axis(label, 10.0**low, 10.0**high, log=True)


def share_axis(label: str, values: Iterable[float], *, to_one: bool) -> Axis:
    """Of shares: from a round number below the least to 1, or from 0 to one above the largest."""
    finite = [value for value in values if math.isfinite(value)]
    if to_one:
        least = min(finite, default=0.0)
        step = _step(max(0.002, 1 - least) / 4)
        low = max(0.0, math.floor(least / step + 1e-9) * step)
        return Axis(label, low if low < 1 else 1 - step, 1.0, percent=True)
    most = max(finite, default=1.0)
    step = _step(max(1e-6, most) / 4)
    return Axis(label, 0.0, math.ceil(most / step - 1e-9) * step or step, percent=True)


def _step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(_log(least))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= least * (1 - 1e-9))


def _power(power: int) -> str:
    return "1" if power == 0 else f"10{str(power).translate(_SUPERSCRIPTS)}"


def _log(value: float) -> float:
    return math.log10(value)
