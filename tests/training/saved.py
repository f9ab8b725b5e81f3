"""A checkpoint of a step, written at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.config import Config
from training.saving.files import CheckpointError, Scores
from training.saving.saver import Saver
from training.step.train_step import TrainStep


def save(
    output: Path,
    *,
    step: int,
    config: Config,
    train_step: TrainStep,
    facts: dict[str, Any] | None = None,
    scores: Scores | None = None,
) -> Path:
    """Write one checkpoint and wait for it; call it on every rank. Returns its folder.

    Raises CheckpointError when it cannot be written.
    """
    saver = Saver(
        output,
        config=config,
        train_step=train_step,
        facts=facts or {},
        compared_by=list(scores or ()),
    )
    path = saver.save(step)
    saver.add_scores(step, scores or {})
    saver.close()
    if saver.fault:
        raise CheckpointError(saver.fault)
    return path
