"""The settings of a configuration file of arcface_torch, read by `ast`: nothing of it is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class Read:
    """What a file says of a run.

    Attributes:
        values: the settings, by name.
        unread: a name, or a line where there is none, to a text of what stands there.
    """

    values: dict[str, Any]
    unread: dict[str, str]


def read_config_file(path: Path) -> Read | None:
    """What a file assigns to `config` at its top level; None where it is no such file."""
    if not path.is_file():  # reading a pipe or a device may never end
        return None
    try:
        return _of_statements(ast.parse(path.read_bytes()).body)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # the last two: of expressions that are nested too deep


def _of_statements(statements: list[ast.stmt]) -> Read:
    read = Read({}, {})
    for statement in statements:
        assigned = _assigned(statement)
        for name, node in assigned or ():
            try:
                value = _value(node, read.values)
            except _NoLiteralError:
                read.values.pop(name, None)
                read.unread[name] = f"{name} = {ast.unparse(node)}"
            else:
                read.unread.pop(name, None)
                read.values[name] = value
        if assigned is None and _mentions_config(statement):
            place = f"line {statement.lineno}"
            text = f"{place}, {ast.unparse(statement).partition(chr(10))[0].rstrip(':')}"
            for name in _changed(statement) or [place]:
                read.values.pop(name, None)
                read.unread[name] = text
    return read


def _assigned(statement: ast.stmt) -> list[tuple[str, ast.expr]] | None:
    """Names and values of ``config.x = …``, ``config["x"] = …`` and ``config = edict(…)``; None for
    any other statement."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    (target,), value = statement.targets, statement.value
    if name := _of_config(target):
        return [(name, value)]
    if not isinstance(target, ast.Name) or target.id != "config":
        return None
    if not isinstance(value, ast.Call):
        return None
    given: list[tuple[Any, ast.expr]] = [(one.arg, one.value) for one in value.keywords]
    for argument in value.args:
        if not isinstance(argument, ast.Dict):
            return None
        keys = (getattr(key, "value", None) for key in argument.keys)
        given += zip(keys, argument.values)
    return given if all(isinstance(name, str) for name, _ in given) else None


def _of_config(node: ast.AST) -> str | None:
    """The x of ``config.x`` or ``config["x"]``."""
    if not isinstance(node, (ast.Attribute, ast.Subscript)):
        return None
    if not isinstance(node.value, ast.Name) or node.value.id != "config":
        return None
    if isinstance(node, ast.Attribute):
        return node.attr
    key = node.slice
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


def _mentions_config(statement: ast.stmt) -> bool:
    """Whether it may change `config`, be it by another name."""
    return any(isinstance(n, ast.Name) and n.id == "config" for n in ast.walk(statement))


def _changed(statement: ast.stmt) -> list[str]:
    """The x of each ``config.x`` that it sets, changes a part of, or deletes."""
    names = []
    for node in ast.walk(statement):
        if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            part: ast.AST = node
            while isinstance(part, (ast.Attribute, ast.Subscript)) and not _of_config(part):
                part = part.value
            if name := _of_config(part):
                names.append(name)
    return names


class _NoLiteralError(Exception):
    """An expression whose value only running it would tell."""


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """Of a literal, of numbers added, subtracted, multiplied and divided, and of ``config.x``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, NoneType)):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return [_value(element, known) for element in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, known)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _number(node.left, known), _number(node.right, known)
        try:
            result = _ARITHMETIC[type(node.op)](left, right)
        except ArithmeticError as error:
            raise _NoLiteralError from error
        if not is_number(result):
            raise _NoLiteralError
        return result
    name = _of_config(node)
    if name is None or name not in known:
        raise _NoLiteralError
    return known[name]


def _number(node: ast.expr, known: Mapping[str, Any]) -> int | float:
    value = _value(node, known)
    if not isinstance(value, (int, float)):
        raise _NoLiteralError
    return value


def is_number(value: object) -> bool:
    """Also that it is of a size that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300
