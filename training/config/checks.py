"""What a section refuses: by its own rules, and by the ranges of its settings' types."""

from __future__ import annotations

from facestream import UserError
from training.setting_range import out_of_range


class ConfigError(UserError):
    """A configuration that cannot be run: names the key, what was found and what is allowed."""


def check(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless `holds`."""
    if not holds:
        raise ConfigError(f"{key}={value!r}: expected {allowed}")


def check_ranges(section: str, settings: object) -> None:
    """Raise ConfigError for a number out of the range that its type names."""
    for name, value, allowed in out_of_range(settings):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        kind = "" if number else "a number of Python's own, "
        raise ConfigError(f"{section}.{name}={value!r}: expected {kind}{allowed}")
