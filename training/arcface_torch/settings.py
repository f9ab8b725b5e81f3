"""What arcface_torch's configuration of a run, or its training.log, means in our settings."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facestream import UserError
from training.arcface_torch.config_file import is_number, read_config_file
from training.arcface_torch.training_log import read_training_log
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
_NEEDS_NOTHING |= {"total_batch_size", "warmup_step", "total_step"}  # what its log says beside
_DECIDES = {"network", "loss", "margin_list", "optimizer", "batch_size", "lr", "gradient_acc"}


LINEAR = (
    "the rate falls linearly, as arcface_torch's since April 2023; optim.power=2 is what it was "
    "before"
)


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


def translate(path: Path, *, gpus: int | None) -> Translation | None:
    """What a configuration of arcface_torch, or a run's training.log, means here; None for a file
    that is neither.

    Args:
        gpus: that arcface_torch would be started on. Its batch is of one of them, its rate of all.
            None: what the log says.

    Raises:
        ArcFaceConfigError: where there is no such network, loss or optimizer here, and where
            neither `gpus` nor the file says how many.
    """
    own = read_training_log(path) if path.suffix == ".log" else read_config_file(path)
    if own is None or len(_MARKS & {*own.values, *own.unread}) < 2:
        return None
    beside = read_config_file(path.with_name("base.py"))
    base = _BASE | (beside.values if beside else {})
    values = {**base, **own.values}
    for name in own.unread.keys() & _DECIDES:
        raise ArcFaceConfigError(
            f"{path}: {own.unread[name]} is no literal, and nothing of the file is run: write "
            f"config.{name} and its value there"
        )
    _check_types(values, path)
    if gpus is None:
        gpus = _gpus(values, path)
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
        "a whole number of at least 1": ("batch_size", "gradient_acc", "total_batch_size"),
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
        "a number": is_number,
        "a list": lambda value: isinstance(value, list),
        "a text": lambda value: isinstance(value, str),
    }
    for kind, of_kind in names.items():
        for name in of_kind:
            # None is what base.py gives `output`.
            if values.get(name) is not None and not fits[kind](values[name]):
                raise ArcFaceConfigError(f"{path}: {name} = {values[name]!r}: expected {kind}")


def _gpus(values: Mapping[str, Any], path: Path) -> int:
    if "total_batch_size" not in values:
        raise ArcFaceConfigError(
            f"{path} does not say on how many GPUs it trains, and its batch is of one of them: "
            "expected their number, as --gpus 8"
        )
    return max(1, values["total_batch_size"] // values["batch_size"])


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
    if len(given) != 3 or not all(map(is_number, given)):
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
    # Ours is stated for a batch of 512 and follows the batch, as theirs did before margin_list;
    # since then theirs is taken as it is.
    rate = float(values["lr"])
    if "margin_list" in values:
        rate = float(f"{rate * 512 / _batch(values, gpus):.12g}")
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
    notes.append(LINEAR)
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
