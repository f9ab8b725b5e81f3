"""PartialFC: a margin-softmax head whose class centers are split over ranks and sampled per step.

It owns this rank's centers and their momentum (PartialFC, An et al., 2022, arXiv:2203.15565).
heads.head_step takes the steps, with the arithmetic of heads.distributed_loss. That makes three
collectives a step, and one more each for CurricularFace, for UniFace or extra terms, for
`begin_step`, and for very many ranks (heads.statistics); hard negatives have theirs
(heads.neighbors).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from heads.assembly import assemble_step
from heads.centers import shard_of
from heads.checks import (
    check_announced,
    check_batch,
    check_dtype,
    check_expectation_margin,
    check_head,
    check_micro_batches,
    check_sample_rate,
)
from heads.extra_terms import ExtraTerm
from heads.head_state import HeadState, begin_state
from heads.known_gradient import KnownGradient
from heads.margins import Margin
from heads.neighbors.table import HardNegatives, NeighborTable
from heads.passes.backend import Backend
from heads.ranks import Ranks
from heads.rows.buffers import ROWS, rows_kept
from heads.rows.placement import Placement
from heads.rows.stored import Stored
from heads.sampling import GroupClasses, Sample, Sampling


class PartialFC(nn.Module):
    """Class centers with a margin softmax over a sample of them, alone or across ranks.

    Keep it out of DistributedDataParallel, which would give every rank the first one's centers.

    Its buffers are those of heads.head_state. All but margin_factor are in state_dict, this rank's
    rows alone, and beside them num_classes and first_class, which say whose rows these are:
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
            sample_rate=sample_rate,
            group_sampling=group_sampling,
            hard_negatives=hard_negatives,
            subcenters=subcenters,
            extra_terms=extra_terms,
            expectation_margin=expectation_margin,
            columns=columns,
            momentum=momentum,
            weight_decay=weight_decay,
            seed=seed,
            compute_dtype=compute_dtype,
            dtype=dtype,
            kept_in={"centers_dtype": centers_dtype, "momentum_dtype": momentum_dtype},
            place=place,
            prefetch=prefetch,
        )
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.margin, self.extra_terms, self.columns = margin, tuple(extra_terms), tuple(columns)
        self.subcenters, self.seed, self.compute_dtype = subcenters, seed, compute_dtype
        self.momentum, self.weight_decay = momentum, weight_decay
        self.prefetch = prefetch
        self.ranks = Ranks(process_group)
        self.shard = shard_of(num_classes, rank=self.ranks.rank, world_size=self.ranks.world_size)
        self._placement = Placement(place, place_path, torch.empty(0, device=device).device)
        begin_state(
            self,
            self._placement,
            dtype=dtype,
            centers_dtype=centers_dtype,
            momentum_dtype=momentum_dtype,
            expectations=expectation_margin is not None,
            classes=max(1.0, num_classes * (sample_rate or 1.0)),
        )
        self.neighbors: NeighborTable | None = None
        if hard_negatives:
            self.neighbors = NeighborTable(
                hard_negatives, self.shard, self.ranks, self.centers, subcenters=subcenters
            )
        self.register_load_state_dict_pre_hook(_forget_step)
        self.register_state_dict_pre_hook(_settle)
        self._backend_wanted, self._cuda_graph = backend, cuda_graph
        self._group_sampling = group_sampling
        self._sample_rate, self._expectation_margin = sample_rate, expectation_margin
        self._start_over()

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
        self._head_step.announce(labels, step=self.steps, ahead=ahead)

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
        self._head_step.begin(HeadState.of(self), labels)

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
        state = HeadState.of(self)
        given = (embeddings.detach(), labels, *(() if columns is None else (columns,)))
        # The precision is compute_dtype's to choose, not autocast's.
        with torch.autocast(embeddings.device.type, enabled=False):
            with torch.no_grad():
                if not self.training:
                    return self._head_step.evaluate(state, *given)
                found = self._head_step.forward(state, *given)
            return KnownGradient.apply(embeddings, found.loss, found.grad)

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
        self._head_step.update(HeadState.of(self), lr, skip)

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
    def place(self) -> str:
        """Where centers and velocity are kept; those of a copy are on no disk."""
        return self._placement.place

    @property
    def stored_centers(self) -> Stored:
        """As they are kept."""
        return Stored(self.centers, self.center_scales)

    @property
    def sampling(self) -> Sampling:
        """How the classes of a step are chosen."""
        return self._head_step.sampling

    @property
    def backend(self) -> Backend:
        """What computes the passes over the classes, and why."""
        return self._head_step.arithmetic.backend

    @property
    def last_sample(self) -> Sample | None:
        """The classes of this rank in the last training forward, until `step`."""
        return self._head_step.sample

    @property
    def sample_rate(self) -> float:
        return self._sample_rate

    @sample_rate.setter
    def sample_rate(self, rate: float) -> None:
        near = self.neighbors is not None
        check_sample_rate(rate, self._group_sampling, hard_negatives=near)
        if rate != self._sample_rate:
            self._change("sample_rate", rate)

    @property
    def expectation_margin(self) -> float | None:
        return self._expectation_margin

    @expectation_margin.setter
    def expectation_margin(self, margin: float | None) -> None:
        if margin != self._expectation_margin:
            check_expectation_margin(margin, kept=self.expectations is not None)
            self._change("expectation_margin", margin)

    def _change(self, name: str, value: float | None) -> None:
        if self._head_step.waits:
            raise RuntimeError(f"{name} changed while gradients wait: call step() first")
        _settle(self)
        setattr(self, f"_{name}", value)
        self._start_over()

    def forget_step(self) -> None:
        """For when the state is replaced: other centers' gradients must not meet those to come."""
        self._head_step.forget()
        if self.neighbors:
            self.neighbors.forget_step()

    def forget_graphs(self) -> None:
        """Let go of the recorded CUDA graphs; a step after that records again.

        Do so before the process group is destroyed: NCCL waits for graphs that use it.
        """
        self._head_step.graphs.forget()

    def _start_over(self) -> None:
        """For other centers, another place or other settings."""
        self._head_step = assemble_step(
            self,
            self._placement,
            group_sampling=self._group_sampling,
            backend=self._backend_wanted,
            cuda_graph=self._cuda_graph,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PartialFC:
        """Moving to another device or dtype: what waits does not come along."""
        _settle(self)
        check_dtype(
            fn(self.margin_factor).dtype, fixed=self.dtype if self._placement.away else None
        )
        with rows_kept(self, away=self._placement.away):
            super()._apply(fn, recurse)
        self._start_over()
        return self

    def __getattr__(self, name: str) -> Any:
        """Rows that are looked at have all that the steps so far have changed in them."""
        if name in ROWS and "_head_step" in self.__dict__:
            _settle(self)
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what is recorded, or waits for `step`."""
        _settle(self)
        return {name: part for name, part in self.__dict__.items() if name != "_head_step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start_over()


def _settle(head: PartialFC, *_: Any) -> None:
    """Have all that was changed in the kept rows."""
    head._head_step.rows.settle()


def _forget_step(head: PartialFC, *_: Any) -> None:
    _settle(head)
    head.forget_step()
