"""A run of arcface_torch as one of ours: its configuration, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models import Architecture
from training.arcface_torch.settings import (
    LINEAR,
    ArcFaceConfigError,
    Translation,
    translate,
)
from training.arcface_torch.training_log import NAME as LOG
from training.arcface_torch.weights import ArcFaceTorchError, Optimization, Weights
from training.config import Config, DataConfig, override


@dataclass(frozen=True)
class TheirRun:
    """What goes on here.

    Attributes:
        settings: all of the run, with what its checkpoint says; and what differs here.
        config: the same.
        step: of the optimizer, done.
        steps_per_epoch: of the optimizer; 0: not known.
    """

    settings: Translation
    config: Config
    step: int
    steps_per_epoch: int


def find_config(
    sources: Sequence[Path], *, gpus: int | None
) -> tuple[Path, Translation | None, str] | None:
    """A configuration in the folders that are named, or else their training.log.

    Args:
        gpus: that the run has; None: what the log says.

    Returns:
        The file, what it means here, and why it means nothing; None where there is no such file.

    Raises:
        ArcFaceTorchError: where there are several.
    """
    folders = [source for source in sources if source.is_dir()]
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    logs = [folder / LOG for folder in folders if (folder / LOG).is_file()]
    for kind in (files, logs):
        found: list[tuple[Path, Translation | None, str]] = []
        for path in kind:
            try:
                translated = translate(path, gpus=gpus)
            except ArcFaceConfigError as error:
                found.append((path, None, str(error)))
            else:
                found += [(path, translated, "")] if translated else []
        if len(found) > 1:
            names = ", ".join(str(path) for path, *_ in found)
            raise ArcFaceTorchError(f"found {names}: name the run's own as --config FILE")
        if found:
            return found[0]
    return None


def their_run(weights: Weights, translated: Translation, source: Path, output: Path) -> TheirRun:
    """Their configuration, corrected by their checkpoint.

    Raises:
        ArcFaceTorchError: where the configuration is of another run than the weights.
        ConfigError: for a value that is out of range here.
    """
    settings, notes = dict(translated.settings), list(translated.notes)
    settings["run.output"] = str(output)
    settings["data.image_size"] = weights.architecture.image_size
    parts, batch = settings["step.micro_batches"], settings["data.global_batch"]
    per_epoch = 0
    if weights.optimization is not None:
        notes = [note for note in notes if note != LINEAR or weights.optimization.power is None]
        per_epoch = _steps_per_epoch(weights, weights.optimization, settings)
        optim_settings = _optim_settings(weights.optimization, batch=batch, per_epoch=per_epoch)
        notes += [
            f"{name} = {value:g}: the checkpoint's, the configuration's is {settings[name]:g}"
            for name, value in optim_settings.items()
            if isinstance(settings.get(name), (int, float)) and settings[name] != value
        ]
        settings |= optim_settings
        notes += _differing_steps(weights, weights.optimization, per_epoch, parts)
    corrected = replace(translated, settings=settings, notes=tuple(notes))
    config = override(Config(data=DataConfig(train="unknown")), corrected.overrides())
    _require_of_one_run(weights, config, translated.gpus, source)
    return TheirRun(corrected, config, weights.step // parts, per_epoch // parts)


def _steps_per_epoch(
    weights: Weights, optimization: Optimization, settings: Mapping[str, Any]
) -> int:
    """Of the schedule."""
    epochs, total = settings.get("run.epochs"), optimization.total_steps
    if epochs and total and total % epochs == 0:
        return total // epochs
    return weights.step // weights.epoch if weights.epoch else 0


def _optim_settings(optimization: Optimization, *, batch: int, per_epoch: int) -> dict[str, Any]:
    """The settings that optimizer and schedule tell. A configuration may have been changed since,
    and of SGD's momentum arcface_torch takes no notice there."""
    optim_settings: dict[str, Any] = {
        "optim.lr": _rounded(optimization.rate * 512 / batch),
        "optim.momentum": optimization.momentum,
        "optim.weight_decay": optimization.weight_decay,
    }
    if optimization.head_weight_decay != optimization.weight_decay:
        optim_settings["head.weight_decay"] = optimization.head_weight_decay
    if optimization.warmup_steps is not None and per_epoch:
        optim_settings["optim.power"] = float(optimization.power or 0)
        optim_settings["optim.warmup_epochs"] = _rounded(optimization.warmup_steps / per_epoch)
    return optim_settings


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")


def _differing_steps(
    weights: Weights, optimization: Optimization, per_epoch: int, parts: int
) -> list[str]:
    notes, step, epoch = [], weights.step, weights.epoch
    if per_epoch and epoch and step != epoch * per_epoch:
        notes.append(
            f"it did {step} steps in {epoch} epochs, where its schedule counts {per_epoch} an "
            "epoch: num_image is not that of the data, so that rates differ a little here"
        )
    if optimization.warmup_steps and step < optimization.warmup_steps:
        notes.append(
            f"step {step} is inside the warm-up of W = {optimization.warmup_steps} steps, where "
            "the rate is (step + 1) / (W + 1) of the highest here, step / W there: losses are near "
            "theirs until then, and not equal"
        )
    if parts > 1:
        notes.append(
            f"gradients of {parts} batches are added up: a step here is {parts} of theirs, all at "
            "the rate of the first"
        )
    return notes


def _require_of_one_run(weights: Weights, config: Config, gpus: int, source: Path) -> None:
    hint = "name the configuration of this run as --config FILE"
    if _shapes(config.architecture) != {k: t.shape for k, t in weights.backbone.items()}:
        raise ArcFaceTorchError(
            f"{source} says {config.architecture}, {config.model.embedding_dim} features; the "
            f"weights are of {weights.architecture}, {weights.architecture.embedding_dim}: {hint}"
        )
    if weights.centers is None:
        return
    if config.head.num_classes not in (None, len(weights.centers)):
        raise ArcFaceTorchError(
            f"{source} says {config.head.num_classes} classes, the files of {weights.ranks} ranks "
            f"have {len(weights.centers)}: name the files of all ranks, or {hint}"
        )
    if weights.ranks not in (0, gpus):
        raise ArcFaceTorchError(
            f"{source} says {gpus} GPUs, there are files of {weights.ranks} ranks: name the files "
            f"of all ranks, or {hint}"
        )


def _shapes(architecture: Architecture) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: t.shape for name, t in architecture.create().state_dict().items()}
