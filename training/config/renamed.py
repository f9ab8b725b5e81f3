"""Settings that had another name once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Saved configurations may have the old one.
RENAMED = {
    "head.sample_heads": "head.sample_groups",
    "head.random_heads": "head.random_groups",
    "head.heads_scope": "head.groups_scope",
}


def by_names_of_now(saved: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A saved configuration, with the settings that are called otherwise now."""
    return {
        section: {
            RENAMED.get(f"{section}.{key}", f"{section}.{key}").partition(".")[2]: value
            for key, value in values.items()
        }
        for section, values in saved.items()
    }


def renamed(key: str) -> str:
    """What to say to someone who writes the old name."""
    return f"{key} is called {RENAMED[key]} now"
