"""A translated configuration as a file of ours, which loads to the same settings."""

from __future__ import annotations

from dataclasses import fields
from typing import get_type_hints

from training.arcface_torch.settings import Translation
from training.config import Config


def as_file(source: str, translated: Translation) -> str:
    """The file's text.

    Args:
        source: the name of what was translated.
    """
    ranks = f"{translated.gpus} GPU{'s' if translated.gpus > 1 else ''}"
    lines = [f'"""{_plain(source)} of arcface_torch, as it trains on {ranks}.']
    if translated.notes:
        lines += ["", "Not the same:", *(f"- {_plain(note)}" for note in translated.notes)]
    kinds = get_type_hints(Config)
    sections = {section.name: kinds[section.name] for section in fields(Config)}
    used = [name for name in sections if any(_in(name, key) for key in translated.settings)]
    lines += ['"""', "", "from training.config import (", "    Config,"]
    lines += [f"    {name}," for name in sorted(sections[name].__name__ for name in used)]
    lines += [")", "", "config = Config("]
    for name in used:
        values = {k: v for k, v in translated.settings.items() if _in(name, k)}
        lines.append(f"    {name}={sections[name].__name__}(")
        lines += [f"        {key.partition('.')[2]}={value!r}," for key, value in values.items()]
        lines.append("    ),")
    return "\n".join([*lines, ")", ""])


def _in(section: str, key: str) -> bool:
    return key.startswith(f"{section}.")


def _plain(text: str) -> str:
    """Fit for a docstring, whatever the file says or is called: it must not become code."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown.replace("\\", "\\\\").replace('"""', "'''")
