"""A configuration of arcface_torch in our settings: read as text by `ast`, nothing of it is run."""

from __future__ import annotations

import ast
import operator
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from facestream import UserError
from training.setting_value import as_given

# What arcface_torch's configs/base.py says where neither the file nor a base.py beside it does.
_BASE: dict[str, Any] = {
    "margin_list": [1.0, 0.5, 0.0],
    "network": "r50",
    "output": None,
    "embedding_size": 512,
    "sample_rate": 1,
    "interclass_filtering_threshold": 0,
    "fp16": False,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "verbose": 2000,
    "frequent": 10,
    "gradient_acc": 1,
    "dali_aug": False,
    "seed": 2048,
}
_MARKS = {"network", "margin_list", "embedding_size", "rec", "val_targets", "num_epoch", "fp16"}
# Name and options. It hides a tenth of a transformer's patches wherever it is to hide any.
_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"r{depth}": (f"iresnet{depth}", {}) for depth in (18, 34, 50, 100, 200)},
    **{name: (name, {}) for name in ("mbf", "mbf_large", "vit_t", "vit_s", "vit_b")},
    "vit_t_dp005_mask0": ("vit_t", {"mask_ratio": 0.0, "drop_path": 0.05}),
    "vit_s_dp005_mask_0": ("vit_s", {"mask_ratio": 0.0, "drop_path": 0.05}),
    "vit_b_dp005_mask_005": ("vit_b", {"drop_path": 0.05}),
    "vit_l_dp005_mask_005": ("vit_l", {"mask_ratio": 0.1}),
    "vit_h": ("vit", {"dim": 1024, "depth": 48, "mask_ratio": 0.0}),
}
_OLD_LOSSES = {"arcface": 0.5, "cosface": 0.4}  # before margin_list, with their margins
# What is as it should be here without a setting.
_NEEDS_NOTHING = {"num_image", "num_workers", "dali", "save_all_states"}
_DECIDES = {"network", "loss", "margin_list", "optimizer", "batch_size", "lr", "gradient_acc"}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class ArcFaceConfigError(UserError):
    """A configuration of arcface_torch that cannot be had here: says which setting, and why."""


@dataclass(frozen=True)
class Translation:
    """The same run in our settings, as far as there are such.

    Attributes:
        settings: "section.key" to a value.
        notes: what has no equivalent or differs, a line each.
    """

    settings: dict[str, Any]
    notes: tuple[str, ...]
    gpus: int

    def overrides(self) -> list[str]:
        """``section.key=value`` for each setting."""
        return [f"{key}={as_given(value)}" for key, value in self.settings.items()]

    def command(self, script: str, config: str) -> str:
        """A command line with all of them, for a shell."""
        start = f"torchrun --nproc_per_node={self.gpus} {script} {config}"
        return " \\\n  ".join([start, *map(shlex.quote, self.overrides())])


@dataclass(frozen=True)
class _Read:
    values: dict[str, Any]
    unread: dict[str, str]  # a name, or a line where there is none, to a text of what stands there


def translate(path: Path, *, gpus: int) -> Translation | None:
    """What a configuration of arcface_torch means here; None for a file that is no such.

    Args:
        gpus: that arcface_torch would be started on. Its batch is of one of them, its rate of all.

    Raises:
        ArcFaceConfigError: where there is no such network, loss or optimizer here.
    """
    own = _read(path)
    if own is None or len(_MARKS & {*own.values, *own.unread}) < 2:
        return None
    beside = _read(path.with_name("base.py"))
    base = _BASE | (beside.values if beside else {})
    values = {**base, **own.values}
    for name in own.unread.keys() & _DECIDES:
        raise ArcFaceConfigError(
            f"{path}: {own.unread[name]} is no literal, and nothing of the file is run: write "
            f"config.{name} and its value there"
        )
    _check_types(values, path)
    if "margin_list" not in own.values and "loss" in values:
        del values["margin_list"]
    settings, notes = {}, []
    for part in (_run, _data, _model, _head, _optim, _verification):
        more, differ = part(values, path, gpus)
        settings |= more
        notes += differ
    notes += [
        f"{text}: no literal, not taken" for name, text in own.unread.items() if not _of_wandb(name)
    ]
    return Translation(settings, (*notes, *_without_equivalent(values)), gpus)


