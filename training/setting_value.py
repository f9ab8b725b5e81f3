"""What ``section.key=TEXT`` of a command line means, by the type of the setting."""

from __future__ import annotations

import json
import re
from dataclasses import make_dataclass
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from facestream import UserError
from pipeline.named_path import MALFORMED, as_text

_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_ALIAS = "while scanning an alias"  # as PyYAML says it of a * that no name follows
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?")
# What may be raised by reading a text as YAML, and by giving what it says a type.
_NO_VALUE = (OmegaConfBaseException, yaml.YAMLError, *MALFORMED)


class SettingValueError(UserError):
    """A text that is no value of its setting; the message says what is expected."""


def parse_value(text: str, kind: Any, current: Any, *, inner: str = "") -> Any:
    """The value that a text gives a setting.

    Texts are taken as they are, whatever YAML would make of `1.10`, `no` or `a #2`. Several of them
    are a list in brackets, ``[a.bin, b.bin]``, with quotes round one that holds a comma; a single
    one needs no brackets, unless it begins with one. Anything else is YAML.

    Args:
        text: what follows the equals sign.
        kind: the setting's type. Any stands for a text or several of them.
        current: its value until now.
        inner: what of the setting is changed, as in ``head.loss_args.margin``; empty: all of it.

    Raises:
        SettingValueError: for a text that is no such value.
    """
    text = as_text(text)
    if kind is str and not inner:
        return text
    if kind is Any and not inner:
        return _texts(text) if text.startswith("[") else text
    if kind == tuple[str, ...] and not inner:
        return _texts(text) if text.startswith("[") else (text,) if text else ()
    try:
        value = text if get_origin(kind) is Literal and not inner else _from_yaml(text)
        kind = _alternative(kind, {} if inner else value)
        if get_origin(kind) is dict and not inner and not isinstance(value, dict):
            raise SettingValueError("expected names and values, as in {name: value}")
        if not inner:  # replaced, not merged: a mapping given whole keeps nothing of the old one
            current = MISSING
        elif get_origin(kind) is dict and not isinstance(current, dict):
            current = {}
        tree = OmegaConf.structured(make_dataclass("Setting", [("value", kind)])(current))
        OmegaConf.update(tree, f"value.{inner}" if inner else "value", value, merge=False)
        return cast(Any, OmegaConf.to_object(tree)).value
    except _NO_VALUE as error:
        raise SettingValueError(_in_a_line(error)) from error


def as_typed(value: Any, kind: Any) -> Any:
    """A value from Python as its setting's type has it, such as 3.0 of 3.

    Texts stay as they are: OmegaConf would put other settings in place of ``${...}``.

    Raises SettingValueError for a value of another type.
    """
    texts = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    kind = _alternative(kind, value)
    if kind is Any or type(value) is kind or (kind == tuple[str, ...] and texts):
        return value
    try:
        tree = OmegaConf.structured(make_dataclass("Setting", [("value", kind)])(value))
        return cast(Any, OmegaConf.to_object(tree)).value
    except _NO_VALUE as error:
        raise SettingValueError(_in_a_line(error)) from error


def as_given(value: Any) -> str:
    """The text that `parse_value` makes this value of."""
    if isinstance(value, str):
        return value
    # YAML takes no other characters as they are.
    return "".join(
        c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False)
    )


def from_plain(value: Any, kind: Any) -> Any:
    """The value of a setting that JSON has kept, where lists are tuples and keys are texts."""
    if isinstance(value, list):
        return tuple(value)
    if get_origin(kind) is dict and get_args(kind)[0] is int and isinstance(value, dict):
        return {int(key) if str(key).isdecimal() else key: inner for key, inner in value.items()}
    return value


def _alternative(kind: Any, value: Any) -> Any:
    """Of a setting that is a number or a mapping, the kind that this value is of."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    mappings = [one for one in kinds if get_origin(one) is dict]
    if len(kinds) == 1 or not mappings:
        return kind
    [other] = [one for one in kinds if one not in mappings]
    return mappings[0] if isinstance(value, dict) else other


def _texts(text: str) -> tuple[str, ...]:
    """The elements of a list in brackets, each as it stands."""
    try:
        values = yaml.load(text, Loader=yaml.BaseLoader)  # which makes texts of all scalars
    except _NO_VALUE as error:
        raise SettingValueError(f"expected [one, other]: {_in_a_line(error)}") from error
    if not all(isinstance(value, str) for value in values):
        raise SettingValueError("expected a list of texts, [one, other]")
    return tuple(values)


def _in_a_line(error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    if reason == _ALIAS:  # what patterns of names look like
        return (
            """a name that begins with * stands in quotes here, as in ["*.bias"], {"*.bias": 2}"""
        )
    return reason


def _from_yaml(text: str) -> Any:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
        if plain and _SEXAGESIMAL.fullmatch(event.value):
            raise SettingValueError(
                f"expected a number; YAML reads {event.value} in base 60, as hours and minutes. "
                "In a mapping, put a space after the colon"
            )
        if plain and _OCTAL.fullmatch(event.value):
            raise SettingValueError(
                f"expected a number without leading zeros; YAML reads {event.value} in base 8"
            )
    plain = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    return cast(dict[str, Any], plain)["value"]
