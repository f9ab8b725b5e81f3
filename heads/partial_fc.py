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

from heads.cosine_softmax import (
    Classes,
    LossTerms,
    chunk_size,
    combine,
    inverse_norms,
    softmax_gradients,
    softmax_statistics,
)
from heads.margins import Margin
from heads.sampling import sample_rows, sample_size

_INIT_STD = 0.01
_INIT_BLOCK = 1024
# The update goes through the rows in pieces of this size, so that its few passes find them in the
# cache and its temporaries stay small.
_UPDATE_BYTES = 4 << 20


class _Pending(NamedTuple):
    """What `forward` leaves for `step`, beside the gradients in their reused buffer."""

    rows: Tensor | None  # (S,) rows of the gradients, None for all
    finite: Tensor  # 0-d bool, the same on every rank


class _Batch(NamedTuple):
    """The global batch, in the order of the ranks."""

    embeddings: Tensor  # (G, D) in the centers' dtype
    unit: Tensor  # (G, D), the same normalized
    labels: Tensor  # (G,) int64 global class ids
    local: Tensor  # (G,) int64 rows of this rank, -1 where another rank owns the class


class PartialFC(nn.Module):
    """Class centers with a margin softmax over a sample of them, alone or across ranks.

    num_classes: classes of all ranks together. Rank r of w owns the ids from r·ceil(C/w), at most
        ceil(C/w) of them and possibly none: DTensor's Shard(0).
    embedding_dim: D.
    margin: what is done to the target cosine, from heads.margins.
    sample_rate: in (0, 1], the share of a rank's centers that take part in a step; those of the
        batch's own classes always do.
    momentum, weight_decay: of the centers' SGD, applied as torch.optim.SGD applies them, but to the
        sampled rows only.
    seed: of the initial centers and of the sampling, in [0, 2**63); the same on every rank.
    compute_dtype: what the matrix products read; statistics and sums stay in `dtype`.
    dtype: of the centers and their velocity, float32 or float64.
    process_group: the ranks that share the classes; the default group where torch.distributed is
        initialized, else this process alone.

    Buffers: centers (rows, D), drawn from N(0, 0.01²) by global class id, so the start depends on
    neither the world size nor num_classes; velocity (rows, D); steps, 0-d int64, the number of
    training forwards so far, from which each step's sample is drawn. state_dict holds this rank's
    rows alone.

    Raises ValueError for arguments outside these ranges.
    """

    centers: Tensor
    velocity: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        margin: Margin,
        sample_rate: float = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        compute_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype = torch.float32,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _check(num_classes >= 1, "num_classes", num_classes, "at least 1")
        _check(embedding_dim >= 1, "embedding_dim", embedding_dim, "at least 1")
        _check(isinstance(margin, Margin), "margin", margin, "a Margin, such as ArcFace()")
        _check(0 < sample_rate <= 1, "sample_rate", sample_rate, "in (0, 1]")
        _check(0 <= momentum < 1, "momentum", momentum, "in [0, 1)")
        _check(0 <= weight_decay < math.inf, "weight_decay", weight_decay, "finite and at least 0")
        _check(0 <= seed < 1 << 63, "seed", seed, "in [0, 2**63)")
        _check(dtype in (torch.float32, torch.float64), "dtype", dtype, "float32 or float64")
        _check(
            compute_dtype in (torch.float16, torch.bfloat16, torch.float32, dtype),
            "compute_dtype",
            compute_dtype,
            f"float16, bfloat16, float32 or the centers' {dtype}",
        )
        self.num_classes = num_classes
        self.embedding_dim = embedding_dim
        self.margin = margin
        self.sample_rate = sample_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.seed = seed
        self.compute_dtype = compute_dtype
        self.process_group = process_group
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(process_group) if distributed else 0
        self.world_size = dist.get_world_size(process_group) if distributed else 1

        rows_per_rank = math.ceil(num_classes / self.world_size)
        self.first_class = min(self.rank * rows_per_rank, num_classes)
        self.num_local = min(self.first_class + rows_per_rank, num_classes) - self.first_class
        centers = initial_centers(self.first_class, self.num_local, embedding_dim, seed=seed)
        self.register_buffer("centers", centers.to(device=device, dtype=dtype))
        self.register_buffer("velocity", torch.zeros_like(self.centers))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        self._center_grad: Tensor | None = None
        self._pending: _Pending | None = None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of the global batch: a 0-d tensor, the same on every rank.

        embeddings: this rank's (B, D), of any floating dtype; they are normalized here, in `dtype`.
            B and the dtype must be the same on every rank.
        labels: (B,) int64 global class ids in [0, num_classes). A label outside makes the loss and
            its gradients NaN, on every rank, and the step is skipped; check the data set first.

        In training the gradients of the sampled centers are computed here and wait for `step`;
        another forward before that replaces them. `loss.backward()` then only hands on the exact
        gradient of the global mean with respect to this rank's embeddings. DDP averages gradients
        over ranks: multiply the loss by world_size before backward.

        In evaluation mode the loss is over all centers and carries no gradient.

        Raises ValueError for wrong shapes or dtypes.
        """
        self._check_inputs(embeddings, labels)
        # The precision is compute_dtype's to choose, not autocast's.
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.training:
                return _HeadLoss.apply(embeddings, labels, self)
            return self._eval_forward(embeddings, labels)

    @torch.no_grad()
    def step(self, lr: float | Tensor, skip: Tensor | None = None) -> None:
        """Momentum SGD on the sampled rows, from the last forward's gradients.

        lr: a number >= 0 or a 0-d tensor. skip: 0-d bool tensor; where it is true nothing changes,
        bit for bit, and the same where the loss or any rank's center gradients are non-finite. That
        is decided on the device, without waiting for it. Every rank must give the same lr and skip.

        Raises RuntimeError without a training forward since the last step, ValueError for an lr or
        a skip of another kind.
        """
        if self._pending is None or self._center_grad is None:
            raise RuntimeError("step() found no gradients: call the head in training mode first")
        _check_step_inputs(lr, skip)
        rows, update = self._pending
        self._pending = None
        if skip is not None:
            update = update & ~skip
        chunk = max(1, _UPDATE_BYTES // (self.embedding_dim * self.centers.element_size()))
        for start in range(0, self._center_grad.shape[0], chunk):
            grad = self._center_grad[start : start + chunk]  # (chunk, D)
            if rows is None:
                index = None
                centers = self.centers[start : start + chunk]
                velocity = self.velocity[start : start + chunk]
            else:
                index = rows[start : start + chunk]
                centers = self.centers.index_select(0, index)
                velocity = self.velocity.index_select(0, index)
            moved = torch.add(grad, centers, alpha=self.weight_decay)
            moved.add_(velocity, alpha=self.momentum)
            torch.where(update, moved, velocity, out=velocity)
            torch.where(update, centers - moved.mul_(lr), centers, out=centers)
            if index is not None:
                self.centers.index_copy_(0, index, centers)
                self.velocity.index_copy_(0, index, velocity)

    def _train_forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, 0-d, and d loss / d embeddings, (B, D) in `dtype`, for this rank's rows."""
        batch = self._gather_batch(embeddings, labels)
        size = sample_size(self.num_local, batch.labels.shape[0], self.sample_rate)
        classes = self._sample(batch, size)
        self.steps += 1
        loss, terms = self._loss(batch, classes)
        gradients = softmax_gradients(
            batch.unit, classes, terms, out=self._grad_buffer(size), **self._products(batch)
        )
        # Non-finite center gradients on one rank must stop every rank's step. They ride along with
        # the embeddings' gradients instead of in a collective of their own.
        finite = gradients.finite & torch.isfinite(gradients.embeddings.sum())
        shares = torch.where(finite, gradients.embeddings, math.nan)  # (G, D)
        grad = self._reduce_scatter(shares)  # (B, D)
        self._pending = _Pending(classes.rows, torch.isfinite(loss) & torch.isfinite(grad.sum()))

        # Through the normalization: (g - (g·e) e) / |x|, with e = x / |x|.
        mine = slice(self.rank * labels.shape[0], (self.rank + 1) * labels.shape[0])
        unit = batch.unit[mine]
        along = (grad * unit).sum(1, keepdim=True)  # (B, 1)
        return loss, (grad - along * unit) * inverse_norms(batch.embeddings[mine])

    @torch.no_grad()
    def _eval_forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        batch = self._gather_batch(embeddings, labels)
        return self._loss(batch, Classes(self.centers, None, batch.local))[0]

    def _gather_batch(self, embeddings: Tensor, labels: Tensor) -> _Batch:
        # Labels travel beside the embeddings as bytes: one collective, and class ids stay exact.
        packed = torch.cat(
            [
                labels.unsqueeze(1).view(torch.uint8),  # (B, 8)
                embeddings.contiguous().view(torch.uint8),  # (B, D · itemsize)
            ],
            dim=1,
        )
        packed = self._all_gather(packed).flatten(0, 1)
        labels = packed[:, :8].contiguous().view(torch.int64).squeeze(1)
        embeddings = packed[:, 8:].contiguous().view(embeddings.dtype).to(self.centers.dtype)
        local = labels - self.first_class
        local = torch.where((local >= 0) & (local < self.num_local), local, -1)
        return _Batch(embeddings, embeddings * inverse_norms(embeddings), labels, local)

    def _sample(self, batch: _Batch, size: int) -> Classes:
        if size == self.num_local:
            return Classes(self.centers, None, batch.local)
        rows = sample_rows(
            batch.local,
            num_local=self.num_local,
            size=size,
            seed=self.seed,
            step=self.steps,
            first_class=self.first_class,
        )
        positions = torch.where(batch.local >= 0, torch.searchsorted(rows, batch.local), -1)
        return Classes(self.centers, rows, positions)

    def _loss(self, batch: _Batch, classes: Classes) -> tuple[Tensor, LossTerms]:
        statistics = softmax_statistics(batch.unit, classes, **self._products(batch))
        negatives, targets = self._all_gather(torch.stack(statistics)).unbind(1)  # (w, G) each
        known = (batch.labels >= 0) & (batch.labels < self.num_classes)
        target = torch.where(known, targets.sum(0), math.nan)  # only the owner's is not 0
        norms = torch.linalg.vector_norm(batch.embeddings, dim=1)
        return combine(negatives.logsumexp(0), target, norms, self.margin)

    def _products(self, batch: _Batch) -> dict[str, Any]:
        """What both passes over the classes must be told alike."""
        return {
            "scale": self.margin.scale,
            "compute_dtype": self.compute_dtype,
            "chunk": chunk_size(*batch.unit.shape, batch.unit.dtype),
        }

    def _grad_buffer(self, size: int) -> Tensor:
        """(size, D), reused from step to step: as large as the sampled centers themselves."""
        if self._center_grad is None or self._center_grad.shape[0] != size:
            self._center_grad = self.centers.new_empty(size, self.embedding_dim)
        return self._center_grad

    def _all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor, stacked: (world_size, ...)."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty(self.world_size * tensor.shape[0], *tensor.shape[1:])
        # torch 2.13 has new names for these two collectives and warns of the old ones.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(gathered, tensor, group=self.process_group)
        return gathered.view(self.world_size, *tensor.shape)

    def _reduce_scatter(self, shares: Tensor) -> Tensor:
        """(G, D) on every rank → the sum over ranks of this rank's (B, D)."""
        if self.world_size == 1:
            return shares
        total = shares.new_empty(shares.shape[0] // self.world_size, shares.shape[1])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(total, shares, group=self.process_group)
        return total

    def _check_inputs(self, embeddings: Tensor, labels: Tensor) -> None:
        shape = tuple(embeddings.shape)
        if not embeddings.is_floating_point() or len(shape) != 2 or shape[1] != self.embedding_dim:
            raise ValueError(
                f"embeddings are {embeddings.dtype} of shape {shape}, expected floating point of "
                f"shape (B, {self.embedding_dim}); embedding_dim is set when PartialFC is built"
            )
        if labels.dtype != torch.int64 or labels.shape != (shape[0],) or shape[0] == 0:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}, expected torch.int64 "
                f"of shape ({shape[0]},), one class id per embedding and at least one"
            )
        if embeddings.device != self.centers.device or labels.device != self.centers.device:
            raise ValueError(
                f"embeddings are on {embeddings.device} and labels on {labels.device}, the "
                f"centers on {self.centers.device}: move them to one device"
            )


