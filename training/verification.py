"""The states of a run that are scored: on which sets when, and how they are called."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from evaluation.features import NonFiniteEmbeddingsError
from evaluation.result import Model
from evaluation.scoring import Scored
from models import fold_batch_norm
from models.input import Input
from models.lora import merge_low_rank
from pipeline.named_path import as_text
from training.assembly import Assembly
from training.frozen.model import digest_of_weights
from training.reporting.forecast import Forecast
from training.saving.files import folder_of
from training.scored_sets import ScoredSet
from training.step.backbone import unwrapped


class Verification:
    """Scores the backbone of a run as it is.

    Args:
        run: whose backbone.
        sets: on these.
        forecast: is given how long each of them takes.
    """

    def __init__(self, run: Assembly, sets: Sequence[ScoredSet], forecast: Forecast) -> None:
        self._run, self._sets, self._forecast = run, sets, forecast
        self._total_steps = run.plan.schedule.total_steps

    def due(self, step: int) -> tuple[str, ...]:
        """The sets that the state after so many steps is scored on, by name."""
        per_epoch, epochs = self._run.plan.loader.steps_per_epoch, self._run.plan.config.run.epochs
        return tuple(
            one.name
            for one in self._sets
            if one.due(step, steps_per_epoch=per_epoch, epochs=epochs)
        )

    def score(self, step: int, names: Collection[str]) -> Iterator[tuple[str, Scored]]:
        """Score the present state, after so many steps, on sets of these names, one by one.

        All ranks must take all of them. A network that cannot be judged is scored on no more sets.
        """
        # A copy, which is not compiled: batches of other sizes would be compiled again.
        network = fold_batch_norm(
            unwrapped(self._run.step.backbone), run_on=self._run.plan.world.device
        )
        for one in self._sets:
            if one.name in names:
                try:
                    with self._forecast.scoring(one.name):
                        found = one.score(network, step >= self._total_steps)
                except NonFiniteEmbeddingsError as error:  # an untrained deep one in float16
                    if self._run.plan.world.is_main:
                        logging.warning("verification left out: %s", error)
                    return
                yield one.name, found

    def model(self, step: int) -> Model:
        """The present state, after so many steps, as results show it: RUN@STEP opens it."""
        plan = self._run.plan
        config, output = plan.config, Path(plan.config.run.output)
        network = unwrapped(self._run.step.backbone)
        return Model(
            name=f"{as_text(output.resolve().name)}@{step}",
            source=as_text(str(folder_of(output, step))),
            digest=digest_of_weights(merge_low_rank(copy.deepcopy(network))),
            network=config.model.name,
            embedding_dim=config.model.embedding_dim,
            image_size=config.data.image_size,
            input=str(Input(size=config.data.image_size)),
            precision=str(plan.precision.compute_dtype).removeprefix("torch."),
            sample_rate=self._run.step.head.sample_rate,
        )
