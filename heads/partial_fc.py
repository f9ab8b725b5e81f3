"""PartialFC: a margin-softmax head whose class centers are split over ranks and sampled per step.

It owns this rank's centers, their momentum and their update (PartialFC, An et al., 2022,
arXiv:2203.15565). There are three collectives a step, all in `PartialFC._train_forward`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from heads import counter
from heads.backend import Backend, choose_backend
from heads.centers import initial_centers, shard_of
from heads.checks import check, check_batch, check_micro_batches, check_step_inputs
from heads.cosine_softmax import CenterGradient
from heads.graph import Captured
from heads.loss import Loss, combine, target_cosines
from heads.margins import Margin, StepContext
from heads.micro_batches import MicroBatches
from heads.ranks import Ranks
from heads.sampling import AllClasses, HeadClasses, RandomClasses, Sample
from heads.workspace import Workspace

# Kinds of draws, each with keys of its own.
_SAMPLING, _MARGIN = 1, 2


class _Batch(NamedTuple):
    """The global batch, in the order of the ranks."""

    norms: Tensor  # (G,) lengths of the embeddings
    unit: Tensor  # (G, D) embeddings of unit length, in the centers' dtype
    labels: Tensor  # (G,) int64 global class ids
    index: Tensor  # (G,) int64 place in the step's global batch, micro-batches put together


class _Update(NamedTuple):
    """What a training forward leaves for `step`."""

    sample: Sample
    gradient: CenterGradient
    finite: Tensor  # 0-d bool, the same on every rank
    margin_state: Tensor


class _Forward(NamedTuple):
    loss: Tensor  # 0-d
    grad: Tensor  # (B, D) d loss / d embeddings, of this rank's rows, in the centers' dtype
    update: _Update


class _Graphs(NamedTuple):
    forward: Captured[_Forward]
    apply: Captured[None]


class PartialFC(nn.Module):
    """Class centers with a margin softmax over a sample of them, alone or across ranks.

    num_classes: classes of all ranks together. Rank r of w owns the ids from r·ceil(C/w), at most
        ceil(C/w) of them and possibly none: DTensor's Shard(0).
    embedding_dim: D.
    margin: what is done to the target cosine, from heads.margins.
    sample_rate: in (0, 1], the share of a rank's centers that take part in a step; those of the
        batch's own classes always do. May be set to another value between steps.
    head_sampling: instead of a rate, multi-head sampling over contiguous classes.
    subcenters: K centers a class, of which the nearest one counts (Sub-center ArcFace, Deng et al.,
        2020).
    momentum, weight_decay: of the centers' SGD, applied as torch.optim.SGD applies them, but to the
        sampled rows only.
    seed: of the initial centers and of all draws, in [0, 2**63); the same on every rank.
    compute_dtype: what the matrix products read; statistics and sums stay in `dtype`.
    dtype: of the centers and their velocity, float32 or float64.
    backend: "triton" for the kernels of heads.kernels, "torch", or "auto": Triton where it runs.
    cuda_graph: on a GPU, record the step as a CUDA graph and replay it. Every batch must then have
        the same shape. Rate, margin and loss scale may change, the sample rate records anew.
    process_group: the ranks that share the classes; the default group where torch.distributed is
        initialized, else this process alone.

    Buffers: centers (rows, K·D), drawn from N(0, 0.01²) by global class id, so the start depends on
    neither the world size nor num_classes; velocity (rows, K·D); steps, 0-d int64, the number of
    `step` calls so far, from which each step's draws are made; nonfinite_steps, 0-d int64, how many
    of them changed nothing for that reason; margin_state, the margin's running values;
    margin_factor, 0-d in [0, 1], the share of the margin in force, which is not in state_dict. The
    others are, this rank's rows alone.

    Raises ValueError for arguments outside these ranges.
    """

    centers: Tensor
    velocity: Tensor
    steps: Tensor
    nonfinite_steps: Tensor
    margin_state: Tensor
    margin_factor: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        sample_rate: float = 1.0,
        *,
        head_sampling: HeadClasses | None = None,
        subcenters: int = 1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        compute_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        cuda_graph: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check(num_classes >= 1, "num_classes", num_classes, "at least 1")
        check(embedding_dim >= 1, "embedding_dim", embedding_dim, "at least 1")
        check(isinstance(margin, Margin), "margin", margin, "a Margin, such as ArcFace()")
        check(subcenters >= 1, "subcenters", subcenters, "at least 1")
        check(0 <= momentum < 1, "momentum", momentum, "in [0, 1)")
        check(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "finite and at least 0")
        check(0 <= seed < 1 << 63, "seed", seed, "in [0, 2**63)")
        check(dtype in (torch.float32, torch.float64), "dtype", dtype, "float32 or float64")
        check(
            compute_dtype in (torch.float16, torch.bfloat16, torch.float32, dtype),
            "compute_dtype",
            compute_dtype,
            f"float16, bfloat16, float32 or the centers' {dtype}",
        )
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim
        self.margin = margin
        self.subcenters = subcenters
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.ranks = Ranks(process_group)
        self.shard = shard_of(num_classes, rank=self.ranks.rank, world_size=self.ranks.world_size)

        width = subcenters * embedding_dim
        first, count = self.shard.first_class, self.shard.num_local
        centers = initial_centers(first, count, width, seed=seed).to(device=device, dtype=dtype)
        self.register_buffer("centers", centers)
        self.register_buffer("velocity", torch.zeros_like(centers))
        for name in ("steps", "nonfinite_steps"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))
        state = torch.tensor(margin.initial_state(), dtype=dtype, device=device)
        self.register_buffer("margin_state", state, persistent=state.numel() > 0)
        self.register_buffer("margin_factor", centers.new_ones(()), persistent=False)

        self.backend: Backend = choose_backend(
            backend, device=centers.device, embedding_dim=embedding_dim, compute_dtype=compute_dtype
        )
        self._cuda_graph = cuda_graph and centers.device.type != "cpu"
        self._graphs: dict[bool, _Graphs] = {}
        self._workspace = Workspace(centers.device)
        self._micro: MicroBatches | None = None
        self._adding = False  # whether this step is one of several forwards
        self._forwards = 0  # since the last step
        self._update: _Update | None = None
        self._head_sampling = head_sampling
        self._sample_rate = math.nan
        self.sample_rate = sample_rate

    @property
    def sample_rate(self) -> float:
        return self._sample_rate

    @sample_rate.setter
    def sample_rate(self, rate: float) -> None:
        check(0 < rate <= 1, "sample_rate", rate, "in (0, 1]")
        check(self._head_sampling is None or rate == 1, "sample_rate", rate, "1 with head_sampling")
        if rate == self._sample_rate:
            return
        self._sample_rate = rate
        everything = AllClasses() if rate == 1 else RandomClasses(rate)
        self.sampling = self._head_sampling or everything
        self._forget_graphs()

    @property
    def last_sample(self) -> Sample | None:
        """The classes of this rank in the last training forward, until `step`."""
        return self._update.sample if self._update else None

    def begin_step(self, labels: Tensor) -> None:
        """Announce a step of several micro-batches, whose gradients are to be added up.

        labels: this rank's (k, B) int64, a row for each of the next k training forwards, which must
        come with these labels in this order (else their loss is NaN). One sample is drawn for all,
        each forward's loss is divided by k, and `step` may follow the last. So the step equals that
        of one batch k times as large, but for margins that look at the whole batch.

        Raises ValueError for labels of another shape or dtype, RuntimeError amid such a step.
        """
        if self._adding:
            raise RuntimeError("begin_step() found a step that is not finished: call step() first")
        check_micro_batches(labels)
        sample = self._draw(self.ranks.all_gather(labels.contiguous()).flatten())
        if self._micro is None or not self._micro.fits(labels, sample):
            self._forget_graphs()
            self._micro = MicroBatches(
                labels,
                sample,
                centers=self.centers,
                subcenters=self.subcenters,
                state=self.margin_state,
            )
        self._micro.restart(labels, sample, self.margin_state)
        self._adding, self._forwards = True, 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of the global batch: a 0-d tensor, the same on every rank.

        embeddings: this rank's (B, D), of any floating dtype; they are normalized here, in `dtype`.
            B and the dtype must be the same on every rank.
        labels: (B,) int64 global class ids in [0, num_classes). A label outside makes the loss and
            its gradients NaN, on every rank, and the step is skipped; check the data set first.

        In training the gradients of the sampled centers are computed here and wait for `step`;
        another forward before that replaces them, unless `begin_step` announced it.
        `loss.backward()` then only hands on the exact gradient of the global mean with respect to
        this rank's embeddings. DDP averages gradients over ranks: multiply the loss by world_size
        before backward.

        In evaluation mode the loss is over all centers and carries no gradient.

        Raises ValueError for wrong shapes or dtypes.
        """
        check_batch(embeddings, labels, centers=self.centers, embedding_dim=self.embedding_dim)
        # The precision is compute_dtype's to choose, not autocast's.
        with torch.autocast(embeddings.device.type, enabled=False):
            if not self.training:
                return self._eval_forward(embeddings, labels)
            with torch.no_grad():
                result = self._compute(embeddings.detach(), labels)
            return _HeadLoss.apply(embeddings, result.loss, result.grad)

    @torch.no_grad()
    def step(self, lr: float | Tensor, skip: Tensor | None = None) -> None:
        """Momentum SGD on the sampled rows, from the gradients of the forwards since the last step.

        lr: a number >= 0 or a 0-d tensor. skip: 0-d bool tensor; where it is true nothing changes,
        bit for bit, and the same where the loss or any rank's center gradients are non-finite. That
        is decided on the device, without waiting for it. Every rank must give the same lr and skip.

        Raises RuntimeError without the training forwards that it needs, ValueError for an lr or a
        skip of another kind.
        """
        expected = self._micro.count if self._micro and self._adding else 1
        if self._update is None or self._forwards < expected:
            raise RuntimeError(
                f"step() found the gradients of {self._forwards} of {expected} forwards: call the "
                "head in training mode first"
            )
        check_step_inputs(lr, skip)
        if not isinstance(lr, Tensor):
            lr = self.centers.new_full((), lr)
        finite = self._update.finite
        apply = finite if skip is None else finite & ~skip
        if not self._graphs:
            self._apply(lr, apply)
        else:
            graph = self._graphs[self._adding].apply
            if not graph.ready:
                graph.record(lr, torch.zeros_like(apply))
            graph(lr, apply)
        self.steps += 1
        self.nonfinite_steps += ~finite
        self._update, self._adding, self._forwards = None, False, 0

    def margin_key(self) -> Tensor:
        """0-d int64: the counter key of this step's drawn margins."""
        return counter.step_key(self.seed, self.steps, _MARGIN)

    def _train_forward(self, embeddings: Tensor, labels: Tensor) -> _Forward:
        """The loss, and every gradient."""
        micro = self._micro if self._adding else None
        batch = self._gather_batch(embeddings, labels, micro)
        sample = micro.sample(batch.index) if micro else self._draw(batch.labels)
        state = micro.margin_state if micro else self.margin_state
        loss, softmax, state = self._loss(batch, sample, state, self._workspace)
        share = 1 / micro.count if micro else 1.0
        into = micro.gradient if micro else None
        gradients = softmax.gradients(loss.terms, share=share, into=into)
        # Non-finite center gradients on one rank must stop every rank's step. They ride along with
        # the embeddings' gradients instead of in a collective of their own.
        finite = gradients.finite & torch.isfinite(gradients.embeddings.sum())
        shares = torch.where(finite, gradients.embeddings, math.nan)  # (G, D)
        grad = self.ranks.reduce_scatter(shares)  # (B, D)
        finite = torch.isfinite(loss.mean) & torch.isfinite(grad.sum())
        if micro:
            micro.finish(finite, state)
            finite, state = micro.finite, micro.margin_state

        # Through the normalization: (g - (g·e) e) / |x|, with e = x / |x|.
        mine = slice(self.ranks.rank * labels.shape[0], (self.ranks.rank + 1) * labels.shape[0])
        unit, norms = batch.unit[mine], batch.norms[mine].unsqueeze(1)
        along = (grad * unit).sum(1, keepdim=True)  # (B, 1)
        grad = (grad - along * unit) * _reciprocal(norms)
        if loss.norm_grad is not None:
            grad += share * loss.norm_grad[mine].unsqueeze(1) * unit
        update = _Update(sample, gradients.centers, finite, state)
        return _Forward(share * loss.mean, grad, update)

    @torch.no_grad()
    def _eval_forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        batch = self._gather_batch(embeddings, labels, None)
        sample = AllClasses().draw(batch.labels, self.shard, self.steps)
        # Not the training's workspace: gradients may be waiting there for `step`.
        workspace = Workspace(self.centers.device)
        return self._loss(batch, sample, self.margin_state, workspace)[0].mean

    def _gather_batch(
        self, embeddings: Tensor, labels: Tensor, micro: MicroBatches | None
    ) -> _Batch:
        if micro:
            # Poisoned before they are gathered, so that every rank hears of it.
            embeddings = torch.where(micro.announced(labels), embeddings, math.nan)
        rows, everyones = self.ranks.gather_batch(embeddings, labels)
        rows = rows.to(self.centers.dtype)
        if micro:
            index = micro.index(self.ranks.world_size)
        else:
            index = torch.arange(everyones.shape[0], device=labels.device)
        norms = torch.linalg.vector_norm(rows, dim=1)
        return _Batch(norms, rows * _reciprocal(norms).unsqueeze(1), everyones, index)

    def _draw(self, labels: Tensor) -> Sample:
        key = counter.step_key(self.seed, self.steps, _SAMPLING)
        return self.sampling.draw(labels, self.shard, key)

    def _loss(
        self, batch: _Batch, sample: Sample, state: Tensor, workspace: Workspace
    ) -> tuple[Loss, Any, Tensor]:
        """The loss, the passes over the classes, and the margin's running values after it."""
        margin = self.margin
        context = StepContext(self.margin_factor, state, self.margin_key(), batch.index)
        cosine, subcenter = target_cosines(batch.unit, self.centers, sample, self.subcenters)
        if margin.uses_target_for_negatives:
            # CurricularFace alone: its negatives wait for the target cosines. A fourth collective.
            cosine = self._known(self.ranks.all_gather(cosine).sum(0), batch.labels)
        negatives = margin.negatives(cosine, context)
        softmax = self.backend.softmax(
            batch.unit,
            self.centers,
            sample,
            negatives,
            scale=margin.scale,
            subcenters=self.subcenters,
            compute_dtype=self.compute_dtype,
            workspace=workspace,
        )
        sums = softmax.logsumexp()
        if margin.uses_target_for_negatives:
            negative = self.ranks.all_gather(sums)
        else:
            negative, cosines = self.ranks.all_gather(torch.stack((sums, cosine))).unbind(1)
            cosine = self._known(cosines.sum(0), batch.labels)  # only the owner's is not 0
        target = margin(cosine, batch.norms, context)
        loss = combine(negative.logsumexp(0), target, subcenter, margin.scale)
        return loss, softmax, state if target.state is None else target.state

    def _known(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """(G,) cosines, NaN where a label is no class."""
        return torch.where((labels >= 0) & (labels < self.num_classes), cosine, math.nan)

    def _apply(self, lr: Tensor, apply: Tensor) -> None:
        """The last forward's update, where `apply` (0-d bool) holds."""
        update = self._update
        assert update is not None
        self.backend.update_rows(
            self.centers,
            self.velocity,
            update.sample,
            update.gradient,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            apply=apply,
            workspace=self._workspace,
        )
        torch.where(apply, update.margin_state, self.margin_state, out=self.margin_state)

    def _compute(self, embeddings: Tensor, labels: Tensor) -> _Forward:
        """`_train_forward`, replayed from a graph where there is one; counts towards `step`."""
        if self._adding and self._micro and self._forwards == self._micro.count:
            raise RuntimeError(
                f"a forward after {self._forwards} of {self._micro.count} that begin_step() "
                "announced: call step() first"
            )
        if not self._graphs:
            result = self._train_forward(embeddings, labels)
        else:
            graph = self._graphs[self._adding].forward
            if not graph.ready:
                graph.record(embeddings, labels)
                if self._micro and self._adding:
                    self._micro.rewind(self.margin_state)
            result = graph(embeddings, labels)
            # The graph writes it again at the next forward.
            result = result._replace(grad=result.grad.clone())
        self._update = result.update
        self._forwards += 1
        return result

    def _forget_graphs(self) -> None:
        """Record anew at the next step: shapes change."""
        if self._cuda_graph:
            # One pair for steps of a single forward, one for steps that add several up.
            self._graphs = {adding: self._new_graphs() for adding in (False, True)}

    def _new_graphs(self) -> _Graphs:
        obstacle = None
        if self.ranks.backend not in (None, "nccl"):
            obstacle = f"{self.ranks.backend} cannot record its collectives, nccl can"
        device = self.centers.device
        return _Graphs(
            Captured(self._train_forward, device=device, obstacle=obstacle),
            Captured(self._apply, device=device, obstacle=obstacle),
        )


class _HeadLoss(torch.autograd.Function):
    """The loss, whose every gradient was computed on the way forward; backward only scales."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        ctx.dtype = embeddings.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        # Scaled before it is narrowed, so that a loss scale lifts it over float16's underflow.
        return (loss_grad * grad).to(ctx.dtype), None, None


def _reciprocal(norms: Tensor) -> Tensor:
    """1 / norms, and 0 for 0."""
    return torch.where(norms < torch.finfo(norms.dtype).tiny, 0.0, 1 / norms)
