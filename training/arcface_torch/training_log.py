"""The settings of a run of arcface_torch, as its training.log has them: `base.py`'s among them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from training.arcface_torch.config_file import Read

NAME = "training.log"
_LINE = re.compile(r"Training: [\d-]+ [\d:,.]+-(.*)")
_START = re.compile(r"rank_id: \d+")
# A name is filled up with spaces to 25 characters; a longer one stands right before its value.
_SETTING = re.compile(r": (?:(\w{1,24}) +|(interclass_filtering_threshold))(.*)")


def read_training_log(path: Path) -> Read | None:
    """What the last start of the run printed; None where it is no such log."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values: dict[str, Any] = {}
    for line in filter(None, map(_LINE.match, text.splitlines())):
        if _START.fullmatch(line[1]):
            values = {}
        elif setting := _SETTING.fullmatch(line[1]):
            values[setting[1] or setting[2]] = _value(setting[3].strip())
    return Read(values, {}) if values else None


def _value(printed: str) -> Any:
    """Texts are printed without quotes."""
    try:
        value = ast.literal_eval(printed)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return printed
    return list(value) if isinstance(value, tuple) else value
