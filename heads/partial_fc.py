"""PartialFC: a margin-softmax head whose class centers are split over ranks and sampled per step.

It owns this rank's centers, their momentum and their update (PartialFC, An et al., 2022,
arXiv:2203.15565). The arithmetic is heads.distributed_loss's, with three collectives a step, four
with CurricularFace, UniFace or extra terms; `begin_step` adds one, hard negatives theirs
(heads.neighbors).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from heads import counter
from heads.centers import shard_of
from heads.checks import (
    check,
    check_announced,
    check_batch,
    check_dtype,
    check_head,
    check_micro_batches,
    check_step_inputs,
)
from heads.distributed_loss import Bank, Batch, DistributedLoss, FirstPass
from heads.expectations import NOT_IN_KERNELS, own_rows
from heads.extra_terms import ExtraTerm
from heads.graph import HeadGraphs
from heads.known_gradient import KnownGradient
from heads.learned import LearnedStep, descend, keep_learned
from heads.margins import Margin, StepContext
from heads.micro_batches import MicroBatches
from heads.neighbors.classes import sampling_near
from heads.neighbors.table import HardNegatives, NeighborTable
from heads.passes.backend import Backend, choose_backend
from heads.passes.cosine_softmax import CenterGradient
from heads.passes.workspace import Workspace
from heads.ranks import Ranks
from heads.rows.buffers import (
    ROWS,
    kept_rows,
    narrow_dtypes,
    register_rows,
    restore_dtypes,
    staying_away,
)
from heads.rows.initial import begin_rows
from heads.rows.placement import Placement
from heads.rows.step_rows import StepRows
from heads.rows.stored import Noise, Stored
from heads.sampling import GroupClasses, Sample, sampling_at
from heads.shard_state import keep_shard

# Kinds of draws, each with keys of its own.
_MARGIN, _ROUNDING = 2, 4  # heads.rows.step_rows has 1, heads.centers 3


class _Update(NamedTuple):
    """What a training forward leaves for `step`."""

    sample: Sample
    gradient: CenterGradient
    finite: Tensor  # 0-d bool, the same on every rank
    margin_state: Tensor
    learned: LearnedStep
    moves: Tensor | None  # (G, D) of the expectations


class _Forward(NamedTuple):
    loss: Tensor  # 0-d
    grad: Tensor  # (B, D) d loss / d embeddings, of this rank's rows, in the centers' dtype
    update: _Update


class PartialFC(nn.Module):
    """Class centers with a margin softmax over a sample of them, alone or across ranks.

    Keep it out of DistributedDataParallel, which would give every rank the first one's centers.

    The attributes below are buffers. All but margin_factor are in state_dict, this rank's rows
    alone, and beside them num_classes and first_class, which say whose rows these are:
    load_state_dict refuses those of other classes with a RuntimeError and changes nothing. A state
    without the two, as older versions saved it, is taken as it is.

    Args:
        num_classes: classes of all ranks together. Rank r of w owns the ids from r·ceil(C/w), at
            most ceil(C/w) of them and possibly none: DTensor's Shard(0).
        embedding_dim: D.
        margin: what is done to the target cosine, from heads.margins.
        sample_rate: in [0, 1], the share of a rank's centers that take part in a step; those of the
            batch's own classes always do, and at 0 they alone (see heads.sampling.BatchClasses).
            May be set to another value between steps.
        group_sampling: instead of a rate, contiguous groups of classes (multi-head sampling).
        hard_negatives: where the rate is in (0, 1), how many of a step's classes are neighbors of
            the batch's own.
        subcenters: K centers a class, of which the nearest one counts (Sub-center ArcFace, Deng et
            al., 2020).
        extra_terms: what is added to the margin's loss in training, from heads.extra_terms.
        expectation_margin: LVFace's penalty by expectations of the classes with this margin,
            finite, in training; None for none. See heads.expectations. May be set to another value
            between steps, and to None: then expectations stay as they are.
        columns: names of values that come with each row of a batch, for the margin and the extra
            terms; "weight", in [0, 1], multiplies the row's loss.
        momentum, weight_decay: of the centers' SGD, applied as torch.optim.SGD applies them, but to
            the sampled rows only. Without momentum there is no velocity.
        seed: of the initial centers and of all draws, in [0, 2**63); the same on every rank.
        compute_dtype: what the matrix products read; statistics and sums stay in `dtype`.
        dtype: of statistics, sums and updates, float32 or float64.
        centers_dtype, momentum_dtype: what centers and velocity are kept in: bfloat16,
            float8_e4m3fn or `dtype`, which None stands for. An update rounds to it stochastically,
            by seed, step, class and column; see heads.rows.rounding.
        backend: "triton" for the kernels of heads.passes.kernels, "torch", or "auto": Triton where
            it runs.
        cuda_graph: on a GPU, record the step as a CUDA graph and replay it. Every batch must then
            have the same shape. Learning rate, margin_factor and loss scale may change; another
            sample rate is recorded again, and other attributes are not looked at again.
        place: where centers and velocity are kept: on the "device", in the "host"'s memory, or on a
            "disk". With the latter two only the rows of a step are on the device, with the same
            results; see heads.rows.fetcher and `announce`.
        place_path: for "disk", a folder on it. Its file has no name, and is gone with the head.
        prefetch: >= 0, how many announced steps may be fetched ahead.
        process_group: the ranks that share the classes; the default group where torch.distributed
            is initialized by now, else this process alone.

    Attributes:
        centers: (rows, K·D), drawn from N(0, 0.01²) by global class id, so the start depends on
            neither the world size nor num_classes.
        velocity: (rows, K·D), None without momentum.
        center_scales, velocity_scales: (rows, K) float32, with float8 alone: what the values of a
            sub-center are multiplied by.
        expectations: (rows, D) of the classes, in `dtype`; None without expectation_margin.
        steps: 0-d int64, the number of `step` calls so far, from which each step's draws are made.
        nonfinite_steps: 0-d int64, how many of them changed nothing for that reason.
        margin_state: the margin's running values.
        learned, learned_velocity: (k,) what is learned beside the centers: by the margin, then by
            each extra term.
        margin_factor: 0-d in [0, 1], the share of the margin in force.

    Raises:
        UserError: arguments outside these ranges.
    """

    centers: Tensor
    center_scales: Tensor | None
    velocity: Tensor | None
    velocity_scales: Tensor | None
    expectations: Tensor | None
    steps: Tensor
    nonfinite_steps: Tensor
    margin_state: Tensor
    learned: Tensor
    learned_velocity: Tensor
    margin_factor: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        sample_rate: float = 1.0,
        *,
        group_sampling: GroupClasses | None = None,
        hard_negatives: HardNegatives | None = None,
        subcenters: int = 1,
        extra_terms: Sequence[ExtraTerm] = (),
        expectation_margin: float | None = None,
        columns: Sequence[str] = (),
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        compute_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
        centers_dtype: torch.dtype | None = None,
        momentum_dtype: torch.dtype | None = None,
        backend: str = "auto",
        cuda_graph: bool = True,
        place: str = "device",
        place_path: str | os.PathLike[str] | None = None,
        prefetch: int = 2,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_head(
            num_classes=num_classes,
            embedding_dim=embedding_dim,
            margin=margin,
            extra_terms=extra_terms,
            expectation_margin=expectation_margin,
            columns=columns,
            place=place,
            group_sampling=group_sampling,
            hard_negatives=hard_negatives,
            subcenters=subcenters,
            momentum=momentum,
            weight_decay=weight_decay,
            seed=seed,
            compute_dtype=compute_dtype,
            dtype=dtype,
            kept_in={"centers_dtype": centers_dtype, "momentum_dtype": momentum_dtype},
        )
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim
        self.margin = margin
        self.extra_terms = tuple(extra_terms)
        self.columns = tuple(columns)
        self.subcenters = subcenters
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.ranks = Ranks(process_group)
        self.shard = shard_of(num_classes, rank=self.ranks.rank, world_size=self.ranks.world_size)

        state = torch.tensor(margin.initial_state(), dtype=dtype, device=device)
        self._placement = Placement(place, place_path, state.device)
        check(isinstance(prefetch, int) and prefetch >= 0, "prefetch", prefetch, "an integer >= 0")
        self.place, self.prefetch = place, prefetch
        begin = partial(
            begin_rows,
            self.shard,
            embedding_dim,
            subcenters=subcenters,
            placement=self._placement,
        )
        centers = begin(dtype=centers_dtype or dtype, seed=seed)
        velocity = begin(dtype=momentum_dtype or dtype, seed=None) if momentum else None
        register_rows(self, centers, velocity)
        bank = None
        if expectation_margin is not None:
            bank = state.new_zeros(self.shard.num_local, embedding_dim)
        self.register_buffer("expectations", bank)
        self._expectation_margin = expectation_margin
        for name in ("steps", "nonfinite_steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("margin_state", state, persistent=state.numel() > 0)
        classes = max(1.0, num_classes * (sample_rate or 1.0))
        learned = [margin.initial_learned(classes)]
        learned += [term.initial_learned(embedding_dim) for term in extra_terms]
        keep_learned(self, sum(learned, ()), like=state)
        self.register_buffer("margin_factor", state.new_ones(()), persistent=False)
        self.neighbors: NeighborTable | None = None
        if hard_negatives:
            check(place == "device", "place", place, "device with hard_negatives")
            self.neighbors = NeighborTable(
                hard_negatives, self.shard, self.ranks, self.centers, subcenters=subcenters
            )
        keep_shard(self)
        self.register_load_state_dict_pre_hook(_forget_step)
        self.register_state_dict_pre_hook(_settle)

        self._backend_wanted, self._cuda_graph = backend, cuda_graph
        self._group_sampling = group_sampling
        self._sample_rate = math.nan
        self._start_over()
        self.sample_rate = sample_rate

    def _start_over(self) -> None:
        """Choose backend and graphs for where the centers are, and forget whatever waits."""
        self.backend: Backend = choose_backend(
            self._backend_wanted,
            device=self.device,
            embedding_dim=self.embedding_dim,
            compute_dtype=self.compute_dtype,
            obstacle=None if self.expectations is None else NOT_IN_KERNELS,
        )
        self._arithmetic = DistributedLoss(
            self.margin,
            self.ranks,
            self.shard,
            self.backend,
            subcenters=self.subcenters,
            compute_dtype=self.compute_dtype,
            extra_terms=self.extra_terms,
            columns=self.columns,
        )
        # One for steps of a single forward, one for steps that add several up: a recorded graph
        # needs its memory to stay as it is.
        self._workspaces = {adding: Workspace(self.device) for adding in (False, True)}
        self._micro: MicroBatches | None = None
        self.forget_graphs()
        self._rows = StepRows(
            kept_rows(self),
            self._placement,
            self.shard,
            self.ranks,
            seed=self.seed,
            device=self.device,
            recording=self._graphs.recording,
            prefetch=self.prefetch,
        )
        self._drop_step()

    def _drop_step(self) -> None:
        """Forget the forwards since the last step."""
        self._update: _Update | None = None
        self._adding = False  # whether this step is one of several forwards
        self._forwards = 0

    def forget_step(self) -> None:
        """For when the state is replaced: other centers' gradients must not meet those to come."""
        self._drop_step()
        if self.neighbors:
            self.neighbors.forget_step()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartialFC:
        """Moving to another device or dtype: what is not in a buffer does not come along."""
        _settle(self)
        dtype = fn(self.margin_factor).dtype
        check_dtype(dtype)
        if self._placement.away:
            check(dtype == self.dtype, "dtype", dtype, f"{self.dtype}, where rows are not moved")
            with staying_away(self):
                super()._apply(fn, recurse)
        else:
            narrow = narrow_dtypes(self)
            super()._apply(fn, recurse)
            restore_dtypes(self, narrow)
        self._start_over()
        return self

    def __getattr__(self, name: str) -> Any:
        """Rows that are looked at have all that the steps so far have changed in them."""
        if name in ROWS and "_rows" in self.__dict__:
            _settle(self)
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what is recorded, or waits for `step`."""
        _settle(self)
        state = self.__dict__.copy()
        made_again = (
            "backend",
            "_arithmetic",
            "_workspaces",
            "_micro",
            "_graphs",
        )
        for name in (*made_again, "_update", "_rows"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start_over()

    @property
    def first_class(self) -> int:
        """The global id of this rank's first class."""
        return self.shard.first_class

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic: statistics, sums and updates."""
        return self.margin_factor.dtype

    @property
    def device(self) -> torch.device:
        """Of the arithmetic, of embeddings and labels."""
        return self.margin_factor.device

    @property
    def stored_centers(self) -> Stored:
        return Stored(self.centers, self.center_scales)

    @property
    def sample_rate(self) -> float:
        return self._sample_rate

    @sample_rate.setter
    def sample_rate(self, rate: float) -> None:
        check(0 <= rate <= 1, "sample_rate", rate, "in [0, 1]")
        check(
            self._group_sampling is None or rate == 1, "sample_rate", rate, "1 with group_sampling"
        )
        if rate != self._sample_rate:
            if self._adding or self._update:
                raise RuntimeError("sample_rate changed while gradients wait: call step() first")
            sampling = self._group_sampling or sampling_at(float(rate))
            self.sampling = sampling_near(sampling, self.neighbors)
            self._sample_rate = rate
            self.forget_graphs()

    @property
    def expectation_margin(self) -> float | None:
        return self._expectation_margin

    @expectation_margin.setter
    def expectation_margin(self, margin: float | None) -> None:
        if margin == self._expectation_margin:
            return
        if margin is not None:
            check(math.isfinite(margin), "expectation_margin", margin, "a finite number")
        check(
            self.expectations is not None,
            "expectation_margin",
            margin,
            "None, as the head was built: build it with the margin to come, and set that to None",
        )
        if self._adding or self._update:
            raise RuntimeError("expectation_margin changed while gradients wait: call step() first")
        self._expectation_margin = margin
        self.forget_graphs()

    @property
    def last_sample(self) -> Sample | None:
        """The classes of this rank in the last training forward, until `step`."""
        return self._update.sample if self._update else None

    def announce(self, labels: Tensor, *, ahead: int = 1) -> None:
        """Say which labels a coming step will have, so that its rows are fetched beside this one.

        For centers that are not kept on the device; elsewhere it does nothing. Nobody needs to:
        what was not announced, or turns out otherwise, is fetched when its step comes.

        Args:
            labels: (G,) int64 of the global batch, in the order of the ranks; best on the host.
            ahead: how many steps after the next one, at most `prefetch`.

        Raises:
            ValueError: labels of another shape or dtype.
        """
        check_announced(labels)
        self._rows.announce(labels, self.sampling, step=self.steps, ahead=ahead)

    def begin_step(self, labels: Tensor) -> None:
        """Announce a step of several micro-batches, whose gradients are to be added up.

        This is gradient accumulation. One sample is drawn for all, each forward's loss is divided
        by k, and `step` may follow the last. So the step equals that of one batch k times as large,
        but for margins that look at the whole batch.

        Like a forward, it replaces what waits for `step`, an unfinished step among it.

        Args:
            labels: this rank's (k, B) int64, a row for each of the next k training forwards, which
                must come with these labels in this order (else their loss is NaN).

        Raises:
            ValueError: labels of another shape or dtype, or an extra term that has to see the whole
                batch.
        """
        check_micro_batches(labels, self.extra_terms, self.expectation_margin)
        self._drop_step()
        self._rows.fetch(labels, self.sampling, step=self.steps)
        sample = self._sample(self.ranks.all_gather(labels.contiguous()).flatten())
        if self._micro is None or not self._micro.fits(labels, sample):
            self._graphs.renew(adding=True)
            classes = self.shard.num_local if sample.rows is None else len(sample.rows)
            self._micro = MicroBatches(
                labels,
                sample,
                rows=classes * self.subcenters,
                embedding_dim=self.embedding_dim,
                state=self.margin_state,
                learned=self.learned,
            )
        self._micro.restart(labels, sample, self.margin_state)
        self._adding = True

    def forward(self, embeddings: Tensor, labels: Tensor, columns: Tensor | None = None) -> Tensor:
        """The loss of the global batch: a 0-d tensor, the same on every rank.

        In training the gradients of the sampled centers are computed here and wait for `step`;
        another forward before that replaces them, unless `begin_step` announced it.
        `loss.backward()` then only hands on the exact gradient of the global mean with respect to
        this rank's embeddings: what the loss is multiplied by reaches these, but not the centers.
        DDP averages gradients over ranks: multiply the loss by world_size before backward.

        In evaluation mode the loss is the margin's over all centers and carries no gradient.

        Args:
            embeddings: this rank's (B, D), of any floating dtype; they are normalized here, in
                `dtype`. B and the dtype must be the same on every rank.
            labels: (B,) int64 global class ids in [0, num_classes). A label outside makes the loss
                and its gradients NaN, on every rank, and the step is skipped; check the data set
                first.
            columns: (B, k) float32 where the head has columns, in their order; else None. NaN where
                a value is not known.

        Raises:
            ValueError: wrong shapes or dtypes.
        """
        check_batch(
            embeddings,
            labels,
            columns,
            names=self.columns,
            device=self.device,
            embedding_dim=self.embedding_dim,
        )
        given = (embeddings.detach(), labels, *(() if columns is None else (columns,)))
        # The precision is compute_dtype's to choose, not autocast's.
        with torch.autocast(embeddings.device.type, enabled=False):
            if not self.training:
                return self._eval_forward(*given)
            with torch.no_grad():
                result = self._compute(*given)
            return KnownGradient.apply(embeddings, result.loss, result.grad)

    @torch.no_grad()
    def step(self, lr: float | Tensor, skip: Tensor | None = None) -> None:
        """Momentum SGD on the sampled rows, from the gradients of the forwards since the last step.

        Every rank must give the same lr and skip.

        Args:
            lr: a number >= 0 or a 0-d tensor.
            skip: 0-d bool tensor; where it is true nothing changes, bit for bit, and the same where
                the loss or any rank's center gradients are non-finite. That is decided on the
                device, without waiting for it.

        Raises:
            RuntimeError: without the training forwards that it needs.
            UserError: an lr or a skip of another kind.
        """
        expected = self._micro.count if self._micro and self._adding else 1
        if self._update is None or self._forwards < expected:
            raise RuntimeError(
                f"step() found the gradients of {self._forwards} of {expected} forwards in "
                "training mode: call the head first, or begin_step() to start this step again"
            )
        check_step_inputs(lr, skip)
        # A CPU takes the rate in any dtype; GPUs read it as float32.
        dtype = self.dtype if self.device.type == "cpu" else torch.float32
        if isinstance(lr, Tensor):
            lr = lr.to(self.device, dtype)
        else:  # filled in on the device, without a copy from the host
            lr = torch.full((), lr, dtype=dtype, device=self.device)
        finite = self._update.finite
        apply = finite & torch.isfinite(lr)
        if skip is not None:
            apply = apply & ~skip
        if self.neighbors:
            self.neighbors.advance(self.steps, self.centers)
        self._graphs.update(self._update_centers, lr, apply, adding=self._adding)
        self._rows.write_back()
        self.steps += 1
        self.nonfinite_steps += ~finite
        self._drop_step()

    def margin_key(self) -> Tensor:
        """0-d int64: the counter key of this step's drawn margins."""
        return counter.step_key(self.seed, self.steps, _MARGIN)

    def _train_forward(
        self, embeddings: Tensor, labels: Tensor, columns: Tensor | None = None
    ) -> _Forward:
        """The loss, and every gradient."""
        if self._micro and self._adding:
            return self._add_forward(self._micro, embeddings, labels, columns)
        batch = self._arithmetic.gather(embeddings, labels, columns, self.dtype)
        sample = self._sample(batch.labels)
        index = torch.arange(len(batch.labels), device=labels.device)
        first = self._first_pass(batch, sample, self.margin_state, index)
        gradients = self._arithmetic.second_pass(batch, first, share=1.0, into=None)
        update = _Update(
            sample,
            gradients.centers,
            gradients.finite,
            first.margin_state,
            gradients.learned,
            first.bank and first.bank.moves,
        )
        return _Forward(gradients.loss, gradients.embeddings, update)

    def _add_forward(
        self, micro: MicroBatches, embeddings: Tensor, labels: Tensor, columns: Tensor | None
    ) -> _Forward:
        """The same for one of several forwards, whose sums so far are in `micro`."""
        # Poisoned before they are gathered, so that every rank hears of it.
        embeddings = torch.where(micro.announced(labels), embeddings, math.nan)
        batch = self._arithmetic.gather(embeddings, labels, columns, self.dtype)
        index = micro.index(self.ranks.world_size)
        sample, share = micro.sample(index), 1 / micro.count
        first = self._first_pass(batch, sample, micro.margin_state, index)
        gradients = self._arithmetic.second_pass(batch, first, share=share, into=micro.gradient)
        micro.finish(gradients.finite, first.margin_state, gradients.learned)
        update = _Update(
            sample,
            gradients.centers,
            micro.finite,
            micro.margin_state,
            micro.learned,
            first.bank and first.bank.moves,
        )
        return _Forward(gradients.loss, gradients.embeddings, update)

    def _first_pass(self, batch: Batch, sample: Sample, state: Tensor, index: Tensor) -> FirstPass:
        context = self._context(state, index, batch)
        workspace = self._workspaces[self._adding]
        centers, _, sample = self._rows.at_hand(kept_rows(self), sample)
        bank = None
        if self.expectation_margin is not None:
            assert self.expectations is not None
            room = workspace.room("expectations")
            bank = Bank(self.expectations, self.expectation_margin, room)
        return self._arithmetic.first_pass(centers, batch, sample, context, workspace, bank)

    @torch.no_grad()
    def _eval_forward(
        self, embeddings: Tensor, labels: Tensor, columns: Tensor | None = None
    ) -> Tensor:
        batch = self._arithmetic.gather(embeddings, labels, columns, self.dtype)
        index = torch.arange(len(batch.labels), device=labels.device)
        context = self._context(self.margin_state, index, batch)
        return self._arithmetic.evaluate(self.stored_centers, batch, context)

    def _context(self, state: Tensor, index: Tensor, batch: Batch) -> StepContext:
        key, learned = self.margin_key(), self.learned
        return StepContext(self.margin_factor, state, key, index, learned, batch.columns)

    def _sample(self, labels: Tensor) -> Sample:
        """The classes of this step, for the labels of the global batch."""
        return self._rows.sample(labels, self.sampling, step=self.steps)

    def _update_centers(self, lr: Tensor, apply: Tensor) -> None:
        """The last forward's update, where `apply` (0-d bool) holds."""
        update = self._update
        assert update is not None
        noise = None
        if narrow_dtypes(self):
            key = counter.step_key(self.seed, self.steps, _ROUNDING)
            noise = Noise(key, update.sample.classes(self.shard))
        self.backend.update_rows(
            *self._rows.at_hand(kept_rows(self), update.sample),
            update.gradient,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            apply=apply,
            noise=noise,
            workspace=self._workspaces[self._adding],
        )
        if update.moves is not None and len(self.expectations):
            moves = torch.where(apply, update.moves, -0.0)
            self.expectations.index_add_(0, own_rows(update.sample), moves)
        torch.where(apply, update.margin_state, self.margin_state, out=self.margin_state)
        descend(self, update.learned, lr=lr, apply=apply)

    def _compute(self, embeddings: Tensor, labels: Tensor, *columns: Tensor) -> _Forward:
        """`_train_forward`, replayed from a graph where there is one; counts towards `step`."""
        micro = self._micro if self._adding else None
        if micro:
            micro.check(labels, forwards=self._forwards)
        else:
            self._rows.fetch(labels, self.sampling, step=self.steps)
        result = self._graphs.forward(
            self._train_forward,
            embeddings,
            labels,
            *columns,
            adding=self._adding,
            undo=self._rewind_micro_batches,
        )
        if self._graphs.recording:
            # The graph writes it again at the next forward.
            result = result._replace(grad=result.grad.clone())
        self._update = result.update
        self._forwards += 1
        return result

    def _rewind_micro_batches(self) -> None:
        if self._micro and self._adding:
            self._micro.rewind(self.margin_state)

    def forget_graphs(self) -> None:
        """Let go of the recorded CUDA graphs; a step after that records again.

        Do so before the process group is destroyed: NCCL waits for graphs that use it.
        """
        self._graphs: HeadGraphs[_Forward] = HeadGraphs(
            self.ranks, self.device, wanted=self._cuda_graph
        )


def _settle(head: PartialFC, *_: Any) -> None:
    """Have all that was changed in the kept rows."""
    head._rows.settle()


def _forget_step(head: PartialFC, *_: Any) -> None:
    _settle(head)
    head.forget_step()