def _check_types(values: Mapping[str, Any], path: Path) -> None:
    """Here and not as our settings, whose texts say no types: 512 and "512" are the same there."""
    names: dict[str, tuple[str, ...]] = {
        "a whole number of at least 1": ("batch_size", "gradient_acc"),
        "a number": (
            *("lr", "momentum", "weight_decay", "warmup_epoch", "num_epoch", "seed", "verbose"),
            *("frequent", "embedding_size", "num_classes", "sample_rate"),
            "interclass_filtering_threshold",
        ),
        "a list": ("margin_list", "decay_epoch", "val_targets"),
        "a text": ("network", "loss", "optimizer", "rec", "output"),
    }
    fits: dict[str, Callable[[Any], bool]] = {
        "a whole number of at least 1": lambda value: type(value) is int and value > 0,
        "a number": _is_number,
        "a list": lambda value: isinstance(value, list),
        "a text": lambda value: isinstance(value, str),
    }
    for kind, of_kind in names.items():
        for name in of_kind:
            # None is what base.py gives `output`.
            if values.get(name) is not None and not fits[kind](values[name]):
                raise ArcFaceConfigError(f"{path}: {name} = {values[name]!r}: expected {kind}")


def _read(path: Path) -> _Read | None:
    """What a file assigns to `config` at its top level; None where it is no such file."""
    try:
        return _of_statements(ast.parse(path.read_bytes()).body)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # the last two: of expressions that are nested too deep


def _of_statements(statements: list[ast.stmt]) -> _Read:
    read = _Read({}, {})
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
        if not _is_number(result):
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


_Part = tuple[dict[str, Any], list[str]]


def _run(values: Mapping[str, Any], path: Path, gpus: int) -> _Part:
    settings = {"run.output": values["output"] or f"runs/{path.stem}", "run.seed": values["seed"]}
    if "num_epoch" in values:
        settings["run.epochs"] = values["num_epoch"]
    return settings | {"log.every": values["frequent"]}, []


def _data(values: Mapping[str, Any], path: Path, gpus: int) -> _Part:
    augment = ("flip", "arcface") if values["dali_aug"] else ("flip",)
    settings = {
        "data.train": values.get("rec", "unknown"),
        "data.global_batch": _batch(values, gpus),
        "data.augment": augment,
    }
    if "rec" not in values:
        return settings, ["rec is not said: set data.train"]
    if values["rec"] == "synthetic":
        return settings, ["rec = 'synthetic': set data.train, tools/make_synthetic.py draws faces"]
    return settings, []


def _batch(values: Mapping[str, Any], gpus: int) -> int:
    """Images between two steps of the optimizer, with gradient accumulation."""
    return values["batch_size"] * gpus * values["gradient_acc"]


def _model(values: Mapping[str, Any], path: Path, gpus: int) -> _Part:
    network = values["network"]
    if network not in _NETWORKS:
        raise ArcFaceConfigError(
            f"{path}: network = {network!r} has no equivalent here: expected one of "
            f"{', '.join(_NETWORKS)}"
        )
    name, options = _NETWORKS[network]
    return {
        "model.name": name,
        "model.options": options,
        "model.embedding_dim": values["embedding_size"],
        "step.precision": "auto" if values["fp16"] else "fp32",
        "step.micro_batches": values["gradient_acc"],
    }, []


def _head(values: Mapping[str, Any], path: Path, gpus: int) -> _Part:
    settings = {"head.sample_rate": values["sample_rate"]}
    if "num_classes" in values:
        settings["head.num_classes"] = values["num_classes"]
    loss, margin, notes = _margin(values, path)
    arguments: dict[str, Any] = {"scale": 64.0, **margin}
    if threshold := values["interclass_filtering_threshold"]:
        arguments["filter_above"] = threshold
        notes.append(
            "interclass_filtering_threshold: filtered negatives leave the softmax here; in "
            "arcface_torch they stay in it with the logit 0"
        )
    return settings | {"head.loss": loss, "head.loss_args": arguments}, notes


