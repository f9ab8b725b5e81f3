"""What a room below calls its arguments, named as the settings of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from facestream import UserError


@contextmanager
def named_as(called: str) -> Iterator[None]:
    """Put a setting and its value in front of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{called}: {error}") from error


@contextmanager
def settings_named(*settings: str, **others: str) -> Iterator[None]:
    """Add to a UserError raised inside the settings that stand behind the arguments it names.

    settings: such as "data.global_batch", for the argument global_batch.
    others: by what the room below calls it, for settings that have another name.
    """
    by_word = {setting.partition(".")[2]: setting for setting in settings} | others
    try:
        yield
    except UserError as error:
        named = [key for word, key in by_word.items() if re.search(rf"\b{word}\b", str(error))]
        if not named:
            raise
        raise type(error)(f"{error}. In the configuration: {', '.join(named)}") from error
