"""How a figure is written: in percent or not, and with how many digits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from evaluation.figure_names import is_percentage, subject
from evaluation.result import Figure

_ABBREVIATION = re.compile(r"\b(tar|far|tmr|fmr|fnmr|frr|eer|auc|tpir|fpir|fnir)\b")
MISSING = "–"


def title(name: str) -> str:
    """The figure's name as people write it, with its unit: "TAR@FAR=0.001, %"."""
    written = _ABBREVIATION.sub(lambda found: found[0].upper(), plain(name)).replace("_", " ")
    return f"{written}, %" if is_percentage(name) else written


def value_text(name: str, figure: Figure) -> str:
    """The number alone, in percent where it is a share; `MISSING` where there is none."""
    value = _scaled(name, figure.value)
    if value is None:
        return MISSING
    if abs(value) >= 1000:
        return _minus(f"{value:,.0f}")
    digits = 3 if subject(name).startswith("threshold") else 2
    if 0 < abs(value) < 0.1:  # two that say anything: an FMR of 0.00012 %
        digits = max(digits, min(8, 1 - math.floor(math.log10(abs(value)))))
    return _minus(f"{value:.{max(digits, _interval_digits(name, figure))}f}")


def interval_text(name: str, figure: Figure) -> str:
    """ "[98.9, 99.7]", or nothing where the figure has no interval."""
    low, high = _scaled(name, figure.low), _scaled(name, figure.high)
    if low is None or high is None or _scaled(name, figure.value) is None:
        return ""
    digits = _interval_digits(name, figure)
    return _minus(f"[{low:,.{digits}f}, {high:,.{digits}f}]")


def figure_text(name: str, figure: Figure) -> str:
    """The number with its interval: "99.37 [98.9, 99.7]"."""
    return f"{value_text(name, figure)} {interval_text(name, figure)}".rstrip()


def plain(text: object) -> str:
    """A name as every format may show it: in one line, without what steers a terminal or a page."""
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in str(text)
    )


def interval_words(interval: Mapping[str, Any], *, whole: bool = False) -> str:
    """How intervals were made: "95 % intervals: bootstrap, 1,000 draws, clusters: people".

    Args:
        whole: with what differs from set to set and model to model, too.
    """
    if not interval:
        return ""
    if "missing" in interval:
        return f"No intervals: {plain(interval['missing'])}"
    facts = dict(interval)
    level = facts.pop("level", None)
    name = f"{100 * level:g} % intervals" if isinstance(level, (int, float)) else "Intervals"
    said = [plain(facts.pop("method"))] if "method" in facts else []
    if isinstance(facts.get("draws"), int):
        said.append(f"{facts.pop('draws'):,} draws")
    kept = facts if whole else {key: facts[key] for key in ("clusters",) if key in facts}
    said += [f"{plain(key)}: {plain(value)}" for key, value in kept.items()]
    return f"{name}: {', '.join(said)}" if said else name


def _scaled(name: str, value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return 100 * value if is_percentage(name) else value


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _interval_digits(name: str, figure: Figure) -> int:
    """As many as an interval of this width needs to have two ends that differ; 0 without one."""
    low, high = _scaled(name, figure.low), _scaled(name, figure.high)
    if low is None or high is None or max(abs(low), abs(high)) >= 1000:
        return 0
    fewest = 1 if is_percentage(name) else 2
    if high <= low:
        return 2
    return max(fewest, min(8, -math.floor(math.log10((high - low) / 2))))