class _HeadLoss(torch.autograd.Function):
    """The loss, with every gradient computed on the way forward; backward only scales."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor, head: PartialFC) -> Tensor:
        loss, grad = head._train_forward(embeddings, labels)
        ctx.save_for_backward(grad)
        ctx.dtype = embeddings.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        # Scaled before it is narrowed, so that a loss scale lifts it over float16's underflow.
        return (loss_grad * grad).to(ctx.dtype), None, None


def initial_centers(first_class: int, count: int, embedding_dim: int, *, seed: int) -> Tensor:
    """(count, D) float32 from N(0, 0.01²) for the global class ids from first_class on.

    Drawn on the CPU in blocks of 1024 ids, each from its own generator, so that a class starts at
    the same place whichever rank owns it and however many others there are.
    """
    centers = torch.empty(count, embedding_dim)
    stop = first_class + count
    for block in range(first_class // _INIT_BLOCK, math.ceil(stop / _INIT_BLOCK)):
        # The generator keeps 32 bits of its seed; an odd multiplier keeps blocks of a seed apart.
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + block) & 0xFFFFFFFF)
        drawn = torch.randn(_INIT_BLOCK, embedding_dim, generator=generator) * _INIT_STD
        start = block * _INIT_BLOCK
        low, high = max(start, first_class), min(start + _INIT_BLOCK, stop)
        centers[low - first_class : high - first_class] = drawn[low - start : high - start]
    return centers


def _check(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise ValueError(f"PartialFC: {name}={value!r}, expected {expected}")


def _check_step_inputs(lr: float | Tensor, skip: Tensor | None) -> None:
    if isinstance(lr, Tensor):
        _check(lr.dim() == 0, "lr", lr.shape, "a number or a 0-d tensor")
    else:
        _check(0 <= lr < math.inf, "lr", lr, "finite and at least 0")
    if skip is not None:
        boolean = isinstance(skip, Tensor) and skip.dtype == torch.bool and skip.dim() == 0
        _check(boolean, "skip", skip, "a 0-d bool tensor")
