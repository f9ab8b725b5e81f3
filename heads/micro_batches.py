"""A step made of several forwards, whose center gradients are added up: gradient accumulation."""

from __future__ import annotations

import torch
from torch import Tensor

from heads.learned import LearnedStep
from heads.passes.cosine_softmax import CenterGradient
from heads.sampling import Sample


class MicroBatches:
    """What k forwards share; every tensor stays where it is, so that recorded graphs find it.

    Args:
        labels: (k, B) int64 of this rank.
        sample: drawn for all forwards of all ranks together, its positions in the order of
            (rank, forward, row).
        rows: the sub-centers that take part.
        state, learned: the head's; the former of the gradients' dtype and device.
    """

    def __init__(
        self,
        labels: Tensor,
        sample: Sample,
        *,
        rows: int,
        embedding_dim: int,
        state: Tensor,
        learned: Tensor,
    ) -> None:
        self._labels = labels.clone()
        self._sample = Sample(*(None if part is None else part.clone() for part in sample))
        self.gradient = CenterGradient(
            state.new_zeros(rows, embedding_dim), state.new_zeros(rows, 1), state.new_zeros(rows, 1)
        )
        self.finite = torch.ones((), dtype=torch.bool, device=labels.device)
        self.margin_state = state.clone()
        self.learned = LearnedStep(torch.zeros_like(learned), torch.zeros_like(learned))
        self._done = torch.zeros((), dtype=torch.int64, device=labels.device)

    @property
    def count(self) -> int:
        return self._labels.shape[0]

    def fits(self, labels: Tensor, sample: Sample) -> bool:
        """Whether another step's labels and sample go into the same memory."""
        shapes = [part if part is None else part.shape for part in sample]
        held = [part if part is None else part.shape for part in self._sample]
        return labels.shape == self._labels.shape and shapes == held

    def restart(self, labels: Tensor, sample: Sample, state: Tensor) -> None:
        """Take the next step's labels and sample, and forget the sums."""
        for held, new in zip((self._labels, *self._sample), (labels, *sample)):
            if held is not None:
                held.copy_(new)
        self.rewind(state)

    def rewind(self, state: Tensor) -> None:
        """Back to before the first forward."""
        for part in (self.gradient.product, self.gradient.drift, self.learned.gradient, self._done):
            part.zero_()
        self.finite.fill_(True)
        self.margin_state.copy_(state)

    def check(self, labels: Tensor, *, forwards: int) -> None:
        """Raises RuntimeError for a forward too many, ValueError for labels of another number."""
        count, batch = self._labels.shape
        if forwards == count:
            raise RuntimeError(
                f"a forward after {forwards} of {count} that begin_step() announced: call step() "
                "first"
            )
        if labels.shape[0] != batch:
            raise ValueError(
                f"{labels.shape[0]} labels, expected the {batch} that begin_step() announced"
            )

    def index(self, world_size: int) -> Tensor:
        """(G,) int64: where the rows of this forward stand in (rank, forward, row) order."""
        count, batch = self._labels.shape
        device = self._labels.device
        ranks = torch.arange(world_size, device=device).unsqueeze(1)
        return ((ranks * count + self._done) * batch + torch.arange(batch, device=device)).flatten()

    def announced(self, labels: Tensor) -> Tensor:
        """0-d bool: whether these (B,) are the labels that were announced for this forward."""
        return (self._labels.index_select(0, self._done.view(1)).squeeze(0) == labels).all()

    def sample(self, index: Tensor) -> Sample:
        """The step's sample as the rows at `index` see it."""
        groups = self._sample.row_groups
        return self._sample._replace(
            positions=self._sample.positions[index],
            row_groups=None if groups is None else groups[index],
        )

    def finish(self, finite: Tensor, state: Tensor, learned: LearnedStep) -> None:
        """A forward is done: whether all was finite, the margin's values after it, and what is to
        be learned."""
        self.finite &= finite
        self.learned.gradient.add_(learned.gradient)
        self.learned.start.copy_(learned.start)
        self.margin_state.copy_(state)
        # Around: rehearsals of a recording call this more often than there are forwards.
        self._done.add_(1).remainder_(self.count)
