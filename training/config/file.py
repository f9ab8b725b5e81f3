"""A configuration file: Python that defines `config`; its errors are named with their lines."""

from __future__ import annotations

import os
import runpy
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.named_path import PathError, check_path
from training.arcface_torch.settings import ArcFaceConfigError, translate
from training.config.checks import ConfigError
from training.config.overrides import override
from training.config.renamed import RENAMED, renamed
from training.config.whole import Config


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Run a configuration file, which must define `config`, and apply ``key=value`` overrides.

    Raises ConfigError for a file without a Config or that raises, with its line; an unknown key; a
    value that is of the wrong type or out of range.
    """
    close = get_close_matches(str(path), map(str, Path("configs").glob("*.py")), 3)
    nearest = f", such as {', '.join(sorted(close))}" if close else ""
    expected = f"a Python file that defines `config`{nearest}"
    try:
        check_path(path, called=str(path), expected=expected)
    except PathError as error:
        raise ConfigError(str(error)) from error
    _refuse_arcface_torch(path)
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # whatever its author's code may raise
        hints = [renamed(old) for old in RENAMED if f"'{old.partition('.')[2]}'" in str(error)]
        said = "; ".join([_in_words(error), *hints])
        raise ConfigError(f"{_place(error, str(path))}: {said}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{path} must define `config`, a training.config.Config")
    try:
        config = config.typed()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return override(config, overrides)


def _place(error: Exception, path: str) -> str:
    """The file and, where it can be known, its line that an error comes from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno or 1}"
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if step.filename == path]
    return f"{path}, line {lines[-1]}" if lines else path


def _in_words(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, ConfigError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _refuse_arcface_torch(path: str | Path) -> None:
    """Raise ConfigError for a configuration of arcface_torch, with what would do the same here."""
    ranks = os.environ.get("WORLD_SIZE", "1")
    try:
        theirs = translate(Path(path), gpus=int(ranks) if ranks.isdecimal() else 1)
    except ArcFaceConfigError as error:
        raise ConfigError(f"{error}. It is a configuration of arcface_torch") from error
    if theirs is None:
        return
    notes = "".join(f"\n  {note}" for note in theirs.notes)
    raise ConfigError(
        f"{path} is a configuration of arcface_torch, expected one of ours. `python "
        f"tools/from_arcface_torch.py {path} -o OUT.py` writes it so; or, on as many ranks as "
        "here:\n\n"
        f"{theirs.command('train_dist.py', 'configs/ms1mv2_r50.py')}\n\nnot the same:{notes}"
    )
