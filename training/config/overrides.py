"""``section.key=value``: what the command line changes of a configuration."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from facestream import UserError
from heads import create_extra_terms, create_margin
from pipeline.named_path import as_name
from training.config.checks import ConfigError
from training.config.renamed import RENAMED, renamed
from training.config.whole import Config
from training.setting_value import SettingValueError, parse_value

# Where a leading tilde is expanded.
PATH_SETTINGS = (
    "run.output",
    "run.init_from",
    "run.resume",
    "data.train",
    "data.identity_map",
    "data.leave_out",
    "data.columns",
    "data.stage",
    "head.place_path",
    "distill.teacher",
    "eval.sets",
)

_HOME = re.compile(r"(?:^|(?<=:))~[^/:]*")  # which no shell has seen


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A configuration with ``section.key=value`` applied, and a leading tilde in paths expanded.

    Texts are taken as they are, all else is YAML; see training/setting_value.py. A new head.loss
    takes only the scale from the file's loss_args; a mapping given whole replaces the file's.
    Raises ConfigError as `load_config`.
    """
    config = config.typed()
    changed = {
        section.name: dict(vars(getattr(config, section.name))) for section in fields(config)
    }
    left = _start_a_new_loss(changed["head"], overrides)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r}: expected key=value, such as optim.lr=0.1")
        if "." not in key:
            sections = ", ".join(changed)
            raise ConfigError(f"{item!r}: expected section.key=value, sections {sections}")
        if key in RENAMED:
            raise ConfigError(f"{key}={text!r}: {renamed(key)}")
        section, name, inner = (*key.split(".", 2), "")[:3]
        if section not in changed or name not in changed[section]:
            raise ConfigError(f"{key}={text!r}: no such key{_known_keys(config, key)}")
        kind = get_type_hints(type(getattr(config, section)))[name]
        try:
            changed[section][name] = parse_value(text, kind, changed[section][name], inner=inner)
        except SettingValueError as error:
            raise ConfigError(f"{key}={text!r}: {error}") from error
    for setting in PATH_SETTINGS:
        section, _, name = setting.partition(".")
        changed[section][name] = _as_path(changed[section][name])
    built = {name: type(getattr(config, name))(**values) for name, values in changed.items()}
    overridden = Config(**built)
    try:
        create_margin(overridden.head.loss, **overridden.head.loss_args)
    except UserError as error:
        raise ConfigError(f"head.loss, head.loss_args: {error}") from error
    try:
        terms = create_extra_terms(overridden.head.extra_terms)
    except UserError as error:
        raise ConfigError(f"head.extra_terms: {error}") from error
    whole = [type(term).__name__ for term in terms if term.needs_whole_batch]
    if overridden.head.expectation_margins:
        whole.append("head.expectation_margin")
    if whole and overridden.step.micro_batches > 1:
        raise ConfigError(
            f"step.micro_batches={overridden.step.micro_batches}: expected 1 with "
            f"{', '.join(whole)}, which looks at the whole batch at once"
        )
    if left and os.environ.get("RANK", "0") == "0":  # once, not by every rank
        kept = {name: value for name, value in config.head.loss_args.items() if name not in left}
        logging.warning(
            "head.loss=%s starts from its own defaults: of the file's head.loss_args, made for %s, "
            "%s stays and %s does not",
            *(overridden.head.loss, config.head.loss, json.dumps(kept), json.dumps(left)),
        )
    return overridden


def _start_a_new_loss(head: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Leave of the file's loss_args only the scale, where the command line names another loss.

    Returns what does not stay.
    """
    chosen = [item.partition("=")[2] for item in overrides if item.startswith("head.loss=")]
    if not chosen or chosen[-1] == head["loss"]:
        return {}
    given = head["loss_args"]
    head["loss_args"] = {name: value for name, value in given.items() if name == "scale"}
    return {name: value for name, value in given.items() if name not in head["loss_args"]}


def _as_path(value: Any) -> Any:
    """One path or several, without a ``~`` or ``~user`` that leads, as in ``ijbc:~/DIR`` too."""
    if isinstance(value, str):
        return _HOME.sub(lambda home: os.path.expanduser(home[0]), as_name(value))
    return tuple(map(_as_path, value))


def _known_keys(config: Config, key: str) -> str:
    """For a key that does not exist, the ones that do."""
    sections = config.as_dict()
    section, _, name = key.partition(".")
    if section not in sections:
        return f"; the sections are {', '.join(sections)}"
    if name.partition(".")[0] not in sections[section]:
        return f"; {section} has the keys {', '.join(sections[section])}"
    return ""