def _margin(values: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any], list[str]]:
    if "margin_list" not in values:
        loss = values["loss"]
        if loss not in _OLD_LOSSES:
            raise ArcFaceConfigError(
                f"{path}: loss = {loss!r}: expected one of {', '.join(_OLD_LOSSES)}"
            )
        note = "loss: of arcface_torch before margin_list, whose gradient is the exact derivative"
        return loss, {"margin": _OLD_LOSSES[loss]}, [note]
    given = values["margin_list"]
    if len(given) != 3 or not all(map(_is_number, given)):
        raise ArcFaceConfigError(f"{path}: margin_list = {given!r}: expected three numbers")
    m1, m2, m3 = given
    if m1 == 1 and m3 == 0:
        return "arcface", {"margin": m2, "gradient": "straight_through"}, []
    if m3 > 0:
        note = f"margin_list = {given}: arcface_torch takes the third alone where it is above 0"
        return "cosface", {"margin": m3}, [note] if (m1, m2) != (1, 0) else []
    raise ArcFaceConfigError(
        f"{path}: margin_list = {given}: arcface_torch ends with an error there; "
        "head.loss=combined has all three"
    )


def _optim(values: Mapping[str, Any], path: Path, gpus: int) -> _Part:
    name = values["optimizer"]
    if name not in ("sgd", "adamw"):
        raise ArcFaceConfigError(f"{path}: optimizer = {name!r}: expected 'sgd' or 'adamw'")
    # Ours is stated for a batch of 512 and follows the batch, theirs is taken as it is.
    rate = float(f"{values['lr'] * 512 / _batch(values, gpus):.12g}")
    settings = {"optim.name": name, "optim.lr": rate, "optim.weight_decay": values["weight_decay"]}
    notes = []
    if name == "sgd":
        settings["optim.momentum"] = values["momentum"]
    else:
        notes.append(
            "optimizer = 'adamw': there it trains the centers too, here they use SGD: set head.lr "
            "and head.weight_decay, such as 0.1 and 5e-4"
        )
    if "warmup_epoch" in values:
        settings["optim.warmup_epochs"] = max(0, values["warmup_epoch"])
    if "decay_epoch" in values:
        steps = {"optim.schedule": "step", "optim.decay_epochs": tuple(values["decay_epoch"])}
        return settings | steps | {"optim.decay_factor": 0.1}, notes
    notes.append(
        "the rate falls linearly, as arcface_torch's since April 2023; optim.power=2 is what it "
        "was before"
    )
    return settings | {"optim.schedule": "polynomial", "optim.power": 1.0}, notes


def _verification(values: Mapping[str, Any], path: Path, gpus: int) -> _Part:
    settings = {"eval.every_steps": values["verbose"]}
    if "rec" in values and "val_targets" in values:
        sets = (f"{values['rec']}/{name}.bin" for name in values["val_targets"])
        settings["eval.sets"] = tuple(sets)
    return settings, []


def _without_equivalent(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("resume"):
        yield (
            "resume = True: the same command goes on by itself here; what arcface_torch has saved "
            "comes in by tools/import_arcface_torch.py and run.resume"
        )
    if values.get("using_wandb"):
        yield "using_wandb = True: the log is TensorBoard's, in run.output, and metrics.jsonl"
    known = _BASE.keys() | _NEEDS_NOTHING | _MARKS
    known |= {"loss", "num_classes", "warmup_epoch", "decay_epoch", "resume", "using_wandb"}
    for name, value in values.items():
        if name not in known and not _of_wandb(name):
            yield f"{name} = {value!r}: no equivalent"


def _of_wandb(name: str) -> bool:
    return "wandb" in name or name in ("suffix_run_name", "save_artifacts", "notes")


def _is_number(value: object) -> bool:
    """Also that it is of a size that can be computed with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300
