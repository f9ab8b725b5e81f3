"""The loss of the global batch over every rank's classes, and its gradients.

What is done with them, when, and in which memory is heads.head_step's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heads import expectations
from heads.extra_terms import ExtraTerm, TermInput, add_up
from heads.learned import LearnedStep
from heads.margins import NO_COLUMNS, WEIGHT, Margin, StepContext, Target
from heads.negatives import Negatives, Threshold
from heads.passes.backend import Backend
from heads.passes.cosine_softmax import CenterGradient, Terms, inverse_norms
from heads.passes.workspace import Workspace
from heads.ranks import Ranks
from heads.rows.stored import Stored, read_rows
from heads.sampling import AllClasses, Sample, Shard
from heads.statistics import Statistics, over_all_ranks
from heads.unit import reciprocal, through_normalization

# Classes of a rank that evaluation looks at together.
_EVALUATED_AT_ONCE = 1 << 14


class Batch(NamedTuple):
    """The global batch, in the order of the ranks."""

    norms: Tensor  # (G,) lengths of the embeddings
    unit: Tensor  # (G, D) embeddings of unit length
    labels: Tensor  # (G,) int64 global class ids
    columns: Mapping[str, Tensor] = NO_COLUMNS  # (G,) each


class Loss(NamedTuple):
    """The loss of one global batch.

    Attributes:
        mean: 0-d, of the global batch.
        terms: for the second pass over the classes.
        norm_grad: (G,) d mean / d feature norm, or None where the margin leaves the norms alone.
    """

    mean: Tensor
    terms: Terms
    norm_grad: Tensor | None


class BankPass(NamedTuple):
    """The same over the expectations of the classes, where there is a penalty."""

    softmax: Any
    terms: Terms
    moves: Tensor  # (G, D), of heads.expectations


class FirstPass(NamedTuple):
    """What is known once the ranks have exchanged their sums."""

    loss: Loss
    softmax: Any  # for the second pass; None where there will be none
    margin_state: Tensor  # the margin's running values after the step
    cosine: Tensor  # (G,) to the own class, before the margin
    largest: Tensor | None  # (G,) cosine to another class, where an extra term uses it
    learned: Tensor  # (k,) the head's before the step
    bank: BankPass | None = None


class BatchGradients(NamedTuple):
    """The mean loss, extra terms added, and its gradients, multiplied by the share asked for.

    Attributes:
        loss: 0-d.
        embeddings: (B, D) d loss / d this rank's embeddings.
        finite: 0-d bool, alike on all ranks.
        learned: alike on all ranks.
    """

    loss: Tensor
    embeddings: Tensor
    centers: CenterGradient
    finite: Tensor
    learned: LearnedStep


class Bank(NamedTuple):
    """rows: (n, D) expectations of this rank's classes. workspace: for the passes over them."""

    rows: Tensor
    margin: float
    workspace: Workspace


