"""What a run's metrics are judged against, as far as its settings tell it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from facestream import UserError
from heads import OWN_MARGINS, StepContext, create_margin
from training.config import Config

_ROWS = 256  # of which a drawn margin is the mean
_OTHERWISE = ("uniface",)  # losses that are no softmax over the classes


@dataclass(frozen=True)
class Facts:
    """What is known of a run beside its metrics.

    Attributes:
        settings: "section.key" to its value.
        classes: of the head.
        steps_per_epoch: of its loader.
        blind_loss: the loss where all cosines are 0, as of a network that knows nobody: ln C, and
            what scale and margin add to it. None where the loss is of another form.
        start_loss: the same for random embeddings, whose cosines scatter around 0.
    """

    settings: Mapping[str, Any]
    classes: int
    steps_per_epoch: int
    blind_loss: float | None
    start_loss: float | None

    @classmethod
    def of(cls, config: Config, *, classes: int, steps_per_epoch: int) -> Facts:
        """Those of a run with this configuration."""
        return cls(
            settings=config.settings(),
            classes=classes,
            steps_per_epoch=steps_per_epoch,
            blind_loss=_first_loss(config, classes, variance=0.0),
            start_loss=_first_loss(config, classes, variance=1 / config.model.embedding_dim),
        )

    @property
    def warmup_epochs(self) -> float:
        """In which rate or margin grow or the network stays: nothing is judged by them."""
        names = ("optim.warmup_epochs", "optim.freeze_epochs", "head.margin_warmup_epochs")
        return max(float(self.settings[name]) for name in names)


def _first_loss(config: Config, classes: int, *, variance: float) -> float | None:
    """Where the cosines of negatives scatter around 0 with this variance, and targets lie there.

    Of the classes that a step takes, by the margin as it is before the first step.
    """
    head = config.head
    if head.extra_terms or head.expectation_margins or head.loss in _OTHERWISE:
        return None
    if head.loss in OWN_MARGINS:
        return None  # a mistake in the user's own is for the step to show, on all ranks
    taken = classes * head.sample_rate_at(0, num_classes=classes)
    if head.sample_groups or taken < min(classes, config.data.global_batch):
        return None  # how many classes a step takes is up to its batch
    try:
        margin = create_margin(head.loss, **head.loss_args)
    except UserError:  # the user's own without its file, or what another version took
        return None
    context = StepContext(
        factor=torch.ones(()),
        state=torch.tensor(margin.initial_state()),
        key=torch.zeros((), dtype=torch.int64),
        index=torch.arange(_ROWS),
        learned=torch.tensor(margin.initial_learned(taken)),
    )
    norms = torch.full((_ROWS,), math.sqrt(config.model.embedding_dim))  # as BatchNorm leaves them
    target = margin(torch.zeros(_ROWS), norms, context)
    if taken <= 1:
        return 0.0
    penalty = 0.0 if target.penalty is None else target.penalty.mean().item()
    others = math.log(taken - 1) + margin.scale**2 * variance / 2  # of a log-normal sum
    logits = (margin.scale * target.cosine).tolist()
    return penalty + sum(_softplus(others - logit) for logit in logits) / len(logits)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
