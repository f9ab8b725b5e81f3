"""A head's steps: forwards that find the gradients of the centers, and the update by these.

What waits between the two is here. What lasts is the head's, and given at each call.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from heads import counter
from heads.checks import check_step_inputs
from heads.distributed_loss import Bank, Batch, BatchGradients, DistributedLoss, FirstPass
from heads.expectations import own_rows
from heads.graph import HeadGraphs
from heads.head_state import HeadState
from heads.learned import LearnedStep, descend
from heads.margins import StepContext
from heads.micro_batches import MicroBatches
from heads.neighbors.table import NeighborTable
from heads.passes.cosine_softmax import CenterGradient
from heads.passes.workspace import Workspace
from heads.rows.step_rows import StepRows
from heads.rows.stored import NARROW, Noise
from heads.sampling import Sample, Sampling

# Kinds of draws, each with keys of its own.
_MARGIN, _ROUNDING = 2, 4  # heads.rows.step_rows has 1, heads.centers 3


class Update(NamedTuple):
    """What a forward leaves for the update."""

    sample: Sample
    gradient: CenterGradient
    finite: Tensor  # 0-d bool, the same on every rank
    margin_state: Tensor
    learned: LearnedStep
    moves: Tensor | None  # (G, D) of the expectations


class Forward(NamedTuple):
    """What a forward finds."""

    loss: Tensor  # 0-d
    grad: Tensor  # (B, D) d loss / d embeddings, of this rank's rows, in the arithmetic's dtype
    update: Update


class HeadStep:
    """Computes step after step with one sampling, on one device.

    Args:
        arithmetic: how each computes.
        rows: where centers and velocity come from and go to.
        graphs: what is recorded of the steps.
        sampling: which classes take part.
        expectation_margin: of LVFace's penalty; None: there is none.
        neighbors: the table that each step helps to build.
        seed: of all draws.
        momentum, weight_decay: of the centers' SGD.
    """

    def __init__(
        self,
        arithmetic: DistributedLoss,
        rows: StepRows,
        graphs: HeadGraphs[Forward],
        sampling: Sampling,
        *,
        expectation_margin: float | None,
        neighbors: NeighborTable | None,
        seed: int,
        momentum: float,
        weight_decay: float,
        device: torch.device,
    ) -> None:
        self.rows, self.graphs = rows, graphs
        self.arithmetic, self.sampling = arithmetic, sampling
        self._expectation_margin, self._neighbors = expectation_margin, neighbors
        self._seed, self._momentum, self._weight_decay = seed, momentum, weight_decay
        # One for steps of a single forward, one for steps that add several up: a recorded graph
        # needs its memory to stay as it is.
        self.workspaces = {adding: Workspace(device) for adding in (False, True)}
        self._micro: MicroBatches | None = None
        self.forget()

    def forget(self) -> None:
        """Drop the forwards since the last update."""
        self._update: Update | None = None
        self._adding = False  # whether this step is one of several forwards
        self._forwards = 0

    @property
    def waits(self) -> bool:
        """Whether forwards are announced or their gradients wait for the update."""
        return self._adding or self._update is not None

    @property
    def sample(self) -> Sample | None:
        """That of the last forward, until the update."""
        return self._update.sample if self._update else None

    def announce(self, labels: Tensor, *, step: Tensor, ahead: int) -> None:
        """As StepRows.announce."""
        self.rows.announce(labels, self.sampling, step=step, ahead=ahead)

    def begin(self, state: HeadState, labels: Tensor) -> None:
        """As PartialFC.begin_step: begin a step of k forwards, with the rows of (k, B) labels."""
        self.forget()
        arithmetic = self.arithmetic
        self.rows.fetch(labels, self.sampling, step=state.steps)
        gathered = arithmetic.ranks.all_gather(labels.contiguous()).flatten()
        sample = self._draw(state, gathered)
        if self._micro is None or not self._micro.fits(labels, sample):
            self.graphs.renew(adding=True)
            classes = arithmetic.shard.num_local if sample.rows is None else len(sample.rows)
            self._micro = MicroBatches(
                labels,
                sample,
                rows=classes * arithmetic.subcenters,
                embedding_dim=state.rows["centers"].shape[1] // arithmetic.subcenters,
                state=state.margin_state,
                learned=state.learned,
            )
        self._micro.restart(labels, sample, state.margin_state)
        self._adding = True

    def forward(
        self, state: HeadState, embeddings: Tensor, labels: Tensor, *columns: Tensor
    ) -> Forward:
        """The loss and every gradient, replayed from a graph where there is one."""
        micro = self._micro if self._adding else None
        if micro:
            micro.check(labels, forwards=self._forwards)
            compute = partial(self._add_forward, state, micro)
        else:
            self.rows.fetch(labels, self.sampling, step=state.steps)
            compute = partial(self._whole_forward, state)
        result = self.graphs.forward(
            compute,
            embeddings,
            labels,
            *columns,
            adding=self._adding,
            undo=lambda: micro.rewind(state.margin_state) if micro else None,
        )
        if self.graphs.recording:
            # The graph writes it again at the next forward.
            result = result._replace(grad=result.grad.clone())
        self._update = result.update
        self._forwards += 1
        return result

    def evaluate(
        self, state: HeadState, embeddings: Tensor, labels: Tensor, *columns: Tensor
    ) -> Tensor:
        """0-d, the loss over all classes."""
        self.rows.settle()  # it reads the kept rows, into which the last step may still be written
        batch = self.arithmetic.gather(embeddings, labels, *columns, dtype=state.dtype)
        index = torch.arange(len(batch.labels), device=labels.device)
        context = self._context(state, state.margin_state, index, batch)
        return self.arithmetic.evaluate(state.centers, batch, context)

    def update(self, state: HeadState, lr: float | Tensor, skip: Tensor | None) -> None:
        """As PartialFC.step, with the same errors: move what is trained, and count the step."""
        expected = self._micro.count if self._micro and self._adding else 1
        if self._update is None or self._forwards < expected:
            raise RuntimeError(
                f"step() found the gradients of {self._forwards} of {expected} forwards in "
                "training mode: call the head first, or begin_step() to start this step again"
            )
        check_step_inputs(lr, skip)
        device = state.steps.device
        # A CPU takes the rate in any dtype; GPUs read it as float32.
        dtype = state.dtype if device.type == "cpu" else torch.float32
        if isinstance(lr, Tensor):
            lr = lr.to(device, dtype)
        else:  # filled in on the device, without a copy from the host
            lr = torch.full((), lr, dtype=dtype, device=device)
        finite = self._update.finite
        apply = finite & torch.isfinite(lr)
        if skip is not None:
            apply = apply & ~skip
        if self._neighbors:
            self._neighbors.advance(state.steps, state.centers.values)
        self.graphs.update(partial(self._move, state, self._update), lr, apply, adding=self._adding)
        self.rows.write_back()
        state.steps.add_(1)
        state.nonfinite_steps.add_(~finite)
        self.forget()

    def _whole_forward(
        self, state: HeadState, embeddings: Tensor, labels: Tensor, *columns: Tensor
    ) -> Forward:
        """That of a step of its own."""
        batch = self.arithmetic.gather(embeddings, labels, *columns, dtype=state.dtype)
        sample = self._draw(state, batch.labels)
        index = torch.arange(len(batch.labels), device=labels.device)
        first = self._first_pass(state, batch, sample, state.margin_state, index)
        found = self.arithmetic.second_pass(batch, first, share=1.0, into=None)
        return _forward(sample, first, found)

    def _add_forward(
        self,
        state: HeadState,
        micro: MicroBatches,
        embeddings: Tensor,
        labels: Tensor,
        *columns: Tensor,
    ) -> Forward:
        """One of several, whose sums so far are in `micro`."""
        # Poisoned before they are gathered, so that every rank hears of it.
        embeddings = torch.where(micro.announced(labels), embeddings, math.nan)
        batch = self.arithmetic.gather(embeddings, labels, *columns, dtype=state.dtype)
        index = micro.index(self.arithmetic.ranks.world_size)
        sample, share = micro.sample(index), 1 / micro.count
        first = self._first_pass(state, batch, sample, micro.margin_state, index)
        found = self.arithmetic.second_pass(batch, first, share=share, into=micro.gradient)
        micro.finish(found.finite, first.margin_state, found.learned)
        result = _forward(sample, first, found)
        summed = result.update._replace(
            finite=micro.finite, margin_state=micro.margin_state, learned=micro.learned
        )
        return result._replace(update=summed)

    def _first_pass(
        self, state: HeadState, batch: Batch, sample: Sample, margin_state: Tensor, index: Tensor
    ) -> FirstPass:
        context = self._context(state, margin_state, index, batch)
        workspace = self.workspaces[self._adding]
        centers, _, sample = self.rows.at_hand(state.rows, sample)
        bank = None
        if self._expectation_margin is not None:
            assert state.expectations is not None
            room = workspace.room("expectations")
            bank = Bank(state.expectations, self._expectation_margin, room)
        return self.arithmetic.first_pass(centers, batch, sample, context, workspace, bank)

    def _context(
        self, state: HeadState, margin_state: Tensor, index: Tensor, batch: Batch
    ) -> StepContext:
        key = margin_key(self._seed, state.steps)
        return StepContext(
            state.margin_factor, margin_state, key, index, state.learned, batch.columns
        )

    def _draw(self, state: HeadState, labels: Tensor) -> Sample:
        """The classes of this step, for the labels of the global batch."""
        return self.rows.sample(labels, self.sampling, step=state.steps)

    def _move(self, state: HeadState, update: Update, lr: Tensor, apply: Tensor) -> None:
        """An update, where `apply` (0-d bool) holds."""
        noise = None
        if any(tensor.dtype in NARROW for tensor in state.rows.values()):
            key = counter.step_key(self._seed, state.steps, _ROUNDING)
            noise = Noise(key, update.sample.classes(self.arithmetic.shard))
        self.arithmetic.backend.update_rows(
            *self.rows.at_hand(state.rows, update.sample),
            update.gradient,
            lr=lr,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            apply=apply,
            noise=noise,
            workspace=self.workspaces[self._adding],
        )
        if update.moves is not None and len(state.expectations):
            moves = torch.where(apply, update.moves, -0.0)
            state.expectations.index_add_(0, own_rows(update.sample), moves)
        torch.where(apply, update.margin_state, state.margin_state, out=state.margin_state)
        descend(
            state.learned,
            state.learned_velocity,
            update.learned,
            lr=lr,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            apply=apply,
        )


def _forward(sample: Sample, first: FirstPass, found: BatchGradients) -> Forward:
    moves = first.bank and first.bank.moves
    update = Update(sample, found.centers, found.finite, first.margin_state, found.learned, moves)
    return Forward(found.loss, found.embeddings, update)


def margin_key(seed: int, step: Tensor) -> Tensor:
    """0-d int64: the counter key of a step's drawn margins; step: 0-d int64."""
    return counter.step_key(seed, step, _MARGIN)
