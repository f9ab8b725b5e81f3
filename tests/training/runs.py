"""A small run, built, and what its training has changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.training import tiny
from training.config import Config
from training.distributed import World
from training.loop import Trainer
from training.saving.files import Scores
from training.step.precision import choose_precision

SCORES = {"accuracy": 0.5, "accuracy_std": 0.1, "auc": 0.6, "tar_at_far": 0.0, "far": 0.0}


def build(
    config: Config,
    world: World,
    score: Callable[[nn.Module], Scores] = lambda network: {"pairs": SCORES},
) -> Trainer:
    """A run in float32, scored on one set, by default with the same scores every time."""
    precision = choose_precision(world.device, "fp32")
    return Trainer(config, world, precision=precision, sets=[tiny.scored(config, score)])


def state(trainer: Trainer) -> list[torch.Tensor]:
    """Weights, statistics, centers, and the momentum of all."""
    step = trainer.step
    momentum = [s["momentum_buffer"] for s in step.optimizer.state.values()]
    return [*step.backbone.state_dict().values(), *step.head.state_dict().values(), *momentum]