@dataclass(frozen=True)
class DistributedLoss:
    """How a head computes; nothing here changes while it trains."""

    margin: Margin
    ranks: Ranks
    shard: Shard
    backend: Backend
    subcenters: int
    compute_dtype: torch.dtype
    extra_terms: tuple[ExtraTerm, ...] = ()
    columns: tuple[str, ...] = ()

    def gather(
        self,
        embeddings: Tensor,
        labels: Tensor,
        columns: Tensor | None = None,
        *,
        dtype: torch.dtype,
    ) -> Batch:
        """The batches of all ranks, normalized in `dtype`: one collective (all_gather)."""
        rows, labels, values = self.ranks.gather_batch(embeddings, labels, columns)
        rows = rows.to(dtype)
        norms = torch.linalg.vector_norm(rows, dim=1)
        named = NO_COLUMNS
        if values is not None:
            named = dict(zip(self.columns, values.to(dtype).unbind(1)))
        return Batch(norms, rows * reciprocal(norms).unsqueeze(1), labels, named)

    def first_pass(
        self,
        centers: Stored,
        batch: Batch,
        sample: Sample,
        context: StepContext,
        workspace: Workspace,
        bank: Bank | None = None,
    ) -> FirstPass:
        """The loss over the sampled classes: the collectives of `over_all_ranks`."""

        largest = None
        if any(term.uses_largest_negative for term in self.extra_terms):
            largest = batch.norms.new_full(batch.norms.shape, -math.inf)

        def sums(negatives: Negatives) -> tuple[Tensor, Any]:
            softmax = self._softmax(centers, batch, sample, negatives, workspace)
            return softmax.logsumexp(largest), softmax

        return self._loss(centers, batch, sample, context, sums, largest, bank)

    def evaluate(self, centers: Stored, batch: Batch, context: StepContext) -> Tensor:
        """0-d, the mean loss over all classes, a piece at a time, wherever they are kept."""
        device = batch.unit.device
        positions = AllClasses().draw(batch.labels, self.shard, context.key).positions

        def sums(negatives: Negatives) -> tuple[Tensor, None]:
            total = batch.norms.new_full(batch.norms.shape, -math.inf)
            # Not the training's: gradients may be waiting there for their step.
            workspace = Workspace(device)
            for start in range(0, self.shard.num_local, _EVALUATED_AT_ONCE):
                stop = start + _EVALUATED_AT_ONCE
                rows = centers.part(slice(start, stop)).map(lambda tensor: tensor.to(device))
                inside = (positions >= start) & (positions < stop)
                piece = Sample(None, torch.where(inside, positions - start, -1))
                softmax = self._softmax(rows, batch, piece, negatives, workspace)
                total = torch.logaddexp(total, softmax.logsumexp())
            return total, None

        own, slots = centers, positions
        if self.shard.num_local:
            own = centers.taken(positions.clamp_min(0), device)
            slots = torch.arange(len(positions), device=device).where(positions >= 0, -1)
        return self._loss(own, batch, Sample(None, slots), context, sums).loss.mean

    def second_pass(
        self, batch: Batch, first: FirstPass, *, share: float, into: CenterGradient | None
    ) -> BatchGradients:
        """Gradients of `share` times the mean: one collective, two where more is learned or added.

        into: as in ChunkedSoftmax.
        """
        found = first.softmax.gradients(first.loss.terms, share=share, into=into)
        if first.bank is not None:
            penalty = first.bank.softmax.gradients(first.bank.terms, share=share, into=None)
            found = found._replace(embeddings=found.embeddings + penalty.embeddings)
        # Non-finite center gradients on one rank must stop every rank's step. They ride along with
        # the embeddings' gradients instead of in a collective of their own.
        finite = found.finite & torch.isfinite(found.embeddings.sum())
        grad = self.ranks.reduce_scatter(torch.where(finite, found.embeddings, math.nan))  # (B, D)
        finite = torch.isfinite(first.loss.mean) & torch.isfinite(grad.sum())

        mine = slice(self.ranks.rank * len(grad), (self.ranks.rank + 1) * len(grad))
        unit = batch.unit[mine]
        grad = through_normalization(grad, unit, batch.norms[mine])
        if first.loss.norm_grad is not None:
            grad += share * first.loss.norm_grad[mine].unsqueeze(1) * unit

        loss = first.loss.mean if share == 1 else share * first.loss.mean
        if not self.extra_terms and found.threshold is None:
            return BatchGradients(loss, grad, found.centers, finite, LearnedStep.of_nothing(grad))
        given = TermInput(
            norms=batch.norms,
            unit=batch.unit,
            labels=batch.labels,
            mine=mine,
            target=first.cosine,
            largest_negative=first.largest,
            learned=first.learned,
            columns=batch.columns,
        )
        threshold = grad.new_empty(0) if found.threshold is None else found.threshold.view(1)
        extra = add_up(self.extra_terms, given, threshold, share=share, ranks=self.ranks)
        if self.extra_terms:
            loss, finite = loss + extra.loss, finite & torch.isfinite(extra.loss)
            grad = torch.where(finite, grad + extra.embeddings, math.nan)
        return BatchGradients(loss, grad, found.centers, finite, extra.learned)

    def _loss(
        self,
        centers: Stored,
        batch: Batch,
        sample: Sample,
        context: StepContext,
        sums: Callable[[Negatives], tuple[Tensor, Any]],
        largest: Tensor | None = None,
        bank: Bank | None = None,
    ) -> FirstPass:
        """`sums` gives (G,) log-sum-exps over this rank's negatives, and the passes, if any.

        largest: (G,) that `sums` fills with the largest cosine of this rank's negatives.
        """
        margin = self.margin
        cosine, subcenter = target_cosines(batch.unit, centers, sample, self.subcenters)
        targets_first = margin.uses_target_for_negatives
        if targets_first:
            # CurricularFace alone: its negatives wait for the target cosines. One collective more.
            cosine = self._known(self.ranks.total(cosine), batch.labels)
        negatives = margin.negatives(cosine, context)
        negative, softmax = sums(negatives)
        mine = Statistics(negative, cosine=None if targets_first else cosine, largest=largest)
        if bank is not None:
            rows = Stored(bank.rows, None)
            over_bank = self._softmax(
                rows, batch, sample, Negatives(), bank.workspace, subcenters=1
            )
            mine = mine._replace(
                of_bank=over_bank.logsumexp(),
                own=expectations.own_cosines(batch.unit, bank.rows, sample),
            )
        every = over_all_ranks(mine, self.ranks)
        if every.cosine is not None:
            cosine = self._known(every.cosine, batch.labels)
        target = margin(cosine, batch.norms, context)
        passed = other = None
        if bank is not None:
            assert every.of_bank is not None
            assert every.own is not None
            other, terms = expectations.bank_terms(
                every.of_bank,
                every.own,
                every.negative - margin.scale * target.cosine,
                scale=margin.scale,
                margin=bank.margin,
            )
            moves = expectations.moves(batch.unit, batch.labels, bank.rows, sample)
            passed = BankPass(over_bank, terms, moves)
        loss = combine(
            every.negative,
            target,
            subcenter,
            margin.scale,
            negatives.threshold,
            other,
            weight=batch.columns.get(WEIGHT),
        )
        state = context.state if target.state is None else target.state
        return FirstPass(loss, softmax, state, cosine, every.largest, context.learned, passed)

    def _known(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """(G,) cosines, NaN where a label is no class."""
        return torch.where((labels >= 0) & (labels < self.shard.num_classes), cosine, math.nan)

    def _softmax(
        self,
        centers: Stored,
        batch: Batch,
        sample: Sample,
        negatives: Negatives,
        workspace: Workspace,
        *,
        subcenters: int | None = None,
    ) -> Any:
        return self.backend.softmax(
            batch.unit,
            centers,
            sample,
            negatives,
            scale=self.margin.scale,
            subcenters=subcenters or self.subcenters,
            compute_dtype=self.compute_dtype,
            workspace=workspace,
        )


def target_cosines(
    embeddings: Tensor, centers: Stored, sample: Sample, subcenters: int
) -> tuple[Tensor, Tensor]:
    """(G,) cosine of each row to its own class's nearest sub-center, and int64 which that is.

    Both results are 0 where the class is not on this rank. In the embeddings' precision always: the
    margin acts on this number, and a rounded one would be off most where the loss is steepest.

    Args:
        embeddings: (G, D) of unit length.
        centers: of n rows.
    """
    positions = sample.positions
    if centers.values.shape[0] == 0:
        return embeddings.new_zeros(positions.shape), torch.zeros_like(positions)
    index = positions.clamp_min(0)
    if sample.rows is not None:
        index = sample.rows.index_select(0, index)
    own = read_rows(
        centers, index, embeddings.dtype, workspace=Workspace(embeddings.device), name="own"
    ).unflatten(1, (subcenters, -1))  # (G, K, D)
    lengths = inverse_norms(own.flatten(0, 1)).view(-1, subcenters)
    cosine, which = ((embeddings.unsqueeze(1) * own).sum(2) * lengths).max(1)
    here = positions >= 0
    return torch.where(here, cosine, 0.0), torch.where(here, which, 0)


def combine(
    negative: Tensor,
    target: Target,
    subcenter: Tensor,
    scale: float,
    threshold: Threshold | None = None,
    other: Tensor | None = None,
    *,
    weight: Tensor | None = None,
) -> Loss:
    """The loss of the global batch, from sums over every rank's classes; all inputs (G,).

    Where there is a penalty, it is added to the row's cross-entropy.

    Args:
        negative: log-sum-exp of the logits of all classes but the row's own.
        target: the margined cosine to the row's own class.
        threshold: that of the negatives. The target's rival is it then, not the negatives.
        other: the distance of another part, of heads.expectations, that shares the loss's
            logarithm; not with a threshold.
        weight: in [0, 1], what each row's loss is multiplied by; not with another part.
    """
    target_logit = scale * target.cosine
    # -log p(target) and p(target) - 1 through the logit's distance: no cancellation as p → 1.
    distance = (negative if threshold is None else threshold.value) - target_logit
    losses = torch.logaddexp(distance, torch.zeros_like(distance))
    pull = -torch.sigmoid(distance)  # d loss / d target logit
    if other is not None:
        losses, slope = expectations.beside(distance, other)
        pull, log_partition = -slope, target_logit + losses
    elif threshold is None:
        log_partition = torch.logaddexp(negative, target_logit)
    else:
        losses = losses + threshold.weight * negative.exp()
        # NaN for a row without a loss, so that its gradients are NaN too.
        log_partition = torch.where(
            losses.isfinite(), -math.log(threshold.weight), losses.new_full((), math.nan)
        )
    if weight is not None:
        # exp(logit - log_partition) is then the weighted probability, at most 1 as before.
        log_partition, pull = log_partition - weight.log(), weight * pull
    assert target.slope is not None, "a margin's call fills it in"
    terms = Terms(log_partition, pull * target.slope, subcenter)
    norm_grad = None
    if target.norm_slope is not None:
        norm_grad = scale * pull * target.norm_slope
    if target.penalty is not None:
        losses, slope = losses + target.penalty, target.penalty_slope
        assert slope is not None, "a penalty comes with its slope"
        slope = slope if weight is None else weight * slope
        norm_grad = slope + (0 if norm_grad is None else norm_grad)
    if weight is not None:
        losses = weight * losses
    if norm_grad is not None:
        norm_grad = norm_grad / negative.shape[0]
    return Loss(losses.mean(), terms, norm_grad)
