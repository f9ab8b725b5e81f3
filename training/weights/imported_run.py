"""Weights that were trained elsewhere, written as a run of ours with one checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.whole_file import write_whole
from training.arcface_torch.weights import Weights, trained
from training.config import Config, DataConfig, HeadConfig, ModelConfig, RunConfig
from training.frozen.card import TrainingData
from training.saving import checkpoint
from training.saving.names import BACKBONE, HEAD, OPTIMIZER


def write_imported(
    output: Path,
    weights: Weights,
    *,
    sources: Sequence[str],
    data: Sequence[TrainingData] = (),
    config: Config | None = None,
    steps_per_epoch: int = 0,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write weights as the one checkpoint of a run; returns its folder.

    The run is there as a whole or not at all: what a killed call leaves has another name, and the
    next one clears it away. Call it in a process group of one.

    Args:
        output: the run's folder; where it exists it is empty.
        sources: names of the files that they are from.
        data: that they were trained on, where that is known.
        config: of the run that they are from; None: not known.
        steps_per_epoch: of that run; 0: not known.
        beside: texts of other files of the run's folder, by name.

    Raises:
        CheckpointError, OSError: where it cannot be written.
    """
    config = config or _config(weights, output)
    existed = output.is_dir()
    output.mkdir(parents=True, exist_ok=True)  # where it cannot be, the error names it
    final = output.resolve()  # which a link to an empty folder stands for
    unfinished = final.with_name(f".{final.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        written = checkpoint.write(
            unfinished,
            _state(weights),
            step=weights.step,
            config=config,
            facts=_facts(config) | {"imported from": [*sources]},
            counters={"steps_per_epoch": steps_per_epoch} if steps_per_epoch else {},
            data=[asdict(one) for one in data],
        )
        for name, text in (beside or {}).items():
            write_whole(unfinished / name, text)
        final.rmdir()
        shutil.move(unfinished, final)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        if final.is_dir() and not existed:
            final.rmdir()
        raise
    return output / written.relative_to(unfinished)


def _config(weights: Weights, output: Path) -> Config:
    """What the files say about a run, which is nothing about its data; the rest is at defaults."""
    network, centers = weights.architecture, weights.centers
    known = network.family.options
    changed = {key: value for key, value in network.options.items() if value != known[key]}
    width = changed.pop("width", ModelConfig.width)
    return Config(
        run=RunConfig(output=str(output)),
        data=DataConfig(train="unknown", image_size=network.image_size),
        model=ModelConfig(
            name=network.name,
            embedding_dim=network.embedding_dim,
            width=width,
            options=changed,
        ),
        head=HeadConfig(num_classes=None if centers is None else len(centers)),
    )


def _facts(config: Config) -> dict[str, Any]:
    """What a run that resumes from here must have in common with it; as Trainer names it."""
    facts = {
        "image size": config.data.image_size,
        "model.name": config.model.name,
        "model.embedding_dim": config.model.embedding_dim,
        "model.width": config.model.width,
        **{f"model.options.{key}": value for key, value in config.model.options.items()},
    }
    if config.head.num_classes is not None:
        facts |= {"number of classes": config.head.num_classes, "head.subcenters": 1}
    return facts


def _state(weights: Weights) -> dict[str, Any]:
    """As training.saving.state reads it from a run."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in trained(weights.architecture.create()).items()}
    momentum = weights.momentum or {name: torch.zeros(shape) for name, shape in shapes.items()}
    state: dict[str, Any] = {
        BACKBONE: weights.backbone,
        OPTIMIZER: {"state": {name: {"momentum_buffer": m} for name, m in momentum.items()}},
    }
    if weights.centers is not None:
        velocity = weights.velocity
        state[HEAD] = {
            "centers": weights.centers,
            "velocity": torch.zeros_like(weights.centers) if velocity is None else velocity,
            "steps": torch.tensor(weights.step),
            "nonfinite_steps": torch.tensor(0),
        }
    return state
