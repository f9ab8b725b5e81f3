"""What follows when steps stay non-finite: back to a checkpoint with smaller steps, or a diagnosis.

A step that is not finite changes nothing (training/step/train_step.py), so one alone is only lost.
Many in a row mean that the weights have come to a place where none is finite: other steps from an
earlier checkpoint may pass it by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from facestream import UserError
from pipeline.collection import Collection
from pipeline.dali_loader import Batch
from training.distributed import from_main, of_all_ranks, together
from training.saving import files
from training.saving.resume import newest_whole
from training.step.train_step import StepResult

MOST = 2  # times that a run goes back

_RECORDS = 8  # of a rank's batch that a diagnosis names


class DivergedError(UserError):
    """A run whose steps stay non-finite; the text is the diagnosis."""


@dataclass
class Rollback:
    """Whether to go back, and how far; the same on all ranks, whose steps are skipped together."""

    limit: int  # run.max_nonfinite: skipped steps in a row; 0: any number
    times: int = 0  # that the run has gone back; to be saved with it

    @property
    def factor(self) -> float:
        """For the learning rate from now on, and for a loss scale that was just restored."""
        return 0.5**self.times

    def due(self, *, skipped_in_a_row: float, loss_scale: float) -> bool:
        """Whether skipped steps are too many.

        While losses are still scaled up, it may be the scale alone, which falls with every skip.
        """
        return 0 < self.limit <= skipped_in_a_row and loss_scale <= 1

    def target(self, saved: Iterable[int], *, first_skipped: int) -> int | None:
        """The newest of the saved steps from which a step would have counted, to go back to.

        One saved since has the very weights of which nothing comes. None where there is no such
        step, or where going back has not helped.
        """
        useful = [step for step in saved if step < first_skipped]
        return max(useful) if useful and self.times < MOST else None

    def choose(
        self, output: Path, *, step: int, skipped: int, seen: Callable[[], list[BadStep]]
    ) -> Path:
        """The checkpoint to go back to after `skipped` steps in a row, up to `step`, that were not
        finite; call it on every rank.

        Args:
            seen: gathers the last of them; see `gather_bad_steps`.

        Raises:
            DivergedError: on every rank, where there is none or it has been tried enough.
        """
        own = together(lambda: files.checkpoints(output))
        saved = {files.step_of(path): path for path in from_main(own)}
        target = self.target(saved, first_skipped=step - skipped)
        if target is None:
            raise DivergedError(
                diagnose(seen(), step=step, skipped_in_a_row=skipped, times=self.times)
            )
        useful = [saved[older] for older in sorted(saved) if older <= target]
        return newest_whole(useful)


@dataclass(frozen=True)
class BadStep:
    """What one rank has seen in its last step."""

    rank: int
    loss: float  # of all ranks
    gradient_norm: float  # of all ranks
    embedding_norm: float  # of this rank's batch
    loss_scale: float
    records: tuple[str, ...]  # where the first of its batch lie


def gather_bad_steps(result: StepResult, batch: Batch, records: Collection) -> list[BadStep]:
    """The last step as each rank saw it, by rank; call it on every rank. Waits for the device."""
    mine = BadStep(
        rank=dist.get_rank(),
        loss=result.loss.item(),
        gradient_norm=result.gradient_norm.item(),
        embedding_norm=result.embedding_norm.item(),
        loss_scale=result.loss_scale.item(),
        records=tuple(records.describe(int(i)) for i in batch.records[:_RECORDS]),
    )
    return of_all_ranks(mine)


def diagnose(steps: Sequence[BadStep], *, step: int, skipped_in_a_row: int, times: int) -> str:
    """Why nothing is finite any more, as far as the last step tells, and what to try."""
    forward = [seen for seen in steps if not math.isfinite(seen.embedding_norm)]
    if forward:
        ranks = ", ".join(str(seen.rank) for seen in forward)
        finding = f"embeddings are not finite on rank {ranks}: the backbone's forward overflows"
        remedy = "step.precision=bf16 or fp32, a lower optim.lr, or look at the images named below"
    elif not all(math.isfinite(seen.loss) for seen in steps):
        finding = "embeddings are finite, the head's loss is not"
        remedy = "a lower head.lr, or other head.loss_args"
    else:
        finding = "the loss is finite, the gradient is not: the backward overflows"
        remedy = "step.precision=bf16 or fp32, or a lower optim.lr"
    lines = [
        f"step {step}: {skipped_in_a_row} steps in a row were not finite and changed nothing, "
        f"after going back {times} times",
        f"{finding}. Try {remedy}",
    ]
    for seen in steps:
        lines.append(
            f"rank {seen.rank}: loss {seen.loss:.4g}, gradient norm {seen.gradient_norm:.4g}, "
            f"mean embedding norm {seen.embedding_norm:.4g}, loss scale {seen.loss_scale:g}"
        )
    for seen in forward or steps:
        lines += [f"rank {seen.rank} read {record}" for record in seen.records]
    return "\n".join(lines)
